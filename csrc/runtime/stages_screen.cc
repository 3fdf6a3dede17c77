// The greedy choice from a part of the output matrix.
//
// A step that wants nothing of its logits but the index of the largest does not need all of them. The upper six bits of
// an int8_split matrix bound every logit from above and below; only tiles whose upper bound reaches the best lower
// bound can hold the largest, and these are computed as always. So the choice is the one that all logits would give,
// ties included, for three quarters of the bytes. Where a model's logits lie too close together, too many tiles are
// left: the step computes everything, and later ones don't try for a while.
#include <algorithm>
#include <cmath>

#include "linear.h"

namespace subsecond {
namespace {

// With the upper part read already, this share of the tiles still costs less than all of them. (%)
constexpr int64_t most_candidates = 60;
// Beyond this share the step would have been faster without the attempt: later ones rest, longer each time. (%)
constexpr int64_t worth_candidates = 20;
constexpr int64_t most_rest = 1024;  // steps

// Both stages' memory, and the candidates' choice between them.
struct ScreenState {
    ScreenState(const Compiler& compiler, std::shared_ptr<const LinearSpec> linear)
        : spec(std::move(linear)), screening(compiler.screening) {
        const Part& part = spec->parts.front();
        whole_tiles = part.weight->n / tile_channels;
        tiles = part.weight->tiles();
        bounds.resize(static_cast<size_t>(2 * direct_rows * whole_tiles));
        screening.tiles.resize(static_cast<size_t>(tiles));
        row_bytes = spec->preparations.front().row_bytes;
    }

    float* high(int64_t row) { return bounds.data() + row * whole_tiles; }
    float* low(int64_t row) { return high(direct_rows + row); }

    // Prepared rows lie behind the normalized values in each worker's scratch.
    uint8_t* activations(const Worker& worker) const { return worker.scratch + spec->normalized_bytes(); }
    int64_t scratch_bytes() const { return spec->normalized_bytes() + direct_rows * row_bytes; }
    void prepare(Worker& worker) const {
        if (worker.prepared == stage) return;
        for (int64_t row = 0; row < rows; ++row) {
            const float* values = spec->normalized(row, reinterpret_cast<float*>(worker.scratch));
            spec->preparations.front().act_prepare(values, spec->k, activations(worker) + row * row_bytes);
        }
        worker.prepared = stage;
    }

    // Collects the tiles that may hold the largest logit of a row. False: too many, or what can't be bounded.
    bool choose() {
        float least[direct_rows];
        for (int64_t row = 0; row < rows; ++row) {
            int64_t index = -1;
            spec->kernels->argmax(low(row), whole_tiles, &least[row], &index);
            if (index < 0 || !std::isfinite(least[row])) return false;
        }
        const size_t most = static_cast<size_t>(tiles * most_candidates / 100 + 1);
        size_t count = 0;
        for (int64_t t = 0; t < whole_tiles; ++t) {
            bool wanted = high(0)[t] >= least[0];
            for (int64_t row = 1; row < rows; ++row) wanted = wanted || high(row)[t] >= least[row];
            if (!wanted) continue;
            if (count == most) return false;
            screening.tiles[count++] = static_cast<int32_t>(t);
        }
        // Padding would take part in the bounds of a ragged tile, so it has none and is always computed.
        if (whole_tiles < tiles) screening.tiles[count++] = static_cast<int32_t>(whole_tiles);
        screening.count = count;
        return true;
    }

    const std::shared_ptr<const LinearSpec> spec;
    Screening& screening;
    std::vector<float> bounds;  // [high, low][row][tile]
    int64_t whole_tiles = 0, tiles = 0, row_bytes = 0;
    // Of the current step.
    int64_t rows = 0;    // 0: no attempt
    int64_t stage = -1;  // under which workers prepare the rows
    int64_t resting = 0, rest = 0;
};

class Screen final : public Stage {
  public:
    explicit Screen(std::shared_ptr<ScreenState> state) : state_(std::move(state)) {
        const Part& part = state_->spec->parts.front();
        const int64_t upper_bytes =
            ceil_div(part.weight->k, group_int) * static_cast<int64_t>(sizeof(block_split_upper));
        tiles_a_unit_ = std::clamp<int64_t>(ceil_div(unit_weight_bytes, upper_bytes), 1, 4);
    }

    Extent begin(const Step& step) noexcept override {
        state_->screening.done = false;
        state_->rows = 0;
        if (!step.greedy || step.rows == 0 || step.rows > direct_rows) return {};
        if (state_->resting > 0) {
            --state_->resting;
            return {};
        }
        state_->rows = step.rows;
        state_->stage = step.stage;
        return {ceil_div(state_->whole_tiles, tiles_a_unit_), 1, kept_units};
    }

    void work(const Step&, int64_t begin, int64_t end, Worker& worker) noexcept override {
        state_->prepare(worker);
        const Part& part = state_->spec->parts.front();
        const int64_t first = begin * tiles_a_unit_, last = std::min(end * tiles_a_unit_, state_->whole_tiles);
        part.kernel->screen(part.weight->tile(first), part.weight->radius() + first * tile_channels, last - first,
                            state_->spec->k, state_->activations(worker), state_->rows, state_->high(0) + first,
                            state_->low(0) + first, state_->whole_tiles);
    }

    int64_t scratch_bytes() const override { return state_->scratch_bytes(); }

  private:
    std::shared_ptr<ScreenState> state_;
    int64_t tiles_a_unit_ = 1;
};

class Candidates final : public Stage {
  public:
    explicit Candidates(std::shared_ptr<ScreenState> state) : state_(std::move(state)) {}

    Extent begin(const Step&) noexcept override {
        ScreenState& s = *state_;
        if (s.rows == 0) return {};
        s.screening.done = s.choose();
        const bool worth =
            s.screening.done && static_cast<int64_t>(s.screening.count) * 100 <= s.tiles * worth_candidates;
        s.rest = worth ? s.rest / 2 : std::min(2 * s.rest + 2, most_rest);
        if (!worth) s.resting = s.rest;
        if (!s.screening.done) return {};
        return {static_cast<int64_t>(s.screening.count), 1};
    }

    void work(const Step&, int64_t begin, int64_t end, Worker& worker) noexcept override {
        const ScreenState& s = *state_;
        s.prepare(worker);
        const Part& part = s.spec->parts.front();
        const Value& out = s.spec->out;
        for (int64_t i = begin; i < end; ++i) {
            const int64_t tile = s.screening.tiles[static_cast<size_t>(i)];
            part.kernel->product(part.weight->tile(tile), 1, s.spec->k, s.activations(worker), s.rows,
                                 out.row(0) + tile * tile_channels, out.stride);
        }
    }

    int64_t scratch_bytes() const override { return state_->scratch_bytes(); }

  private:
    std::shared_ptr<ScreenState> state_;
};

}  // namespace

bool can_screen(const LinearSpec& spec) {
    if (spec.parts.size() != 1 || spec.gate || spec.residual.data != nullptr || spec.x.rows != 'R') return false;
    const Part& part = spec.parts.front();
    return part.kernel->screen != nullptr && part.bias == nullptr && part.weight->n >= tile_channels;
}

void add_screening(Compiler& compiler, std::shared_ptr<const LinearSpec> spec) {
    auto state = std::make_shared<ScreenState>(compiler, std::move(spec));
    compiler.add(std::make_unique<Screen>(state));
    compiler.add(std::make_unique<Candidates>(state));
}

}  // namespace subsecond
