// What the two float formats share: register blocking and the order in which weights are read.
//
// Owns: the walk over tiles, rows and K. A format gives (struct Kernel):
//   Block; Weights and load(block): a block in registers; Act: what one block is multiplied with;
//   group: K positions a block; max_rows, max_tiles (outputs held in registers: rows x tiles x 16);
//   fold(weights, act, sum): the one order of float operations of an output and a block; act_bytes(k).
#pragma once
#include "isa.h"

namespace subsecond::SUBSECOND_ISA {
namespace {

// (Loops over the sums are unrolled by pragma: left to itself GCC keeps the array in memory at both ends of the loop.)
// Rows x tiles outputs over all of K. Asks for `tiles` cache lines a block from `ahead` on, if `fetch`.
template <typename Kernel, int rows, int tiles>
void block(const typename Kernel::Block* weight, int64_t groups, const typename Kernel::Act* act, int64_t act_stride,
           float* out, int64_t out_stride, const char* ahead, bool fetch) {
    f32x16 sum[rows][tiles];
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 8
        for (int t = 0; t < tiles; ++t) sum[r][t] = zero();
    for (int64_t g = 0; g < groups; ++g) {
        if (fetch)
            for (int t = 0; t < tiles; ++t, ahead += 64) fetch_to_l2(ahead);
        typename Kernel::Weights w[tiles];
#pragma GCC unroll 8
        for (int t = 0; t < tiles; ++t) w[t] = Kernel::load(weight[t * groups + g]);
#pragma GCC unroll 8
        for (int r = 0; r < rows; ++r)
#pragma GCC unroll 8
            for (int t = 0; t < tiles; ++t) sum[r][t] = Kernel::fold(w[t], act[r * act_stride + g], sum[r][t]);
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 8
        for (int t = 0; t < tiles; ++t) store(out + r * out_stride + t * lanes, sum[r][t]);
}

template <typename Kernel>
using BlockFunction = void (*)(const typename Kernel::Block*, int64_t, const typename Kernel::Act*, int64_t, float*,
                               int64_t, const char*, bool);

template <typename Kernel, int tiles>
BlockFunction<Kernel> block_of(int64_t rows) {
    constexpr int most = Kernel::max_rows;
    static_assert(most <= 6);
    switch (rows) {
        case 1:
            return block<Kernel, 1, tiles>;
        case 2:
            return block<Kernel, 2, tiles>;
        case 3:
            return block < Kernel, most < 3 ? most : 3, tiles > ;
        case 4:
            return block < Kernel, most < 4 ? most : 4, tiles > ;
        case 5:
            return block < Kernel, most < 5 ? most : 5, tiles > ;
        default:
            return block<Kernel, most, tiles>;
    }
}

// Few rows: memory sets the pace, and one tile after the other is the one sequential stream that the hardware's
// prefetchers follow best. More rows: tiles go in groups of max_tiles, and the first pass over the rows brings the next
// group into L2.
template <typename Kernel>
void product(Tiles weight, int64_t tiles, int64_t k, const void* act, int64_t m, float* out, int64_t out_stride) {
    constexpr int64_t few_rows = 3;
    const typename Kernel::Block* w = static_cast<const typename Kernel::Block*>(weight.first);
    const typename Kernel::Act* a = static_cast<const typename Kernel::Act*>(act);
    const int64_t groups = ceil_div(k, Kernel::group);
    const int64_t act_stride = Kernel::act_bytes(k) / static_cast<int64_t>(sizeof(typename Kernel::Act));
    for (int64_t t = 0, taken = 0; t < tiles; t += taken) {
        const bool wide = m > few_rows && t + Kernel::max_tiles <= tiles;
        taken = wide ? Kernel::max_tiles : 1;
        const char* ahead = reinterpret_cast<const char*>(w + (t + taken) * groups);
        for (int64_t r = 0, rows = 0; r < m; r += rows) {
            rows = m - r < Kernel::max_rows ? m - r : Kernel::max_rows;
            const BlockFunction<Kernel> run =
                wide ? block_of<Kernel, Kernel::max_tiles>(rows) : block_of<Kernel, 1>(rows);
            run(w + t * groups, groups, a + r * act_stride, act_stride, out + r * out_stride + t * lanes, out_stride,
                ahead, wide && r == 0);
        }
    }
}

}  // namespace
}  // namespace subsecond::SUBSECOND_ISA
