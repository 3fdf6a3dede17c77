// What the two integer formats share: register blocking and the order in which weights are read.
//
// Owns: the walk over tiles, rows and groups. A format gives (struct Kernel):
//   Cursor, what points at a block (a pointer, or what acts like one), start(tiles), address(cursor), block_bytes (that
//   are fetched ahead of from there), near_bytes (so many at most are fetched into L1, more into L2); max_tiles,
//   max_rows (outputs held in registers: rows x tiles x 16), most_rows (of a last block); dots<rows, tiles>(weight,
//   groups, act, act_stride, dot): exact s32 dots of one group, tile t at weight[t * groups]; fold(weight, act, dot,
//   sum): the one order of float operations of an output and a group.
#pragma once
#include "isa.h"

namespace subsecond::SUBSECOND_ISA {
namespace {

SUBSECOND_INLINE const act_group* act_at(const act_group* act, int64_t bytes) {
    return reinterpret_cast<const act_group*>(reinterpret_cast<const char*>(act) + bytes);
}

SUBSECOND_INLINE int32_t quad_of(const act_group* act, int j) {
    int32_t quad;
    __builtin_memcpy(&quad, act->value + 4 * j, sizeof quad);
    return quad;
}

// x * power, for a power of two (or 0, or a NaN).
SUBSECOND_INLINE f32x16 times_power(f32x16 x, float power) {
#if defined(__AVX512F__)
    // On other units than multiplications, of which the dots leave nothing free.
    return _mm512_scalef_ps(x, _mm512_getexp_ps(_mm512_set1_ps(power)));
#else
    return mul(x, set1(power));
#endif
}

#if defined(__aarch64__)
// Quad j of the activations, four times.
SUBSECOND_INLINE int8x16_t broadcast_quad(const act_group* act, int j) {
    return vreinterpretq_s8_s32(vdupq_n_s32(quad_of(act, j)));
}
#elif !defined(__AVX512VNNI__)
// Adds where the source says so: GCC would turn the integer sums of a group into a tree, and run out of registers.
SUBSECOND_INLINE void add_in_place(__m256i& sum, __m256i x) {
    sum = _mm256_add_epi16(sum, x);
    __asm__("" : "+x"(sum));
}
#endif

// What a block asks memory for while it works: so many cache lines a group. (Handed over field by field: as a struct it
// would go through the stack in a wider piece than it was written in, and each block would wait for that.)
struct Ahead {
    const char* from;
    int64_t lines;
    bool near;  // into L1, else into L2

    void fetch() {
        for (int64_t i = 0; i < lines; ++i, from += 64) near ? fetch_to_l1(from) : fetch_to_l2(from);
    }
    // Where the next block goes on.
    void pass(int64_t groups) { from += lines * groups * 64; }
};

// Rows x tiles outputs over all of K.
// (Loops over the sums are unrolled by pragma: left to itself GCC keeps the array in memory at both ends of the loop.)
template <typename Kernel, int rows, int tiles>
void block(typename Kernel::Cursor weight, int64_t groups, const act_group* act, int64_t act_stride, float* out,
           int64_t out_stride, const char* ahead_from, int64_t ahead_lines, bool ahead_near) {
    Ahead ahead = {ahead_from, ahead_lines, ahead_near};
    f32x16 sum[rows][tiles];
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 8
        for (int t = 0; t < tiles; ++t) sum[r][t] = zero();
    for (int64_t g = 0; g < groups; ++g, ++weight, ++act) {
        ahead.fetch();
        i32x16 dot[rows][tiles];
        Kernel::template dots<rows, tiles>(weight, groups, act, act_stride, dot);
        Kernel::template fold<rows, tiles>(weight, groups, act, act_stride, dot, sum);
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 8
        for (int t = 0; t < tiles; ++t) store(out + r * out_stride + t * lanes, sum[r][t]);
}

template <typename Kernel>
using BlockFunction = void (*)(typename Kernel::Cursor, int64_t, const act_group*, int64_t, float*, int64_t,
                               const char*, int64_t, bool);

// A last block may have up to most_rows, so that no lone row or two follow.
template <typename Kernel, int tiles>
BlockFunction<Kernel> block_of(int64_t rows) {
    constexpr int most = Kernel::most_rows;
    static_assert(most <= 6);
    switch (rows) {
        case 1:
            return block<Kernel, 1, tiles>;
        case 2:
            return block < Kernel, most < 2 ? most : 2, tiles > ;
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

// Blocks of rows that `rows` rows are taken in.
template <typename Kernel>
int64_t passes_of(int64_t rows) {
    return rows <= Kernel::most_rows ? 1 : 1 + ceil_div(rows - Kernel::most_rows, Kernel::max_rows);
}

// While tiles are worked on, the next ones are brought into L2 (or, if they leave room there, into L1), a share of them
// in each pass over the rows.
template <typename Kernel>
Ahead ahead_of(typename Kernel::Cursor next, int64_t blocks, int64_t groups, int64_t passes) {
    constexpr int64_t many_passes = 32;  // enough for the hardware's own prefetchers
    const int64_t lines = passes <= many_passes ? ceil_div(ceil_div(blocks * Kernel::block_bytes, 64), passes) : 0;
    return {Kernel::address(next), lines, blocks * groups * Kernel::block_bytes <= Kernel::near_bytes};
}

// Few rows: memory sets the pace, and one tile after the other is the one sequential stream that the hardware's
// prefetchers follow best (measured: faster than a bare read loop). More rows: arithmetic sets the pace; tiles go in
// groups of max_tiles that share each broadcast.
template <typename Kernel>
void product(Tiles weight, int64_t tiles, int64_t k, const void* act, int64_t m, float* out, int64_t out_stride) {
    constexpr int64_t few_rows = 3;
    const typename Kernel::Cursor w = Kernel::start(weight);
    const act_group* a = static_cast<const act_group*>(act);
    const int64_t groups = ceil_div(k, group_int), act_stride = act_bytes_int(k);
    const int64_t passes = passes_of<Kernel>(m);
    for (int64_t t = 0, taken = 0; t < tiles; t += taken) {
        const bool wide = m > few_rows && t + Kernel::max_tiles <= tiles;
        taken = wide ? Kernel::max_tiles : 1;
        Ahead ahead = ahead_of<Kernel>(w + (t + taken) * groups, taken, groups, passes);
        if (m <= few_rows) ahead.lines = 0;
        for (int64_t r = 0, rows = 0; r < m; r += rows) {
            rows = m - r <= Kernel::most_rows ? m - r : Kernel::max_rows;
            const BlockFunction<Kernel> run =
                wide ? block_of<Kernel, Kernel::max_tiles>(rows) : block_of<Kernel, 1>(rows);
            run(w + t * groups, groups, act_at(a, r * act_stride), act_stride, out + r * out_stride + t * lanes,
                out_stride, ahead.from, ahead.lines, ahead.near);
            ahead.pass(groups);
        }
    }
}

}  // namespace
}  // namespace subsecond::SUBSECOND_ISA
