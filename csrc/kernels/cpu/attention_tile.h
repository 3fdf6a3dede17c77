// What the attention kernels of all KV formats share: tiles of rows, views, and the walk over one block.
//
// Owns: cutting rows into tiles that fit the registers, and what a row that sees little or nothing means. A format
// brings a `Kernel`: how scores, probabilities and weighted values of a tile are computed.
// Invariant: what a row computes does not depend on the tile it is in. Slots that no row of the tile sees are skipped;
// slots that only other rows see get the probability 0 and add +-0, and a final + 0.0f makes the sign of zero the same.
// So stored values in view of any row of a call must be finite for rows to be independent; unseen ones may be anything.
#pragma once
#include <string.h>

#include "isa.h"
#include "reduce.h"
#include "vector_math.h"

namespace subsecond::SUBSECOND_ISA {
namespace {

constexpr int block_vectors = static_cast<int>(kv_block) / lanes;
constexpr float minus_infinity = -__builtin_inff();
constexpr float log2_e = 1.44269504f, ln_2 = 0.693147181f;

// View: the slots [lo, hi) that a row sees. select(view, v, x, other): of vector v of the block, x where in view.
// fast_exp2(y): 2^y to 4e-6 or better, for probabilities that are rounded afterwards.
#if defined(__AVX512F__)

#if defined(__AVX512BF16__)
constexpr int float_rows = 6, tile_columns = 4;  // 24 accumulators, 4 stored vectors, 1 broadcast of 32 registers
#else
constexpr int float_rows = 5, tile_columns = 4;  // 20 accumulators, 4 stored vectors (8 widened), 2 broadcasts
#endif

struct View {
    uint64_t slots;
};
SUBSECOND_INLINE View view_of(int32_t lo, int32_t hi) {
    const uint64_t below = hi >= 64 ? ~uint64_t{0} : (uint64_t{1} << hi) - 1;
    return {lo >= hi ? 0 : below & ~((uint64_t{1} << lo) - 1)};
}
SUBSECOND_INLINE f32x16 select(View view, int v, f32x16 x, f32x16 other) {
    return _mm512_mask_blend_ps(static_cast<__mmask16>(view.slots >> (lanes * v)), other, x);
}
SUBSECOND_INLINE f32x16 fast_exp2(f32x16 y) {
    const f32x16 f = _mm512_reduce_ps(y, _MM_FROUND_TO_NEG_INF);  // y - floor(y)
    f32x16 p = set1(1.3534167e-2f);                               // 2^f on [0, 1): relative error 4e-6
    p = fma(p, f, set1(5.2011464e-2f));
    p = fma(p, f, set1(2.4144275e-1f));
    p = fma(p, f, set1(6.9300383e-1f));
    p = fma(p, f, set1(1.0000026f));
    return _mm512_scalef_ps(p, y);
}

#elif defined(__aarch64__)

constexpr int float_rows = 4, tile_columns = 1;  // 16 sums, 4 stored vectors (8 widened), 2 broadcasts of 32 registers

struct View {
    int32_t lo, hi;
};
SUBSECOND_INLINE View view_of(int32_t lo, int32_t hi) { return {lo, hi}; }
SUBSECOND_INLINE float32x4_t select_quarter(View view, int first, float32x4_t x, float32x4_t other) {
    const int32_t offsets[4] = {0, 1, 2, 3};
    const int32x4_t slot = vaddq_s32(vld1q_s32(offsets), vdupq_n_s32(first));
    const uint32x4_t seen = vandq_u32(vcltq_s32(slot, vdupq_n_s32(view.hi)), vcgeq_s32(slot, vdupq_n_s32(view.lo)));
    return vbslq_f32(seen, x, other);
}
SUBSECOND_INLINE f32x16 select(View view, int v, f32x16 x, f32x16 other) {
    return {select_quarter(view, lanes * v, x.a, other.a), select_quarter(view, lanes * v + 4, x.b, other.b),
            select_quarter(view, lanes * v + 8, x.c, other.c), select_quarter(view, lanes * v + 12, x.d, other.d)};
}
SUBSECOND_INLINE f32x16 fast_exp2(f32x16 y) { return vector_exp(mul(y, set1(ln_2))); }

#else

constexpr int float_rows = 4, tile_columns = 1;  // 8 accumulators, 2 stored vectors (4 widened), 2 broadcasts of 16

struct View {
    int32_t lo, hi;
};
SUBSECOND_INLINE View view_of(int32_t lo, int32_t hi) { return {lo, hi}; }
SUBSECOND_INLINE __m256 select_half(View view, int first, __m256 x, __m256 other) {
    const __m256i slot = _mm256_add_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(first));
    const __m256i below = _mm256_cmpgt_epi32(_mm256_set1_epi32(view.hi), slot);
    const __m256i before = _mm256_cmpgt_epi32(_mm256_set1_epi32(view.lo), slot);
    return _mm256_blendv_ps(other, x, _mm256_castsi256_ps(_mm256_andnot_si256(before, below)));
}
SUBSECOND_INLINE f32x16 select(View view, int v, f32x16 x, f32x16 other) {
    return {select_half(view, lanes * v, x.lo, other.lo), select_half(view, lanes * v + 8, x.hi, other.hi)};
}
SUBSECOND_INLINE f32x16 fast_exp2(f32x16 y) { return vector_exp(mul(y, set1(ln_2))); }

#endif

// The slots that some row of a tile sees.
struct Span {
    int64_t lo, hi;
};

SUBSECOND_INLINE Span span_of(const int32_t* lo, const int32_t* hi, int rows) {
    Span span = {kv_block, 0};
    for (int r = 0; r < rows; ++r) {
        if (lo[r] >= hi[r]) continue;
        if (lo[r] < span.lo) span.lo = lo[r];
        if (hi[r] > span.hi) span.hi = hi[r];
    }
    return span;
}

// The scores of a row, -inf where it sees nothing; returns the largest. `whole`: it sees all slots.
template <bool whole>
SUBSECOND_INLINE float load_scores(const float* score, View view, f32x16 (&s)[block_vectors]) {
    for (int v = 0; v < block_vectors; ++v) {
        s[v] = load(score + lanes * v);
        if (!whole) s[v] = select(view, v, s[v], set1(minus_infinity));
    }
    return reduce_max(max(max(s[0], s[1]), max(s[2], s[3])));
}

// cap * tanh(scale * s / cap) in place.
static __attribute__((noinline)) void cap_scores(float* score, float scale, float cap) {
    for (int v = 0; v < block_vectors; ++v)
        store(score + lanes * v, mul(vector_tanh(mul(load(score + lanes * v), set1(scale / cap))), set1(cap)));
}

SUBSECOND_INLINE float reduce_sum(const f32x16 (&x)[block_vectors]) {
    return reduce_add(add(add(x[0], x[1]), add(x[2], x[3])));
}

// `ahead` may be nullptr: nothing to fetch. A block and the next together fill a first-level cache: so into the second.
SUBSECOND_INLINE void fetch(const uint8_t* ahead, int64_t at) {
    if (ahead != nullptr) fetch_to_l2(ahead + at);
}

// One tile of R rows over one block. `ahead` is a block to fetch meanwhile, or nullptr. A Kernel has
//   tile_rows:    the most rows of a tile (at most 6)
//   scores<R>:    q * k of the columns (16 slots each) first..last-1 to score[R][64], but for ...
//   score_scale:  ... this factor of the row that is prepared at `query`
//   soften<R, whole>: scores, times `factor` each row's, to probabilities p (p_bytes a row, in the form that `values`
//                 multiplies), m and l. whole: every row sees every slot; else what a row that sees nothing gets is
//                 overwritten
//   p_none:       the byte that probabilities of 0 consist of
//   values<R>:    p * v over the span to out[R][padded]
template <typename Kernel, int R>
static void attend_tile(const uint8_t* query, const uint8_t* block, const uint8_t* ahead, int64_t head_dim,
                        const int32_t* lo, const int32_t* hi, float softcap, float* m, float* l, float* out) {
    const int64_t padded = head_dim_padded(head_dim), part = Kernel::part_bytes(padded);
    const Span span = span_of(lo, hi, R);
    alignas(64) float score[R * kv_block];
    alignas(64) uint8_t p[R * Kernel::p_bytes];
    float factor[R];
    bool whole = true;
    for (int r = 0; r < R; ++r) {
        factor[r] = Kernel::score_scale(query + r * Kernel::query_bytes(head_dim));
        whole = whole && lo[r] <= 0 && hi[r] >= kv_block;
    }
    if (span.lo < span.hi) {
        Kernel::template scores<R>(query, block, ahead, head_dim, static_cast<int>(span.lo) / lanes,
                                   static_cast<int>(span.hi + lanes - 1) / lanes, score);
        for (int r = 0; softcap > 0.0f && r < R; ++r) {
            cap_scores(score + r * kv_block, factor[r], softcap);
            factor[r] = 1.0f;
        }
        const auto soften = whole ? Kernel::template soften<R, true> : Kernel::template soften<R, false>;
        soften(score, factor, lo, hi, block + part, p, m, l);
    }
    for (int r = 0; r < R; ++r) {
        if (lo[r] < hi[r]) continue;
        m[r] = minus_infinity;
        l[r] = 0.0f;
        memset(p + r * Kernel::p_bytes, Kernel::p_none, Kernel::p_bytes);
    }
    Kernel::template values<R>(p, block + part, ahead == nullptr ? nullptr : ahead + part, padded, span, out);
}

// KvKernel::attend: the rows cut into tiles.
template <typename Kernel>
static void attend_rows(const void* query, int64_t rows, const void* block, const void* next, int64_t head_dim,
                        const int32_t* lo, const int32_t* hi, float softcap, float* m, float* l, float* acc) {
    const uint8_t* q = static_cast<const uint8_t*>(query);
    const uint8_t* stored = static_cast<const uint8_t*>(block);
    const int64_t stride = Kernel::query_bytes(head_dim), padded = head_dim_padded(head_dim);
    const uint8_t* ahead = static_cast<const uint8_t*>(next);
    for (int64_t r = 0; r < rows;) {
        const int64_t left = rows - r;
        // Two even tiles at the end rather than a full one and a sliver.
        constexpr int64_t full = Kernel::tile_rows;
        const int64_t take = left <= full ? left : left < 2 * full ? (left + 1) / 2 : full;
#define SUBSECOND_TILE(n)                                                                                          \
    case n:                                                                                                        \
        if constexpr (n <= full)                                                                                   \
            attend_tile<Kernel, n>(q + r * stride, stored, ahead, head_dim, lo + r, hi + r, softcap, m + r, l + r, \
                                   acc + r * padded);                                                              \
        break;
        switch (take) {
            SUBSECOND_TILE(1)
            SUBSECOND_TILE(2)
            SUBSECOND_TILE(3)
            SUBSECOND_TILE(4)
            SUBSECOND_TILE(5)
            SUBSECOND_TILE(6)
        }
#undef SUBSECOND_TILE
        r += take;
        ahead = nullptr;  // fetched by now
    }
}

}  // namespace
}  // namespace subsecond::SUBSECOND_ISA
