// The ops that treat rows one by one: embed, norm, rope, elementwise ones, slice, concat, gather, pool.
//
// In a fused program few of them remain. Elementwise ops are cut into pieces of 4,096 columns, a multiple of every
// vector's length, so that the cut changes no bits.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "compile.h"

namespace subsecond {
namespace {

constexpr int64_t piece = 4096;         // columns of an elementwise unit
constexpr int64_t least_values = 4096;  // values that make a claim worth its cost

// Rows [0, count) of the output, each made by make(step, row, worker).
template <typename Make>
class RowStage final : public Stage {
  public:
    RowStage(Value out, int64_t scratch_bytes, Make make)
        : out_(out), scratch_bytes_(scratch_bytes), make_(std::move(make)) {}

    Extent begin(const Step& step) noexcept override {
        return {step.count(out_.rows), std::max<int64_t>(1, least_values / out_.width)};
    }
    void work(const Step& step, int64_t begin, int64_t end, Worker& worker) noexcept override {
        for (int64_t row = begin; row < end; ++row) make_(step, row, worker);
    }
    int64_t scratch_bytes() const override { return scratch_bytes_; }

  private:
    Value out_;
    int64_t scratch_bytes_;
    Make make_;
};

// Pieces of rows, each made by make(row, column, count).
template <typename Make>
class PieceStage final : public Stage {
  public:
    PieceStage(Value out, Make make) : out_(out), pieces_(ceil_div(out.width, piece)), make_(std::move(make)) {}

    Extent begin(const Step& step) noexcept override {
        return {step.count(out_.rows) * pieces_, std::max<int64_t>(1, least_values / out_.width)};
    }
    void work(const Step&, int64_t begin, int64_t end, Worker&) noexcept override {
        for (int64_t unit = begin; unit < end; ++unit) {
            const int64_t column = unit % pieces_ * piece;
            make_(unit / pieces_, column, std::min(piece, out_.width - column));
        }
    }

  private:
    Value out_;
    int64_t pieces_;
    Make make_;
};

template <typename Make>
void add_rows(Compiler& compiler, const Value& out, Make make, int64_t scratch_bytes = 0) {
    compiler.add(std::make_unique<RowStage<Make>>(out, scratch_bytes, std::move(make)));
}

template <typename Make>
void add_pieces(Compiler& compiler, const Value& out, Make make) {
    compiler.add(std::make_unique<PieceStage<Make>>(out, std::move(make)));
}

// The cosines and sines of every rope for the step's positions. The angle is an f32 product, as in every framework.
class RopeStage final : public Stage {
  public:
    explicit RopeStage(const std::vector<std::unique_ptr<RopeTable>>& ropes) : ropes_(ropes) {}

    Extent begin(const Step& step) noexcept override { return {ropes_.empty() ? 0 : step.tokens, 8}; }

    void work(const Step& step, int64_t begin, int64_t end, Worker&) noexcept override {
        for (const auto& table : ropes_)
            for (int64_t token = begin; token < end; ++token) {
                float* cosine = const_cast<float*>(table->cosine(token));
                for (int64_t i = 0; i < table->half; ++i) {
                    const double angle = static_cast<float>(step.token_position[token]) * table->inv_freq[i];
                    cosine[i] = static_cast<float>(std::cos(angle)) * table->factor;
                    cosine[table->half + i] = static_cast<float>(std::sin(angle)) * table->factor;
                }
            }
    }

