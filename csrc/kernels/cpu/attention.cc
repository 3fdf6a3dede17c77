// Attention with the f32 KV cache, and the merge of two partial results.
//
// Owns: kv_f32 and attend_merge. f32 is the cache of the parity mode: FMA and the accurate exponential throughout.
#include "attention_float.h"
#include "parts.h"

namespace subsecond::SUBSECOND_ISA {
namespace {

struct DotF32 {
    using Stored = f32x16;
    static constexpr int64_t slots = 1;
    static constexpr int64_t p_bytes = kv_block * 4;

    static int64_t query_bytes(int64_t head_dim) { return head_dim_padded(head_dim) * 4; }
    SUBSECOND_INLINE Stored load(const uint8_t* p) { return SUBSECOND_ISA::load(reinterpret_cast<const float*>(p)); }
    SUBSECOND_INLINE Stored load_in_view(const uint8_t* p, int64_t, int64_t) { return load(p); }
    SUBSECOND_INLINE f32x16 multiply(const uint8_t* a, int64_t k, Stored b, f32x16 acc) {
        return fma(set1(reinterpret_cast<const float*>(a)[k]), b, acc);
    }
    template <bool whole>
    SUBSECOND_INLINE float probabilities(const f32x16 (&s)[block_vectors], f32x16 m, View view, uint8_t* p) {
        return exponentials<whole>(s, m, view, p);
    }
};

void query_prepare(const float* q, int64_t head_dim, float scale, void* row) {
    float* out = static_cast<float*>(row);
    const int64_t padded = head_dim_padded(head_dim);
    for (int64_t d = 0; d < padded; ++d) out[d] = d < head_dim ? q[d] * scale : 0.0f;
}

void store_slot(const float* k, const float* v, int64_t head_dim, int64_t slot, void* block) {
    const int64_t padded = head_dim_padded(head_dim);
    float* keys = static_cast<float*>(block);
    float* values = keys + kv_block * padded + slot * padded;
    for (int64_t d = 0; d < padded; ++d) {
        keys[d * kv_block + slot] = d < head_dim ? k[d] : 0.0f;
        values[d] = d < head_dim ? v[d] : 0.0f;
    }
}

}  // namespace

const KvKernel kv_f32 = {DotF32::query_bytes, query_prepare, store_slot, attend_rows<FloatKernel<DotF32>>};

// Both parts rescaled to the larger maximum; one of the two factors is exp(0) = 1, `factor` the other.
static void merge_row(float* m, float* l, float* acc, float m2, float l2, const float* acc2, float factor,
                      int64_t padded) {
    const bool rises = m2 > *m;
    *l = rises ? __builtin_fmaf(*l, factor, l2) : __builtin_fmaf(l2, factor, *l);
    *m = rises ? m2 : *m;
    const f32x16 a = set1(rises ? factor : 1.0f), b = set1(rises ? 1.0f : factor);
    for (int64_t d = 0; d < padded; d += lanes) store(acc + d, fma(load(acc2 + d), b, mul(load(acc + d), a)));
}

// A part that saw nothing (m = -inf, l = 0) changes nothing.
void attend_merge(float* m, float* l, float* acc, const float* m2, const float* l2, const float* acc2, int64_t rows,
                  int64_t head_dim) {
    const int64_t padded = head_dim_padded(head_dim);
    for (int64_t first = 0; first < rows; first += lanes) {
        const int64_t end = first + lanes < rows ? first + lanes : rows;
        alignas(64) float factor[lanes] = {};
        for (int64_t r = first; r < end; ++r) factor[r - first] = m2[r] > m[r] ? m[r] - m2[r] : m2[r] - m[r];
        store(factor, vector_exp(load(factor)));
        for (int64_t r = first; r < end; ++r) {
            if (m2[r] == minus_infinity && l2[r] == 0.0f) continue;
            if (m[r] == minus_infinity && l[r] == 0.0f) {
                m[r] = m2[r];
                l[r] = l2[r];
                memcpy(acc + r * padded, acc2 + r * padded, static_cast<size_t>(padded) * sizeof(float));
            } else {
                merge_row(m + r, l + r, acc + r * padded, m2[r], l2[r], acc2 + r * padded, factor[r - first], padded);
            }
        }
    }
}

}  // namespace subsecond::SUBSECOND_ISA
