// The fused linear op: y = [act(]x' W1 + b1[) * (x' W2 + b2)] | ...  [+ residual],  x' = x or norm(x).
//
// With few rows every thread normalizes and prepares the activations for itself, and the op is one stage; with many, a
// stage of its own prepares them into a panel. The product's units are (block of rows, few tiles), tiles innermost: a
// block of prepared rows stays in the second-level cache while the weights stream through. Whatever the cut, each
// output element is computed whole by one call of the kernel, so the cut cannot change its bits.
#include <algorithm>
#include <cstring>
#include <utility>

#include "linear.h"

namespace subsecond {
namespace {

constexpr int64_t block_rows = 128;         // rows of a unit, less when a block of the panel exceeds:
constexpr int64_t block_bytes = 384 << 10;  // well inside a second-level cache, beside weights and outputs
constexpr int64_t gate_bytes = 64 << 10;    // scratch for each of gate and up
constexpr int64_t gate_tiles = 64;          // tiles of a gated product computed together, at most

class Prepare final : public Stage {
  public:
    explicit Prepare(std::shared_ptr<const LinearSpec> spec) : spec_(std::move(spec)) {}

    Extent begin(const Step& step) noexcept override {
        const int64_t rows = spec_->chosen() ? 0 : step.count(spec_->x.rows);
        return {rows <= direct_rows ? 0 : rows, std::max<int64_t>(1, 2048 / spec_->k)};
    }

    void work(const Step&, int64_t begin, int64_t end, Worker& worker) noexcept override {
        for (int64_t row = begin; row < end; ++row) {
            const float* values = spec_->normalized(row, reinterpret_cast<float*>(worker.scratch));
            for (const Preparation& p : spec_->preparations)
                p.act_prepare(values, spec_->k, spec_->panel->memory.data() + p.panel_offset + row * p.row_bytes);
        }
    }

    int64_t scratch_bytes() const override { return spec_->normalized_bytes(); }

  private:
    std::shared_ptr<const LinearSpec> spec_;
};

class Product final : public Stage {
  public:
    explicit Product(std::shared_ptr<const LinearSpec> spec) : spec_(std::move(spec)) {
        int64_t row_bytes = 64;
        tail_offset_ = spec_->normalized_bytes();
        for (const Preparation& p : spec_->preparations) {
            direct_offset_.push_back(tail_offset_);
            tail_offset_ += direct_rows * p.row_bytes;
            row_bytes = std::max(row_bytes, p.row_bytes);
        }
        gate_offset_ = tail_offset_ + block_rows * tile_channels * 4;
        cache_rows_ = std::clamp<int64_t>(block_bytes / row_bytes / 16 * 16, 16, block_rows);
        int64_t least_bytes = INT64_MAX;
        for (const Part& part : spec_->parts)
            least_bytes = std::min(least_bytes, tile_bytes(part.weight->format, spec_->k) * (spec_->gate ? 2 : 1));
        tiles_a_unit_ = std::clamp<int64_t>(ceil_div(unit_weight_bytes, least_bytes), 1, 4);
        units_a_block_ = ceil_div(spec_->tiles, tiles_a_unit_);
    }

    Extent begin(const Step& step) noexcept override {
        rows_ = spec_->chosen() ? 0 : step.count(spec_->x.rows);
        direct_ = rows_ <= direct_rows;
        // Blocks of about equal size, in whole groups of rows that kernels take together.
        const int64_t blocks = ceil_div(rows_, cache_rows_);
        rows_a_block_ = blocks <= 1 ? rows_ : round_up(ceil_div(rows_, blocks), 16);
        return {rows_ == 0 ? 0 : ceil_div(rows_, rows_a_block_) * units_a_block_, direct_ ? 1 : 2,
                direct_ ? kept_units : 0};
    }

    void work(const Step& step, int64_t begin, int64_t end, Worker& worker) noexcept override {
        if (direct_ && worker.prepared != step.stage) {
            prepare(worker);
            worker.prepared = step.stage;
        }
        while (begin < end) {
            const int64_t block = begin / units_a_block_, unit = begin % units_a_block_;
            const int64_t units = std::min(end - begin, units_a_block_ - unit);
            const int64_t row = block * rows_a_block_;
            const int64_t first = unit * tiles_a_unit_;
            tiles(first, std::min(first + units * tiles_a_unit_, spec_->tiles), row,
                  std::min(row + rows_a_block_, rows_), worker);
            begin += units;
        }
    }

    int64_t scratch_bytes() const override { return gate_offset_ + (spec_->gate ? 2 * gate_bytes : 0); }

  private:
    void prepare(Worker& worker) const {
        for (int64_t row = 0; row < rows_; ++row) {
            const float* values = spec_->normalized(row, reinterpret_cast<float*>(worker.scratch));
            for (size_t i = 0; i < spec_->preparations.size(); ++i) {
                const Preparation& p = spec_->preparations[i];
                p.act_prepare(values, spec_->k, worker.scratch + direct_offset_[i] + row * p.row_bytes);
            }
        }
    }