  private:
    const std::vector<std::unique_ptr<RopeTable>>& ropes_;
};

void compile_embed(Compiler& compiler, const OpCall& op) {
    const Tensor& table = compiler.matrix(op, 0);
    const bool tokens = op.word("ids", {"tokens", "positions"}) == 0;
    const float scale = op.number("scale");
    int64_t& limit = tokens ? compiler.token_limit : compiler.position_limit;
    limit = std::min(limit, table.n);
    const Value out = compiler.output(op, table.k, 'T');
    const KernelTable& kernels = compiler.kernels;
    add_rows(compiler, out, [=, &table, &kernels](const Step& step, int64_t row, Worker&) {
        const int32_t id = tokens ? step.token[row] : step.token_position[row];
        kernels.linear[static_cast<int>(table.format)].lookup(table.tile(0), id, table.k, out.row(row));
        if (scale != 1.0f) kernels.scale(out.row(row), scale, table.k, out.row(row));
    });
}

void compile_norm(Compiler& compiler, const OpCall& op) {
    const Value x = compiler.input(op, 0);
    const bool layer = op.word("kind", {"rms", "layer"}) == 1;
    const float eps = op.number("eps");
    const int64_t groups = op.integer("groups", 1, x.width), n = x.width / groups;
    op.need(x.width % groups == 0, "the width is not a multiple of groups");
    const float* weight = compiler.optional_vector(op, 0, n);
    const float* bias = compiler.optional_vector(op, 1, n);
    op.need(layer || bias == nullptr, "kind rms takes no bias");
    const Value out = compiler.output(op, x.width, x.rows);
    const KernelTable& kernels = compiler.kernels;
    add_rows(compiler, out, [=, &kernels](const Step&, int64_t row, Worker&) {
        for (int64_t g = 0; g < groups; ++g) {
            if (layer)
                kernels.layer_norm(x.row(row) + g * n, weight, bias, n, eps, out.row(row) + g * n);
            else
                kernels.rms_norm(x.row(row) + g * n, weight, n, eps, out.row(row) + g * n);
        }
    });
}

void compile_rope(Compiler& compiler, const OpCall& op) {
    const Value x = compiler.input(op, 0);
    const int64_t heads = op.integer("heads", 1, 1 << 12), head_dim = op.integer("head_dim", 1, 1 << 16);
    const int64_t rotary = op.integer("rotary", 2, head_dim);
    const bool interleaved = op.flag("interleaved");
    op.need(rotary % 2 == 0, "rotary must be even");
    op.need(x.rows == 'T' && x.width == heads * head_dim, "the input must be [T, heads * head_dim]");
    const RopeTable* table = compiler.rope(compiler.vector(op, 0, rotary / 2), rotary / 2, op.number("factor"));
    const Value out = compiler.output(op, x.width, x.rows);
    const KernelTable& kernels = compiler.kernels;
    add_rows(compiler, out, [=, &kernels](const Step&, int64_t row, Worker&) {
        std::memcpy(out.row(row), x.row(row), static_cast<size_t>(x.width) * sizeof(float));
        for (int64_t h = 0; h < heads; ++h)
            kernels.rope(out.row(row) + h * head_dim, table->cosine(row), table->sine(row), rotary, interleaved);
    });
}

void compile_elementwise(Compiler& compiler, const OpCall& op) {
    const Value a = compiler.input(op, 0);
    const Value b = op.inputs.size() == 2 ? compiler.input(op, 1) : a;
    op.need(b.width == a.width && b.rows == a.rows, "the inputs differ in shape");
    const KernelTable& k = compiler.kernels;
    const bool has_kind = op.kind == "activation" || op.kind == "gated";
    const Activation kind = has_kind ? op.activation("kind") : Activation::relu;
    const float number = op.kind == "scale" ? op.number("factor") : op.kind == "softcap" ? op.number("cap") : 1.0f;
    op.need(op.kind != "softcap" || number > 0, "cap must be positive");
    const Value out = compiler.output(op, a.width, a.rows, true);
    const auto add = [&](auto kernel) {
        add_pieces(compiler, out, [=](int64_t row, int64_t at, int64_t n) {
            kernel(a.row(row) + at, b.row(row) + at, n, out.row(row) + at);
        });
    };
    if (op.kind == "activation")
        add([&k, kind](const float* x, const float*, int64_t n, float* y) { k.activation(kind, x, n, y); });
    else if (op.kind == "gated")
        add([&k, kind](const float* x, const float* up, int64_t n, float* y) { k.gated(kind, x, up, n, y); });
    else if (op.kind == "add")
        add([&k](const float* x, const float* z, int64_t n, float* y) { k.add(x, z, n, y); });
    else if (op.kind == "scale")
        add([&k, number](const float* x, const float*, int64_t n, float* y) { k.scale(x, number, n, y); });
    else
        add([&k, number](const float* x, const float*, int64_t n, float* y) { k.softcap(x, number, n, y); });
}

void compile_slice(Compiler& compiler, const OpCall& op) {
    const Value x = compiler.input(op, 0);
    const int64_t size = op.integer("size", 1, x.width), start = op.integer("start", 0, x.width - size);
    const Value out = compiler.output(op, size, x.rows);
    add_rows(compiler, out, [=](const Step&, int64_t row, Worker&) {
        std::memcpy(out.row(row), x.row(row) + start, static_cast<size_t>(size) * sizeof(float));
    });
}

void compile_concat(Compiler& compiler, const OpCall& op) {
    std::vector<Value> inputs;
    int64_t width = 0;
    for (size_t i = 0; i < op.inputs.size(); ++i) {
        inputs.push_back(compiler.input(op, i));
        width += inputs.back().width;
        op.need(inputs.back().rows == inputs.front().rows, "the inputs have different kinds of rows");
    }
    const Value out = compiler.output(op, width, inputs.front().rows);
    add_rows(compiler, out, [=](const Step&, int64_t row, Worker&) {
        float* y = out.row(row);
        for (const Value& x : inputs) {
            std::memcpy(y, x.row(row), static_cast<size_t>(x.width) * sizeof(float));
            y += x.width;
        }
    });
}

void compile_gather(Compiler& compiler, const OpCall& op) {
    const Value x = compiler.input(op, 0);
    op.need(x.rows == 'T', "needs rows of tokens");
    const Value out = compiler.output(op, x.width, 'R');
    add_rows(compiler, out, [=](const Step& step, int64_t row, Worker&) {
        std::memcpy(out.row(row), x.row(step.row[row]), static_cast<size_t>(x.width) * sizeof(float));
    });
}

void compile_pool(Compiler& compiler, const OpCall& op) {
    const Value x = compiler.input(op, 0);
    const int64_t kind = op.word("kind", {"cls", "mean", "last"});
    op.need(x.rows == 'T', "needs rows of tokens");
    const Value out = compiler.output(op, x.width, 'S');
    const KernelTable& kernels = compiler.kernels;
    add_rows(compiler, out, [=, &kernels](const Step& step, int64_t row, Worker&) {
        const int64_t begin = step.sequence_start[row], end = step.sequence_start[row + 1];
        float* y = out.row(row);
        std::memcpy(y, x.row(kind == 2 ? end - 1 : begin), static_cast<size_t>(x.width) * sizeof(float));
        if (kind != 1) return;
        for (int64_t token = begin + 1; token < end; ++token) kernels.add(y, x.row(token), x.width, y);
        kernels.scale(y, 1.0f / static_cast<float>(end - begin), x.width, y);
    });
}

struct Entry {
    const char* kind;
    size_t least_inputs, most_inputs, weights;
    void (*compile)(Compiler&, const OpCall&);
};

constexpr Entry entries[] = {
    {"embed", 0, 0, 1, compile_embed},       {"norm", 1, 1, 2, compile_norm},
    {"rope", 1, 1, 1, compile_rope},         {"activation", 1, 1, 0, compile_elementwise},
    {"gated", 2, 2, 0, compile_elementwise}, {"add", 2, 2, 0, compile_elementwise},
    {"scale", 1, 1, 0, compile_elementwise}, {"softcap", 1, 1, 0, compile_elementwise},
    {"slice", 1, 1, 0, compile_slice},       {"concat", 2, 64, 0, compile_concat},
    {"gather", 1, 1, 0, compile_gather},     {"pool", 1, 1, 0, compile_pool},
};

}  // namespace

void compile_rows(Compiler& compiler, const OpCall& op) {
    for (const Entry& entry : entries)
        if (op.kind == entry.kind) {
            op.need(op.inputs.size() >= entry.least_inputs && op.inputs.size() <= entry.most_inputs,
                    "it has " + std::to_string(op.inputs.size()) + " inputs");
            op.need(op.weights.size() == entry.weights,
                    "it has " + std::to_string(op.weights.size()) + " weight places");
            entry.compile(compiler, op);
            return;
        }
    op.refuse("is not implemented");
}

std::unique_ptr<Stage> rope_stage(const std::vector<std::unique_ptr<RopeTable>>& ropes) {
    return std::make_unique<RopeStage>(ropes);
}

}  // namespace subsecond
