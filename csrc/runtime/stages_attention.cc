// The attention op: rope and norm of q and k, storing k and v into pages, attending over the pages.
//
// The order of float operations of a (query row, head) is fixed by absolute positions: partial results of blocks of 64
// positions are folded in ascending order inside a run of two blocks, runs are folded in ascending order. A prompt's
// unit is (16 tokens, KV head) and does all of it; a decode step whose sequences are few is cut by runs, so that
// threads share one long context, and whoever completes the last run of a (sequence, KV head) folds them.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <utility>

#include "compile.h"

namespace subsecond {
namespace {

constexpr int64_t run_blocks = 2;    // blocks folded before runs are: part of the numerics
constexpr int64_t tile_tokens = 16;  // query tokens of a prompt's unit

struct AttentionSpec {
    const KernelTable* kernels;
    const KvKernel* kv;
    Value qkv, out;
    const CacheGroup* group;
    int64_t group_index = 0, layer = 0;
    int64_t heads = 0, kv_heads = 0, share = 0;  // share: query heads of a KV head
    int64_t head_dim = 0, padded = 0;
    int64_t window = 0;  // 0: all
    float scale = 1, softcap = 0, eps = 0;
    const float *q_norm = nullptr, *k_norm = nullptr;
    const RopeTable* rope = nullptr;
    int64_t rotary = 0;
    bool interleaved = false;
    int64_t query_bytes = 0, block_bytes = 0;

    int64_t first_block(int64_t position) const {
        return window == 0 ? 0 : std::max<int64_t>(0, position - window + 1) / kv_block;
    }
    uint8_t* block(const int32_t* table, int64_t index, int64_t kv_head) const {
        return group->block(layer, kv_head, table[index]);
    }

    // A head's vector after norm and rope, in `scratch`, or where it lies when there is nothing to do.
    const float* turned(const float* x, const float* norm, int64_t token, float* scratch) const {
        if (norm != nullptr)
            kernels->rms_norm(x, norm, head_dim, eps, scratch);
        else if (rope != nullptr)
            std::memcpy(scratch, x, static_cast<size_t>(head_dim) * sizeof(float));
        else
            return x;
        if (rope != nullptr) kernels->rope(scratch, rope->cosine(token), rope->sine(token), rotary, interleaved);
        return scratch;
    }

    void store(const Step& step, int64_t token, int64_t kv_head, float* scratch) const {
        const float* row = qkv.row(token);
        const float* k = turned(row + (heads + kv_head) * head_dim, k_norm, token, scratch);
        const float* v = row + (heads + kv_heads + kv_head) * head_dim;
        const int64_t position = step.token_position[token];
        const int32_t* table = step.table(group_index, step.token_sequence[token]);
        kv->store(k, v, head_dim, position % kv_block, block(table, position / kv_block, kv_head));
    }
};

// Results of rows, as KvKernel::attend writes them.
struct States {
    float *m, *l, *acc;  // [rows], [rows], [rows][padded]
};

// Folds `from` into `into`, row by row; a first one is taken as it is.
void fold(const AttentionSpec& spec, const States& into, const States& from, int64_t rows) {
    spec.kernels->attend_merge(into.m, into.l, into.acc, from.m, from.l, from.acc, rows, spec.head_dim);
}

int64_t partial_floats(const AttentionSpec& spec) { return 2 * round_up(spec.share, 16) + spec.share * spec.padded; }

// Where a unit's arrays lie in a worker's scratch, for the most rows that a unit can have.
struct Layout {
    int64_t bytes = 0;
    int64_t head, query, lo, hi;
    struct {
        int64_t m, l, acc;
    } states[3];  // of a block, a run, all