    const uint8_t* activations(const Part& part, int64_t row, const Worker& worker) const {
        const Preparation& p = spec_->preparations[part.preparation];
        const uint8_t* base =
            direct_ ? worker.scratch + direct_offset_[part.preparation] : spec_->panel->memory.data() + p.panel_offset;
        return base + row * p.row_bytes;
    }

    void tiles(int64_t begin, int64_t end, int64_t row, int64_t row_end, Worker& worker) const {
        if (spec_->gate) {
            gated(begin, end, row, row_end, worker);
            return;
        }
        for (const Part& part : spec_->parts) {
            const int64_t first = std::max(begin, part.first_tile) - part.first_tile;
            const int64_t last = std::min(end, part.first_tile + part.weight->tiles()) - part.first_tile;
            if (first < last) plain(part, first, last, row, row_end, worker);
        }
    }

    void plain(const Part& part, int64_t first, int64_t last, int64_t row, int64_t row_end, Worker& worker) const {
        const bool finishes = part.bias != nullptr || spec_->residual.data != nullptr;
        // Bias and residual are added while the product's result is still in the cache.
        const int64_t most = finishes ? most_tiles(row_end - row) : last - first;
        for (int64_t tile = first; tile < last; tile += most) {
            const int64_t end = std::min(tile + most, last);
            multiply(part, tile, end, row, row_end, worker);
            if (!finishes) continue;
            const int64_t from = tile * tile_channels, count = std::min(end * tile_channels, part.weight->n) - from;
            for (int64_t r = row; r < row_end; ++r) {
                float* y = spec_->out.row(r) + part.column + from;
                if (part.bias != nullptr) spec_->kernels->add(y, part.bias + from, count, y);
                add_residual(r, part.column + from, count);
            }
        }
    }

    void multiply(const Part& part, int64_t first, int64_t last, int64_t row, int64_t row_end, Worker& worker) const {
        const Value& out = spec_->out;
        const uint8_t* act = activations(part, row, worker);
        const int64_t rows = row_end - row, n = part.weight->n;
        // A ragged last tile may be written in place only where nothing but padding lies behind it.
        const bool in_place = last * tile_channels <= n ||
                              (&part == &spec_->parts.back() && part.column + last * tile_channels <= out.stride);
        const int64_t direct_last = in_place ? last : last - 1;
        if (first < direct_last)
            part.kernel->product(part.weight->tile(first), direct_last - first, spec_->k, act, rows,
                                 out.row(row) + part.column + first * tile_channels, out.stride);
        if (in_place) return;
        float* tail = reinterpret_cast<float*>(worker.scratch + tail_offset_);
        const int64_t column = direct_last * tile_channels;
        part.kernel->product(part.weight->tile(direct_last), 1, spec_->k, act, rows, tail, tile_channels);
        for (int64_t r = 0; r < rows; ++r)
            std::memcpy(out.row(row + r) + part.column + column, tail + r * tile_channels,
                        static_cast<size_t>(n - column) * sizeof(float));
    }

    void gated(int64_t begin, int64_t end, int64_t row, int64_t row_end, Worker& worker) const {
        const Part &gate_part = spec_->parts[0], &up_part = spec_->parts[1];
        float* gate = reinterpret_cast<float*>(worker.scratch + gate_offset_);
        float* up = reinterpret_cast<float*>(worker.scratch + gate_offset_ + gate_bytes);
        const int64_t tiles_most = most_tiles(row_end - row);
        for (int64_t tile = begin; tile < end; tile += tiles_most) {
            const int64_t tiles = std::min(tiles_most, end - tile), width = tiles * tile_channels;
            const int64_t from = tile * tile_channels, count = std::min(width, gate_part.weight->n - from);
            const int64_t rows = row_end - row;
            gate_part.kernel->product(gate_part.weight->tile(tile), tiles, spec_->k,
                                      activations(gate_part, row, worker), rows, gate, width);
            up_part.kernel->product(up_part.weight->tile(tile), tiles, spec_->k, activations(up_part, row, worker),
                                    rows, up, width);
            for (int64_t r = 0; r < rows; ++r) {
                float *g = gate + r * width, *u = up + r * width;
                if (gate_part.bias != nullptr) spec_->kernels->add(g, gate_part.bias + from, count, g);
                if (up_part.bias != nullptr) spec_->kernels->add(u, up_part.bias + from, count, u);
                spec_->kernels->gated(spec_->gate_kind, g, u, count, spec_->out.row(row + r) + from);
                add_residual(row + r, from, count);
            }
        }
    }

