#include "model.h"

#include <algorithm>
#include <cstring>

#include "fault.h"

namespace subsecond {
namespace {

constexpr int64_t limit_bytes = int64_t{1} << 46;  // of address space

const KernelTable& table_for(const std::string& isa) {
    const KernelTable* table = table_by_name(isa.c_str());
    if (table == nullptr) throw ModelFault("instruction set '" + isa + "' is not built or not supported by this CPU");
    return *table;
}

int64_t checked(const char* name, int64_t value, int64_t least, int64_t most) {
    if (value < least || value > most)
        throw ModelFault(std::string(name) + " is " + std::to_string(value) + ", outside " + std::to_string(least) +
                         ".." + std::to_string(most));
    return value;
}

int threads_of(int64_t threads) { return static_cast<int>(checked("threads", threads, 1, 1024)); }

// Released when a call on a model ends.
class Busy {
  public:
    explicit Busy(std::atomic<bool>& flag) : flag_(flag) {
        if (flag_.exchange(true, std::memory_order_acquire)) throw PlanFault("the model is running another plan");
    }
    ~Busy() { flag_.store(false, std::memory_order_release); }

  private:
    std::atomic<bool>& flag_;
};

}  // namespace

// The last stage of each step: one unit a row of logits, or the rows of a draft with the first of them. A token counts
// in its sampler at once: what follows in a draft is chosen as if it had been a step of its own.
class Model::Sampling final : public Stage {
  public:
    explicit Sampling(Model& model) : model_(model) {}

    Extent begin(const Step& step) noexcept override {
        for (int64_t r = 0; r < step.rows; ++r)
            if (sampler(r) != nullptr) return {step.rows, 1};
        return {};
    }

    void work(const Step& step, int64_t begin, int64_t end, Worker&) noexcept override {
        for (int64_t r = begin; r < end; ++r)
            if (sampler(r) != nullptr && !is_drafted(r)) choose(step, r);
    }

  private:
    // A row, and the draft that begins with it.
    void choose(const Step& step, int64_t r) {
        const Outcome* outcome = &sample(step, r);
        for (++r; r < step.rows && is_drafted(r); ++r) {
            const bool chosen =
                outcome->status == SampleStatus::ok && !outcome->stop && outcome->token == step.token[step.row[r]];
            Outcome& next = model_.plan_->outcomes[model_.result(r)];
            if (chosen)
                sample(step, r);
            else
                next.status = SampleStatus::unreached;
            outcome = &next;
        }
    }

    const Outcome& sample(const Step& step, int64_t r) {
        const Value& logits = model_.values_[static_cast<size_t>(model_.output_)];
        const int64_t position = step.token_position[step.row[r]] + 1;  // of the token to come
        const Screening& screening = model_.screening_;
        Outcome& outcome = model_.plan_->outcomes[model_.result(r)];
        outcome = screening.done
                      ? sampler(r)->sample_tiles(logits.row(r), logits.width, screening.tiles.data(), screening.count)
                      : sampler(r)->sample(logits.row(r), logits.width, position);
        if (outcome.status == SampleStatus::ok) sampler(r)->accept(outcome.token);
        return outcome;
    }

    // Only calls of one step have drafts, and in these the rows are the plan's.
    bool is_drafted(int64_t row) const { return model_.sizes_.max_steps == 1 && model_.plan_->is_drafted(row); }

    Sampler* sampler(int64_t row) const {
        return model_.plan_->samplers[static_cast<size_t>(model_.origin_[static_cast<size_t>(row)])];
    }

    Model& model_;
};

// The stages of the output matrix once more, for logits that the last step has left out.
class Model::Completion final : public Job {
  public:
    explicit Completion(Model& model) : model_(model), next_(model.screening_.first_stage), end_(next_ + 2) {}

    Extent advance() noexcept override {
        while (next_ < end_) {
            stage_ = model_.stages_[next_++].get();
            ++model_.step_.stage;
            const Extent extent = stage_->begin(model_.step_);
            if (extent.units > 0) return extent;
        }
        return {};
    }
    void work(int64_t begin, int64_t end, int worker) noexcept override {
        stage_->work(model_.step_, begin, end, model_.workers_[static_cast<size_t>(worker)]);
    }

