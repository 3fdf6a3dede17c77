// Products with int8 weights.
//
// Owns: the lookup. The dots are in linear_int8.h.
#include "linear_int8.h"

namespace subsecond::SUBSECOND_ISA {
namespace {

void lookup(Tiles weight, int64_t index, int64_t k, float* out) {
    const block_int8* tile = Int8::start(weight) + index / tile_channels * ceil_div(k, group_int);
    const int64_t c = index % tile_channels;
    for (int64_t i = 0; i < k; ++i) {
        const block_int8& b = tile[i / group_int];
        const int q = b.quant[64 * (i % group_int / 4) + 4 * c + i % 4];
        out[i] = half_to_float(b.scale[c]) * static_cast<float>(q - 128);
    }
}

}  // namespace

const LinearKernel linear_int8 = {act_bytes_int, act_prepare_int, product<Int8>, lookup};

}  // namespace subsecond::SUBSECOND_ISA