    Layout(const AttentionSpec& spec, int64_t rows) {
        const auto take = [this](int64_t size) { return std::exchange(bytes, bytes + round_up(size, 64)); };
        head = take(spec.padded * 4);
        query = take(rows * spec.query_bytes);
        lo = take(rows * 4);
        hi = take(rows * 4);
        for (auto& state : states) {
            state.m = take(rows * 4);
            state.l = take(rows * 4);
            state.acc = take(rows * spec.padded * 4);
        }
    }
};

struct Workspace {
    float* head;
    uint8_t* query;
    int32_t *lo, *hi;
    States block, run, total;

    Workspace(const Layout& at, uint8_t* memory)
        : head(floats(memory + at.head)),
          query(memory + at.query),
          lo(reinterpret_cast<int32_t*>(memory + at.lo)),
          hi(reinterpret_cast<int32_t*>(memory + at.hi)),
          block(states(at, memory, 0)),
          run(states(at, memory, 1)),
          total(states(at, memory, 2)) {}

  private:
    static float* floats(uint8_t* at) { return reinterpret_cast<float*>(at); }
    static States states(const Layout& at, uint8_t* memory, int i) {
        return {floats(memory + at.states[i].m), floats(memory + at.states[i].l), floats(memory + at.states[i].acc)};
    }
};

// Query rows (token, head) of `tokens` tokens from `token` on that share one KV head, token by token.
struct Tile {
    int64_t token, tokens, kv_head;
};

class Attender {
  public:
    // `prepared`: the workspace holds this tile's queries already.
    Attender(const AttentionSpec& spec, const Step& step, Tile tile, const Workspace& workspace, bool prepared = false)
        : spec_(spec), step_(step), tile_(tile), rows_(tile.tokens * spec.share), w_(workspace) {
        for (int64_t r = 0; !prepared && r < rows_; ++r) {
            const int64_t token = tile.token + r / spec.share;
            const float* q = spec.qkv.row(token) + (tile.kv_head * spec.share + r % spec.share) * spec.head_dim;
            q = spec.turned(q, spec.q_norm, token, w_.head);
            spec.kv->query_prepare(q, spec.head_dim, spec.scale, w_.query + r * spec.query_bytes);
        }
        table_ = step.table(spec.group_index, step.token_sequence[tile.token]);
    }

    // Folds the blocks [begin, end) of one run into `into`, whose rows need no clearing. `last`: the last block that
    // will be attended to, `after`: a block that is read after that (a hint).
    void attend(int64_t begin, int64_t end, int64_t last, const uint8_t* after, const States& into) {
        for (int64_t index = begin; index < end; ++index) {
            for (int64_t r = 0; r < rows_; ++r) {
                const int64_t position = step_.token_position[tile_.token + r / spec_.share];
                const int64_t start = index * kv_block;
                const int64_t low = spec_.window == 0 ? 0 : position - spec_.window + 1 - start;
                w_.hi[r] = static_cast<int32_t>(std::clamp<int64_t>(position + 1 - start, 0, kv_block));
                w_.lo[r] = static_cast<int32_t>(std::clamp<int64_t>(low, 0, w_.hi[r]));
            }
            const States& result = index == begin ? into : w_.block;
            const uint8_t* here = spec_.block(table_, index, tile_.kv_head);
            const uint8_t* next = index < last ? spec_.block(table_, index + 1, tile_.kv_head) : after;
            // What follows in memory is fetched by the hardware, and sooner than we would.
            if (next == here + spec_.block_bytes) next = nullptr;
            spec_.kv->attend(w_.query, rows_, here, next, spec_.head_dim, w_.lo, w_.hi, spec_.softcap, result.m,
                             result.l, result.acc);
            if (index != begin) fold(spec_, into, w_.block, rows_);
        }
    }

    void attend_all(const uint8_t* after) {
        const int64_t first = spec_.first_block(step_.token_position[tile_.token]);
        const int64_t last = step_.token_position[tile_.token + tile_.tokens - 1] / kv_block;
        for (int64_t begin = first; begin <= last;) {
            const int64_t end = std::min(last + 1, round_up(begin + 1, run_blocks));
            attend(begin, end, last, after, begin == first ? w_.total : w_.run);
            if (begin != first) fold(spec_, w_.total, w_.run, rows_);
            begin = end;
        }
        for (int64_t r = 0; r < rows_; ++r) write(r, w_.total, r);
    }

