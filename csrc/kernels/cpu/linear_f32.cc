// Products with f32 weights: FMA in K order, one accumulator an output.
//
// Owns: the f32 prepared row, a copy padded with zeros.
#include "linear_float.h"

namespace subsecond::SUBSECOND_ISA {
namespace {

struct F32 {
    using Block = block_f32;
    using Weights = f32x16;
    using Act = float;
    static constexpr int64_t group = 1;
#if defined(__AVX512F__)
    static constexpr int max_rows = 6, max_tiles = 4;
#elif defined(__aarch64__)
    static constexpr int max_rows = 6, max_tiles = 1;  // 24 sums, 4 weights, 1 activation of 32 registers
#else
    static constexpr int max_rows = 3, max_tiles = 2;
#endif

    static int64_t act_bytes(int64_t k) { return ceil_div(k, lanes) * lanes * static_cast<int64_t>(sizeof(float)); }
    SUBSECOND_INLINE Weights load(const Block& b) { return SUBSECOND_ISA::load(b.value); }
    SUBSECOND_INLINE f32x16 fold(Weights w, Act a, f32x16 sum) { return fma(w, set1(a), sum); }
};

void act_prepare(const float* x, int64_t k, void* row) {
    float* out = static_cast<float*>(row);
    int64_t i = 0;
    for (; i + lanes <= k; i += lanes) store(out + i, load(x + i));
    if (i < k) store(out + i, load_first(x + i, k - i));
}

void lookup(Tiles weight, int64_t index, int64_t k, float* out) {
    const block_f32* tile = static_cast<const block_f32*>(weight.first) + index / tile_channels * k;
    for (int64_t i = 0; i < k; ++i) out[i] = tile[i].value[index % tile_channels];
}

}  // namespace

const LinearKernel linear_f32 = {F32::act_bytes, act_prepare, product<F32>, lookup};

}  // namespace subsecond::SUBSECOND_ISA
