// What the stages of one linear op share: stages_linear.cc computes it, stages_screen.cc may choose tokens without it.
//
// Owns: the description of the op after its checks, and what both agree on about few rows.
#pragma once
#include <memory>
#include <vector>

#include "compile.h"

namespace subsecond {

constexpr int64_t direct_rows = 2;  // up to here preparing twice is cheaper than one more hand-over
constexpr int64_t unit_weight_bytes = 8 << 10;
constexpr int64_t kept_units = 3;  // with few rows: a thread streams these in the time another takes to start

enum class Norm : uint8_t { none, rms, layer };

// One way of preparing activations; several formats may share it.
struct Preparation {
    void (*act_prepare)(const float* x, int64_t k, void* row);
    int64_t row_bytes;
    int64_t panel_offset;
};

struct Part {
    const Tensor* weight;
    const float* bias;
    const LinearKernel* kernel;
    size_t preparation;
    int64_t first_tile;  // in the sequence of all parts' tiles
    int64_t column;      // of the output
};

struct LinearSpec {
    const KernelTable* kernels;
    Value x, out, residual;  // residual.data == nullptr: none
    int64_t k = 0, tiles = 0;
    Norm norm = Norm::none;
    float eps = 0;
    const float* norm_weight = nullptr;
    const float* norm_bias = nullptr;
    bool gate = false;
    Activation gate_kind = Activation::silu;
    std::vector<Part> parts;
    std::vector<Preparation> preparations;
    const Shared* panel = nullptr;
    const Screening* screening = nullptr;  // of the output matrix in two parts

    const float* normalized(int64_t row, float* scratch) const {
        const float* values = x.row(row);
        if (norm == Norm::none) return values;
        if (norm == Norm::rms)
            kernels->rms_norm(values, norm_weight, k, eps, scratch);
        else
            kernels->layer_norm(values, norm_weight, norm_bias, k, eps, scratch);
        return scratch;
    }
    // This step's tokens are chosen already, from a few tiles of the result.
    bool chosen() const { return screening != nullptr && screening->done; }
    int64_t normalized_bytes() const { return norm == Norm::none ? 0 : round_up(k * 4, 64); }
};

// Whether a greedy choice from this op's result can be made from a part of the weights.
bool can_screen(const LinearSpec& spec);
void add_screening(Compiler& compiler, std::shared_ptr<const LinearSpec> spec);

}  // namespace subsecond