    // out = acc / l
    void write(int64_t row, const States& states, int64_t state_row) const {
        float* out = spec_.out.row(tile_.token + row / spec_.share) +
                     (tile_.kv_head * spec_.share + row % spec_.share) * spec_.head_dim;
        spec_.kernels->scale(states.acc + state_row * spec_.padded, 1.0f / states.l[state_row], spec_.head_dim, out);
    }

    float* head_scratch() const { return w_.head; }

  private:
    const AttentionSpec& spec_;
    const Step& step_;
    const Tile tile_;
    const int64_t rows_;
    const Workspace w_;
    const int32_t* table_;
};

// Prompts: k and v of all tokens before anyone attends. Decode steps store where they attend.
class Store final : public Stage {
  public:
    explicit Store(std::shared_ptr<const AttentionSpec> spec) : spec_(std::move(spec)) {}

    Extent begin(const Step& step) noexcept override { return {step.decode ? 0 : step.tokens, 4}; }

    void work(const Step& step, int64_t begin, int64_t end, Worker& worker) noexcept override {
        for (int64_t token = begin; token < end; ++token)
            for (int64_t kv_head = 0; kv_head < spec_->kv_heads; ++kv_head)
                spec_->store(step, token, kv_head, reinterpret_cast<float*>(worker.scratch));
    }

    int64_t scratch_bytes() const override { return spec_->padded * 4; }

  private:
    std::shared_ptr<const AttentionSpec> spec_;
};

class Attend final : public Stage {
  public:
    Attend(std::shared_ptr<const AttentionSpec> spec, const Compiler& compiler)
        : spec_(std::move(spec)),
          layout_(*spec_, tile_tokens * spec_->share),
          partial_(&compiler.panel),
          split_pairs_(compiler.threads == 1 ? 0 : 4 * compiler.threads),
          pending_(static_cast<size_t>(split_pairs_)),
          first_(static_cast<size_t>(compiler.max_sequences) + 1) {}

    Extent begin(const Step& step) noexcept override {
        split_ = step.decode && step.sequences * spec_->kv_heads < split_pairs_;
        // first_[s]: the first of sequence s's units, each standing for all KV heads.
        int64_t units = 0;
        for (int64_t s = 0; s < step.sequences; ++s) {
            first_[static_cast<size_t>(s)] = units;
            const int64_t start = step.sequence_start[s];
            if (split_) {
                const int64_t position = step.token_position[start];
                const int64_t runs = last_run(position) - first_run(position) + 1;
                for (int64_t h = 0; h < spec_->kv_heads; ++h)
                    pending_[static_cast<size_t>(s * spec_->kv_heads + h)].store(runs, std::memory_order_relaxed);
                units += runs;
            } else {
                units += ceil_div(step.sequence_start[s + 1] - start, tile_tokens);
            }
        }
        first_[static_cast<size_t>(step.sequences)] = units;
        return {units * spec_->kv_heads, 1};
    }

    void work(const Step& step, int64_t begin, int64_t end, Worker& worker) noexcept override {
        for (int64_t unit = begin; unit < end; ++unit) {
            const auto [s, index, part, kv_head] = place(step, unit);
            const int64_t start = step.sequence_start[s];
            if (split_) {
                run(step, {s, index, part, kv_head}, first_read(step, unit + 1), worker);
                continue;
            }
            const int64_t token = start + part * tile_tokens;
            const int64_t tokens = std::min<int64_t>(tile_tokens, step.sequence_start[s + 1] - token);
            Attender attender(*spec_, step, {token, tokens, kv_head}, Workspace(layout_, worker.scratch));
            if (step.decode) spec_->store(step, token, kv_head, attender.head_scratch());
            attender.attend_all(first_read(step, unit + 1));
        }
    }