  private:
    Model& model_;
    size_t next_, end_;
    Stage* stage_ = nullptr;
};

Model::Model(const ModelOptions& options)
    : kernels_(table_for(options.isa)),
      max_tokens_(checked("max_tokens", options.max_tokens, 1, 1 << 20)),
      max_sequences_(checked("max_sequences", options.max_sequences, 1, 1 << 16)),
      max_rows_(checked("max_rows", options.max_rows, 1, 1 << 20)),
      pool_(threads_of(options.threads)) {}

void Model::need_open() const {
    if (finished_) throw ModelFault("the model is finished: nothing can be added");
}

void Model::need_finished() const {
    if (!finished_) throw PlanFault("finish() has not been called");
}

void Model::add_tensor(const std::string& name, const std::string& format, int64_t n, int64_t k,
                       std::shared_ptr<const Weights> weights, int64_t offset, int64_t size) {
    need_open();
    const Tensor tensor = weights->matrix(name, format_by_name(format), n, k, offset, size);
    if (!tensors_.emplace(name, tensor).second) throw ModelFault("tensor '" + name + "' is added twice");
    weights_.push_back(std::move(weights));
}

void Model::add_vector(const std::string& name, int64_t n, std::shared_ptr<const Weights> weights, int64_t offset,
                       int64_t size) {
    need_open();
    const Tensor tensor = weights->vector(name, n, offset, size);
    if (!tensors_.emplace(name, tensor).second) throw ModelFault("tensor '" + name + "' is added twice");
    weights_.push_back(std::move(weights));
}

void Model::add_group(const std::string& kind, int64_t window, std::vector<CacheLayer> layers) {
    need_open();
    if (kind != "full" && kind != "window") throw ModelFault("unknown cache group kind '" + kind + "'");
    checked("window", window, kind == "full" ? 0 : 1, kind == "full" ? 0 : int64_t{1} << 30);
    checked("layers of a cache group", static_cast<int64_t>(layers.size()), 1, 1 << 12);
    for (const CacheLayer& layer : layers) {
        checked("kv_heads", layer.kv_heads, 1, 1 << 12);
        checked("head_dim", layer.head_dim, 1, 1 << 16);
    }
    CacheGroup group;
    group.window = window;
    group.layers = std::move(layers);
    groups_.push_back(std::move(group));
}

void Model::add_value(int64_t width, const std::string& rows, int64_t offset) {
    need_open();
    if (rows != "T" && rows != "R" && rows != "S") throw ModelFault("unknown kind of rows '" + rows + "'");
    checked("width", width, 1, 1 << 26);
    checked("offset", offset, 0, int64_t{1} << 30);
    if (offset % tile_channels != 0)
        throw ModelFault("value offset " + std::to_string(offset) + " is not a multiple of 16");
    Value value;
    value.width = width;
    value.rows = rows[0];
    value.offset = offset;
    value.stride = round_up(width, tile_channels);
    values_.push_back(value);
}

void Model::add_op(OpCall op) {
    need_open();
    ops_.push_back(std::move(op));
}

void Model::finish(int64_t output, const std::string& kv, int64_t pages) {
    need_open();
    checked("pages", pages, 1, INT32_MAX);
    checked("output", output, 0, static_cast<int64_t>(values_.size()) - 1);
    const char* const names[] = {"f32", "bf16", "int8"};
    const auto found = std::find(std::begin(names), std::end(names), kv);
    if (found == std::end(names)) throw ModelFault("unknown KV format '" + kv + "' (f32, bf16, int8)");
    const KvFormat format = static_cast<KvFormat>(found - std::begin(names));
    for (CacheGroup& group : groups_) group.allocate(format, pages);
    allocate_values();
    stages_.push_back(rope_stage(ropes_));
    Compiler compiler{kernels_, format,  pool_.threads(), max_tokens_, max_sequences_, max_rows_,  values_,
                      tensors_, groups_, ropes_,          panel_,      stages_,        screening_, -1};
    for (const OpCall& op : ops_) {
        // What a later op does to the logits, a choice between them must see.
        if (&op == &ops_.back()) compiler.output_value = output;
        compile(compiler, op);
    }
    if (!values_[static_cast<size_t>(output)].made) throw ModelFault("no op makes the output value");
    stages_.push_back(std::make_unique<Sampling>(*this));
    output_ = output;
    token_limit_ = compiler.token_limit;
    position_limit_ = compiler.position_limit;
    allocate_scratch();
    ops_.clear();
    finished_ = true;
}

void Model::allocate_values() {
    int64_t total = 0;  // f32 values
    std::vector<int64_t> start(values_.size());
    for (const char kind : {'T', 'R', 'S'}) {
        const int64_t capacity = kind == 'T' ? max_tokens_ : kind == 'R' ? max_rows_ : max_sequences_;
        int64_t width = 0;
        for (size_t i = 0; i < values_.size(); ++i) {
            if (values_[i].rows != kind) continue;
            start[i] = total + values_[i].offset * capacity;
            width = std::max(width, values_[i].offset + values_[i].stride);
        }
        total += width * capacity;
        if (total > limit_bytes / 4) throw ModelFault("the values of a step do not fit: lower max_tokens or max_rows");
    }
    arena_ = platform::LazyMemory(static_cast<size_t>(total) * sizeof(float));
    for (size_t i = 0; i < values_.size(); ++i) values_[i].data = reinterpret_cast<float*>(arena_.data()) + start[i];
}

void Model::allocate_scratch() {
    int64_t bytes = 64;
    for (const auto& stage : stages_) bytes = std::max(bytes, stage->scratch_bytes());
    bytes = round_up(bytes, 4096);
    if (panel_.wanted > limit_bytes || bytes > limit_bytes / pool_.threads())
        throw ModelFault("the scratch memory of a step does not fit: lower max_tokens");
    panel_.memory = platform::LazyMemory(static_cast<size_t>(panel_.wanted));
    scratch_ = platform::LazyMemory(static_cast<size_t>(bytes * pool_.threads()));
    workers_.resize(static_cast<size_t>(pool_.threads()));
    for (size_t i = 0; i < workers_.size(); ++i)
        workers_[i].scratch = scratch_.data() + static_cast<int64_t>(i) * bytes;
    const size_t tokens = static_cast<size_t>(max_tokens_), sequences = static_cast<size_t>(max_sequences_);
    token_.resize(tokens);
    token_position_.resize(tokens);
    token_sequence_.resize(tokens);
    start_.resize(sequences + 1);
    row_.resize(static_cast<size_t>(max_rows_));
    origin_.resize(std::max(sequences, static_cast<size_t>(max_rows_)));
    step_.tables.resize(groups_.size() * sequences);
}

PlanLimits Model::limits() const {
    need_finished();
    PlanLimits limits{max_tokens_, max_sequences_, max_rows_, token_limit_, position_limit_, vocab(), {}};
    for (const CacheGroup& group : groups_) limits.groups.push_back({group.window, group.pages});
    return limits;
}

int64_t Model::run(Plan& plan, const PlanSizes& sizes) {
    need_finished();
    const Busy busy(running_);
    plan.check(sizes);
    plan_ = &plan;
    sizes_ = sizes;
    begin_call();
    pool_.run(*this);
    plan.stop.store(false, std::memory_order_relaxed);
    return steps_done_;
}

void Model::begin_call() {
    const size_t rows = static_cast<size_t>(sizes_.rows);
    std::fill_n(plan_->sampled.begin(), rows * static_cast<size_t>(sizes_.max_steps), -1);
    std::fill_n(plan_->finish.begin(), rows, static_cast<int32_t>(Finish::running));
    steps_done_ = 0;
    next_stage_ = 0;
    step_.tokens = sizes_.tokens;
    step_.sequences = sizes_.sequences;
    step_.rows = sizes_.rows;
    std::copy_n(plan_->tokens.begin(), sizes_.tokens, token_.begin());
    std::copy_n(plan_->sequence_start.begin(), sizes_.sequences + 1, start_.begin());
    std::copy_n(plan_->row.begin(), rows, row_.begin());
    for (int64_t s = 0; s < sizes_.sequences; ++s)
        for (int32_t t = start_[static_cast<size_t>(s)], p = plan_->position[static_cast<size_t>(s)];
             t < start_[static_cast<size_t>(s) + 1]; ++t, ++p) {
            token_sequence_[static_cast<size_t>(t)] = static_cast<int32_t>(s);
            token_position_[static_cast<size_t>(t)] = p;
        }
    for (size_t i = 0; i < origin_.size(); ++i) origin_[i] = static_cast<int32_t>(i);
    lay_out_step();
}

void Model::lay_out_step() {
    step_.decode = step_.tokens == step_.sequences;
    step_.token = token_.data();
    step_.sequence_start = start_.data();
    step_.token_position = token_position_.data();
    step_.token_sequence = token_sequence_.data();
    step_.row = row_.data();
    step_.greedy = true;
    for (size_t r = 0; r < static_cast<size_t>(step_.rows); ++r) {
        const Sampler* sampler = plan_->samplers[static_cast<size_t>(origin_[r])];
        step_.greedy = step_.greedy && sampler != nullptr && sampler->takes_largest();
    }
    for (size_t g = 0; g < groups_.size(); ++g)
        for (int64_t s = 0; s < step_.sequences; ++s)
            step_.tables[g * static_cast<size_t>(step_.sequences) + static_cast<size_t>(s)] =
                plan_->table(g, origin_[static_cast<size_t>(s)]);
}

Extent Model::advance() noexcept {
    for (;;) {
        if (next_stage_ == stages_.size()) {
            if (!end_step()) return {};
            next_stage_ = 0;
        }
        stage_ = stages_[next_stage_++].get();
        ++step_.stage;
        const Extent extent = stage_->begin(step_);
        if (extent.units > 0) return extent;
    }
}

void Model::work(int64_t begin, int64_t end, int worker) noexcept {
    stage_->work(step_, begin, end, workers_[static_cast<size_t>(worker)]);
}

size_t Model::result(int64_t row) const {
    return static_cast<size_t>(steps_done_ * sizes_.rows + origin_[static_cast<size_t>(row)]);
}

// Takes what the rows have sampled, and lays out the next step from the sequences that go on.
bool Model::end_step() noexcept {
    int64_t kept = 0;
    for (int64_t r = 0; r < step_.rows; ++r) {
        const size_t row = static_cast<size_t>(r), plan_row = static_cast<size_t>(origin_[row]);
        Sampler* sampler = plan_->samplers[plan_row];
        if (sampler == nullptr) continue;
        const Outcome& outcome = plan_->outcomes[result(r)];
        if (outcome.status == SampleStatus::unreached) continue;
        Finish finish = Finish::running;
        if (outcome.status == SampleStatus::ok) {
            plan_->sampled[result(r)] = outcome.token;
            if (outcome.stop) finish = Finish::stop;
        } else {
            finish = outcome.status == SampleStatus::non_finite ? Finish::non_finite : Finish::none_allowed;
        }
        plan_->finish[plan_row] = static_cast<int32_t>(finish);
        if (finish != Finish::running || sizes_.max_steps == 1) continue;
        // Rows keep their order, so kept <= r: what is written here has been read.
        const size_t next = static_cast<size_t>(kept++);
        token_position_[next] = token_position_[static_cast<size_t>(row_[row])] + 1;
        token_[next] = outcome.token;
        origin_[next] = static_cast<int32_t>(plan_row);
    }
    ++steps_done_;
    if (kept == 0 || steps_done_ == sizes_.max_steps || plan_->stop.load(std::memory_order_relaxed)) return false;
    step_.tokens = step_.sequences = step_.rows = kept;
    for (int64_t s = 0; s < kept; ++s) {
        start_[static_cast<size_t>(s)] = row_[static_cast<size_t>(s)] = static_cast<int32_t>(s);
        token_sequence_[static_cast<size_t>(s)] = static_cast<int32_t>(s);
    }
    start_[static_cast<size_t>(kept)] = static_cast<int32_t>(kept);
    lay_out_step();
    return true;
}

CacheGroup& Model::group(int64_t index) {
    need_finished();
    if (index < 0 || index >= static_cast<int64_t>(groups_.size()))
        throw PlanFault("cache group " + std::to_string(index) + " does not exist");
    return groups_[static_cast<size_t>(index)];
}

void Model::copy_page(int64_t index, int64_t from, int64_t to) {
    CacheGroup& target = group(index);
    const Busy busy(running_);
    target.copy_page(from, to);
}

int64_t Model::page_bytes(int64_t index) { return group(index).page_bytes; }

int64_t Model::vocab() const {
    need_finished();
    const Value& output = values_[static_cast<size_t>(output_)];
    return output.rows == 'R' ? output.width : 0;
}

void Model::logits(float* out, int64_t size) {
    need_finished();
    const Busy busy(running_);
    if (size != step_.rows * vocab())
        throw PlanFault("the buffer holds " + std::to_string(size) + " values, the last step's logits are " +
                        std::to_string(step_.rows) + " x " + std::to_string(vocab()));
    copy_value(output_, out);
}

void Model::complete_logits() {
    if (!screening_.done) return;
    screening_.done = false;
    Completion completion(*this);
    pool_.run(completion);
}

int64_t Model::value_size(int64_t index) const {
    need_finished();
    if (index < 0 || index >= static_cast<int64_t>(values_.size()))
        throw PlanFault("value " + std::to_string(index) + " does not exist");
    const Value& value = values_[static_cast<size_t>(index)];
    return step_.count(value.rows) * value.width;
}

void Model::copy_value(int64_t index, float* out) {
    if (index == output_) complete_logits();
    const Value& value = values_[static_cast<size_t>(index)];
    for (int64_t row = 0; row < step_.count(value.rows); ++row)
        std::memcpy(out + row * value.width, value.row(row), static_cast<size_t>(value.width) * sizeof(float));
}

}  // namespace subsecond