    // Many tiles for few rows, few tiles for many rows: a result stays in the cache until it is finished.
    static int64_t most_tiles(int64_t rows) {
        return std::clamp<int64_t>(gate_bytes / (4 * tile_channels * std::max<int64_t>(rows, 1)), 1, gate_tiles);
    }

    void add_residual(int64_t row, int64_t column, int64_t count) const {
        if (spec_->residual.data == nullptr) return;
        float* y = spec_->out.row(row) + column;
        spec_->kernels->add(y, spec_->residual.row(row) + column, count, y);
    }

    std::shared_ptr<const LinearSpec> spec_;
    std::vector<int64_t> direct_offset_;  // of each preparation in a worker's scratch
    int64_t tail_offset_ = 0, gate_offset_ = 0;
    int64_t cache_rows_ = 0, tiles_a_unit_ = 1, units_a_block_ = 1;
    // Of the current step.
    int64_t rows_ = 0, rows_a_block_ = 1;
    bool direct_ = false;
};

void add_preparation(LinearSpec& spec, Part& part, int64_t capacity) {
    for (size_t i = 0; i < spec.preparations.size(); ++i)
        if (spec.preparations[i].act_prepare == part.kernel->act_prepare) {
            part.preparation = i;
            return;
        }
    int64_t offset = 0;
    for (const Preparation& p : spec.preparations) offset += p.row_bytes * capacity;
    part.preparation = spec.preparations.size();
    spec.preparations.push_back({part.kernel->act_prepare, round_up(part.kernel->act_bytes(spec.k), 64), offset});
}

void add_parts(Compiler& compiler, const OpCall& op, LinearSpec& spec, size_t count) {
    int64_t column = 0;
    for (size_t i = 0; i < count; ++i) {
        const Tensor& weight = compiler.matrix(op, i);
        op.need(weight.k == spec.k, "tensor '" + op.weights[i] + "' takes " + std::to_string(weight.k) +
                                        " inputs, the value has " + std::to_string(spec.k));
        Part part{&weight,
                  compiler.optional_vector(op, count + i, weight.n),
                  &compiler.kernels.linear[static_cast<int>(weight.format)],
                  0,
                  spec.tiles,
                  column};
        add_preparation(spec, part, compiler.capacity(spec.x.rows));
        spec.parts.push_back(part);
        spec.tiles += weight.tiles();
        column += weight.n;
    }
}

}  // namespace

void compile_linear(Compiler& compiler, const OpCall& op) {
    op.need(op.weights.size() >= 4 && op.weights.size() % 2 == 0, "needs 2n + 2 weight places");
    op.need(op.inputs.size() == (op.flag("residual") ? 2u : 1u), "the residual input and its attribute disagree");
    const size_t count = (op.weights.size() - 2) / 2;
    auto spec = std::make_shared<LinearSpec>();
    spec->kernels = &compiler.kernels;
    spec->x = compiler.input(op, 0);
    spec->k = spec->x.width;
    spec->norm = static_cast<Norm>(op.word("norm", {"none", "rms", "layer"}));
    spec->eps = op.number("eps");
    spec->norm_weight = compiler.optional_vector(op, 2 * count, spec->k);
    spec->norm_bias = compiler.optional_vector(op, 2 * count + 1, spec->k);
    op.need(spec->norm != Norm::none || spec->norm_weight == nullptr, "norm_weight needs a norm");
    op.need(spec->norm == Norm::layer || spec->norm_bias == nullptr, "norm_bias needs norm layer");
    add_parts(compiler, op, *spec, count);
    spec->gate = std::get_if<std::string>(&op.attributes.at("gate")) == nullptr ||
                 std::get<std::string>(op.attributes.at("gate")) != "none";
    int64_t width = spec->parts.back().column + spec->parts.back().weight->n;
    if (spec->gate) {
        spec->gate_kind = op.activation("gate");
        op.need(count == 2 && spec->parts[0].weight->n == spec->parts[1].weight->n,
                "a gate needs two matrices of equal size");
        width = spec->parts[0].weight->n;
        spec->tiles = spec->parts[0].weight->tiles();
    }
    spec->out = compiler.output(op, width, spec->x.rows);
    if (op.inputs.size() == 2) {
        spec->residual = compiler.input(op, 1);
        op.need(spec->residual.width == width && spec->residual.rows == spec->x.rows,
                "the residual has another shape than the result");
    }
    int64_t panel_bytes = 0;
    for (const Preparation& p : spec->preparations) panel_bytes += p.row_bytes * compiler.capacity(spec->x.rows);
    compiler.panel.want(panel_bytes);
    spec->panel = &compiler.panel;
    if (op.output == compiler.output_value && can_screen(*spec)) {
        spec->screening = &compiler.screening;
        add_screening(compiler, spec);
        compiler.screening.first_stage = compiler.stages.size();
    }
    compiler.add(std::make_unique<Prepare>(spec));
    compiler.add(std::make_unique<Product>(spec));
}

}  // namespace subsecond