    int64_t scratch_bytes() const override { return layout_.bytes; }

  private:
    // index: the unit's number among those of all sequences, part: of its sequence (both without KV heads).
    struct Place {
        int64_t sequence, index, part, kv_head;
    };

    Place place(const Step& step, int64_t unit) const {
        // In decode, what one KV head reads follows in the order of memory, so that the hardware prefetches across
        // units (and a thread prepares the queries of runs once). The last units of a prompt see most positions: they
        // go first.
        const int64_t count = first_[static_cast<size_t>(step.sequences)];
        const int64_t index = step.decode ? unit % count : count - 1 - unit / spec_->kv_heads;
        const int64_t kv_head = step.decode ? unit / count : unit % spec_->kv_heads;
        const auto last = first_.begin() + step.sequences;
        const int64_t s = std::upper_bound(first_.begin(), last, index) - first_.begin() - 1;
        return {s, index, index - first_[static_cast<size_t>(s)], kv_head};
    }

    // The block that a unit reads first, nullptr beyond the last unit. Mostly the unit after a thread's own is its own
    // too.
    const uint8_t* first_read(const Step& step, int64_t unit) const {
        if (unit >= first_[static_cast<size_t>(step.sequences)] * spec_->kv_heads) return nullptr;
        const auto [s, index, part, kv_head] = place(step, unit);
        const int64_t token = step.sequence_start[s] + (split_ ? 0 : part * tile_tokens);
        int64_t block = spec_->first_block(step.token_position[token]);
        if (split_) block = std::max(block, (first_run(step.token_position[token]) + part) * run_blocks);
        return spec_->block(step.table(spec_->group_index, s), block, kv_head);
    }

    int64_t first_run(int64_t position) const { return spec_->first_block(position) / run_blocks; }
    static int64_t last_run(int64_t position) { return position / kv_block / run_blocks; }

    // Partial results of one run of one (sequence, KV head), a row a query head.
    States partial(int64_t index, int64_t kv_head) const {
        float* base = reinterpret_cast<float*>(partial_->memory.data()) +
                      (index * spec_->kv_heads + kv_head) * partial_floats(*spec_);
        return {base, base + round_up(spec_->share, 16), base + 2 * round_up(spec_->share, 16)};
    }

