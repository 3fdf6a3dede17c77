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
    SUBSECOND_INLINE float probabilities(const f32x16 (&s)[block_vectors], f32x16 m, View view, uint8_t* p) {
        return exponentials(s, m, view, p);
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

// Both parts rescaled to the larger maximum. A part that saw nothing (m = -inf, l = 0) changes nothing.
void attend_merge(float* m, float* l, float* acc, const float* m2, const float* l2, const float* acc2,
                  int64_t head_dim) {
    const int64_t padded = head_dim_padded(head_dim);
    if (*m2 == minus_infinity && *l2 == 0.0f) return;
    if (*m == minus_infinity && *l == 0.0f) {
        *m = *m2;
        *l = *l2;
        for (int64_t d = 0; d < padded; d += lanes) store(acc + d, load(acc2 + d));
        return;
    }
    // One of the two factors is exp(0) = 1.
    const bool rises = *m2 > *m;
    const float distance = rises ? *m - *m2 : *m2 - *m;
    const f32x16 one = set1(1.0f), factor = vector_exp(set1(distance));
    const f32x16 a = rises ? factor : one, b = rises ? one : factor;
    float first[lanes];
    store(first, factor);
    *l = rises ? __builtin_fmaf(*l, first[0], *l2) : __builtin_fmaf(*l2, first[0], *l);
    *m = rises ? *m2 : *m;
    for (int64_t d = 0; d < padded; d += lanes) store(acc + d, fma(load(acc2 + d), b, mul(load(acc + d), a)));
}

}  // namespace subsecond::SUBSECOND_ISA
