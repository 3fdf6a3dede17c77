// The Kernel of the formats that multiply in floats, register-blocked: f32 and bf16.
//
// Owns: the loops behind q*K and p*V. A format brings a `Dot`: how a stored vector of 64 bytes is loaded and
// multiplied.
#pragma once
#include "attention_tile.h"

namespace subsecond::SUBSECOND_ISA {
namespace {

// acc[r][c] += sum over k in [k_first, k_last) of a[r][k] * b[k][c], k in ascending order. Rows of a are a_stride
// bytes apart, rows of b b_stride bytes. The bytes at `ahead`, if any, that correspond to those of b are fetched.
template <typename Dot, int R, int C>
SUBSECOND_INLINE void accumulate(f32x16 (&acc)[R][C], const uint8_t* a, int64_t a_stride, const uint8_t* b,
                                 const uint8_t* ahead, int64_t b_stride, int64_t k_first, int64_t k_last) {
    for (int64_t k = k_first; k < k_last; ++k) {
        typename Dot::Stored stored[C];
        for (int c = 0; c < C; ++c) {
            stored[c] = Dot::load(b + k * b_stride + c * 64);
            fetch(ahead, k * b_stride + c * 64);
        }
        for (int r = 0; r < R; ++r)
            for (int c = 0; c < C; ++c) acc[r][c] = Dot::multiply(a + r * a_stride, k, stored[c], acc[r][c]);
    }
}

// One step of the above in which only some of the slots that share a stored vector are in view.
template <typename Dot, int R, int C>
SUBSECOND_INLINE void accumulate_edge(f32x16 (&acc)[R][C], const uint8_t* a, int64_t a_stride, const uint8_t* b,
                                      int64_t b_stride, int64_t k, Span span) {
    for (int c = 0; c < C; ++c) {
        const typename Dot::Stored stored =
            Dot::load_in_view(b + k * b_stride + c * 64, span.lo - k * Dot::slots, span.hi - k * Dot::slots);
        for (int r = 0; r < R; ++r) acc[r][c] = Dot::multiply(a + r * a_stride, k, stored, acc[r][c]);
    }
}

// exp(s - m) of the slots in view to p, in f32, and their sum.
template <bool whole>
SUBSECOND_INLINE float exponentials(const f32x16 (&s)[block_vectors], f32x16 m, View view, uint8_t* p) {
    f32x16 e[block_vectors];
    for (int v = 0; v < block_vectors; ++v) {
        e[v] = vector_exp(sub(s[v], m));
        if (!whole) e[v] = select(view, v, e[v], zero());
        store(reinterpret_cast<float*>(p) + lanes * v, e[v]);
    }
    return reduce_sum(e);
}

template <typename Dot>
struct FloatKernel {
    static constexpr int tile_rows = float_rows;
    static constexpr int64_t p_bytes = Dot::p_bytes;
    static constexpr int p_none = 0;
    static int64_t query_bytes(int64_t head_dim) { return Dot::query_bytes(head_dim); }
    static int64_t part_bytes(int64_t padded) { return padded / Dot::slots * block_vectors * 64; }

    template <int R, int C>
    static void score_columns(const uint8_t* query, const uint8_t* keys, const uint8_t* ahead, int64_t head_dim,
                              int first, float* score) {
        f32x16 acc[R][C];
        for (int r = 0; r < R; ++r)
            for (int c = 0; c < C; ++c) acc[r][c] = zero();
        accumulate<Dot, R, C>(acc, query, query_bytes(head_dim), keys + first * 64,
                              ahead == nullptr ? nullptr : ahead + first * 64, block_vectors * 64, 0,
                              ceil_div(head_dim, Dot::slots));
        for (int r = 0; r < R; ++r)
            for (int c = 0; c < C; ++c) store(score + r * kv_block + (first + c) * lanes, acc[r][c]);
    }

    template <int R>
    static void scores(const uint8_t* query, const uint8_t* keys, const uint8_t* ahead, int64_t head_dim, int first,
                       int last, float* score) {
        if (tile_columns == block_vectors && last - first == block_vectors) {
            score_columns<R, tile_columns>(query, keys, ahead, head_dim, 0, score);
        } else {
            for (int c = first; c < last; ++c) score_columns<R, 1>(query, keys, ahead, head_dim, c, score);
        }
    }

    static float score_scale(const uint8_t*) { return 1.0f; }  // query_prepare's

    template <bool whole>
    static __attribute__((noinline)) void soften_row(const float* score, View view, uint8_t* p, float* m, float* l) {
        f32x16 s[block_vectors];
        *m = load_scores<whole>(score, view, s);
        *l = Dot::template probabilities<whole>(s, set1(*m), view, p);
    }

    template <int R, bool whole>
    static void soften(float* score, const float*, const int32_t* lo, const int32_t* hi, const uint8_t*, uint8_t* p,
                       float* m, float* l) {
        for (int r = 0; r < R; ++r)
            if (lo[r] < hi[r])
                soften_row<whole>(score + r * kv_block, view_of(lo[r], hi[r]), p + r * p_bytes, m + r, l + r);
    }

    template <int R, int C>
    static void value_columns(const uint8_t* p, const uint8_t* values, const uint8_t* ahead, int64_t padded,
                              int64_t first, Span span, float* out) {
        f32x16 acc[R][C];
        for (int r = 0; r < R; ++r)
            for (int c = 0; c < C; ++c) acc[r][c] = zero();
        const uint8_t* b = values + first * 64;
        const int64_t stride = padded / lanes * 64;
        const int64_t k_first = ceil_div(span.lo, Dot::slots), k_last = span.hi / Dot::slots;
        if (k_first * Dot::slots > span.lo) accumulate_edge<Dot, R, C>(acc, p, p_bytes, b, stride, k_first - 1, span);
        accumulate<Dot, R, C>(acc, p, p_bytes, b, ahead == nullptr ? nullptr : ahead + first * 64, stride, k_first,
                              k_last);
        if (k_last * Dot::slots < span.hi && k_last >= k_first)
            accumulate_edge<Dot, R, C>(acc, p, p_bytes, b, stride, k_last, span);
        for (int r = 0; r < R; ++r)
            for (int c = 0; c < C; ++c) store(out + r * padded + (first + c) * lanes, add(acc[r][c], zero()));
    }

    template <int R>
    static void values(const uint8_t* p, const uint8_t* values, const uint8_t* ahead, int64_t padded, Span span,
                       float* out) {
        if (span.lo >= span.hi) span = {0, 0};
        const int64_t vectors = padded / lanes;
        int64_t v = 0;
        for (; v + tile_columns <= vectors; v += tile_columns)
            value_columns<R, tile_columns>(p, values, ahead, padded, v, span, out);
        for (; v < vectors; ++v) value_columns<R, 1>(p, values, ahead, padded, v, span, out);
    }
};

}  // namespace
}  // namespace subsecond::SUBSECOND_ISA