    // One run of one (sequence, KV head).
    void run(const Step& step, const Place& place, const uint8_t* after, Worker& worker) {
        const auto [s, index, part, kv_head] = place;
        const int64_t token = step.sequence_start[s], position = step.token_position[token];
        const int64_t number = first_run(position) + part, runs = last_run(position) - first_run(position) + 1;
        const int64_t pair = s * spec_->kv_heads + kv_head;
        const bool prepared = worker.prepared == step.stage && worker.prepared_for == pair;
        worker.prepared = step.stage;
        worker.prepared_for = pair;
        Attender attender(*spec_, step, {token, 1, kv_head}, Workspace(layout_, worker.scratch), prepared);
        // Nobody but the last run reads the block of the new position.
        if (part == runs - 1) spec_->store(step, token, kv_head, attender.head_scratch());
        const int64_t end = std::min((number + 1) * run_blocks, position / kv_block + 1);
        attender.attend(std::max(number * run_blocks, spec_->first_block(position)), end, end - 1, after,
                        partial(index, kv_head));
        std::atomic<int64_t>& pending = pending_[static_cast<size_t>(s * spec_->kv_heads + kv_head)];
        if (pending.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
        const int64_t first = index - part;
        const States total = partial(first, kv_head);
        for (int64_t i = first + 1; i < first + runs; ++i) fold(*spec_, total, partial(i, kv_head), spec_->share);
        for (int64_t r = 0; r < spec_->share; ++r) attender.write(r, total, r);
    }

    std::shared_ptr<const AttentionSpec> spec_;
    const Layout layout_;
    const Shared* partial_;
    const int64_t split_pairs_;
    // Of the current step.
    bool split_ = false;
    std::vector<std::atomic<int64_t>> pending_;  // runs to go, of each (sequence, KV head)
    std::vector<int64_t> first_;
};

void read_rope(Compiler& compiler, const OpCall& op, AttentionSpec& spec) {
    spec.rotary = op.integer("rotary", 0, spec.head_dim);
    op.need(spec.rotary % 2 == 0, "rotary must be even");
    spec.interleaved = op.flag("interleaved");
    const float factor = op.number("factor");
    if (spec.rotary != 0)
        spec.rope = compiler.rope(compiler.vector(op, 2, spec.rotary / 2), spec.rotary / 2, factor);
    else
        op.need(op.weights[2].empty(), "inv_freq needs rotary > 0");
}

}  // namespace

void compile_attention(Compiler& compiler, const OpCall& op) {
    op.need(op.inputs.size() == 1 && op.weights.size() == 3, "needs 1 input and 3 weight places");
    auto spec = std::make_shared<AttentionSpec>();
    spec->kernels = &compiler.kernels;
    spec->kv = &compiler.kernels.kv[static_cast<int>(compiler.kv)];
    spec->qkv = compiler.input(op, 0);
    spec->group_index = op.integer("group", 0, static_cast<int64_t>(compiler.groups.size()) - 1);
    spec->group = &compiler.groups[static_cast<size_t>(spec->group_index)];
    const int64_t layer = op.integer("layer", 0, static_cast<int64_t>(spec->group->layers.size()) - 1);
    spec->layer = layer;
    spec->heads = op.integer("heads", 1, 1 << 12);
    spec->kv_heads = op.integer("kv_heads", 1, spec->heads);
    spec->head_dim = op.integer("head_dim", 1, 1 << 16);
    spec->padded = head_dim_padded(spec->head_dim);
    spec->share = spec->heads / spec->kv_heads;
    const CacheLayer& stored = spec->group->layers[static_cast<size_t>(layer)];
    op.need(stored.kv_heads == spec->kv_heads && stored.head_dim == spec->head_dim,
            "kv_heads or head_dim differ from its cache group");
    op.need(spec->heads % spec->kv_heads == 0, "heads is not a multiple of kv_heads");
    op.need(spec->qkv.rows == 'T' && spec->qkv.width == (spec->heads + 2 * spec->kv_heads) * spec->head_dim,
            "q|k|v has the wrong width");
    spec->window = op.integer("window", 0, int64_t{1} << 30);
    op.need(spec->window == spec->group->window, "window differs from its cache group");
    spec->scale = op.number("scale");
    spec->softcap = op.number("softcap");
    spec->eps = op.number("eps");
    spec->q_norm = compiler.optional_vector(op, 0, spec->head_dim);
    spec->k_norm = compiler.optional_vector(op, 1, spec->head_dim);
    read_rope(compiler, op, *spec);
    spec->query_bytes = spec->kv->query_bytes(spec->head_dim);
    spec->block_bytes = spec->group->block_bytes[static_cast<size_t>(layer)];
    spec->out = compiler.output(op, spec->heads * spec->head_dim, 'T');

    // A split step has fewer than 4 * threads (sequence, KV head) pairs, each with the runs of one sequence.
    const int64_t blocks = spec->window == 0 ? spec->group->pages : ceil_div(spec->window, kv_block) + 1;
    const int64_t runs = ceil_div(blocks, run_blocks) + 1;
    compiler.panel.want(4 * compiler.threads * runs * partial_floats(*spec) * 4);
    compiler.add(std::make_unique<Store>(spec));
    compiler.add(std::make_unique<Attend>(spec, compiler));
}

}  // namespace subsecond
