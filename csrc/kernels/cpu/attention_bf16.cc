// Attention with the bf16 KV cache.
//
// Owns: kv_bf16. Two stored values of neighbouring dimensions (keys) or slots (values) share 32 bits. AVX-512 with
// BF16 multiplies such pairs with vdpbf16ps, so queries and probabilities are rounded to bf16 as well; the others widen
// the stored pairs and keep both in f32. In both, l is the sum of the very probabilities that multiply the values.
#include "attention_float.h"
#include "parts.h"

namespace subsecond::SUBSECOND_ISA {
namespace {

// Which halves of a pair are in view: slots [lo, hi) of {0, 1}.
uint32_t pair_mask(int64_t lo, int64_t hi) {
    return (lo <= 0 && hi > 0 ? 0x0000ffffu : 0u) | (lo <= 1 && hi > 1 ? 0xffff0000u : 0u);
}

#if defined(__AVX512F__)

// To nearest even, in the low halves; a NaN stays one.
SUBSECOND_INLINE __m512i bf16_lanes(f32x16 x) {
    const __m512i bits = _mm512_castps_si512(x), one = _mm512_set1_epi32(1);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), one);
    const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    return _mm512_srli_epi32(_mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000)), 16);
}

SUBSECOND_INLINE f32x16 load_part(const float* x, int64_t n, int64_t d) {
    return d + lanes <= n ? load(x + d) : d < n ? load_first(x + d, n - d) : zero();
}

// Two neighbouring slots share the pairs of values: stores are masked to the slot's own halves, since another thread
// may be writing the others.
void store_slot(const float* k, const float* v, int64_t head_dim, int64_t slot, void* block) {
    const int64_t padded = head_dim_padded(head_dim);
    uint16_t* keys = static_cast<uint16_t*>(block) + slot * 2;
    uint16_t* values = static_cast<uint16_t*>(block) + kv_block * padded + slot / 2 * padded * 2;
    const __mmask32 own = slot % 2 == 0 ? 0x55555555u : 0xaaaaaaaau;
    for (int64_t d = 0; d < padded; d += lanes) {
        alignas(32) uint32_t pairs[lanes / 2];
        _mm256_store_si256(reinterpret_cast<__m256i*>(pairs),
                           _mm512_cvtepi32_epi16(bf16_lanes(load_part(k, head_dim, d))));
        for (int64_t i = 0; i < lanes / 2; ++i) memcpy(keys + (d / 2 + i) * kv_block * 2, pairs + i, sizeof pairs[i]);
        const __m512i value = bf16_lanes(load_part(v, head_dim, d));
        _mm512_mask_storeu_epi16(values + 2 * d, own, _mm512_or_si512(value, _mm512_slli_epi32(value, 16)));
    }
}

#else

uint16_t bf16_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);  // stays a NaN
    return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

void store_slot(const float* k, const float* v, int64_t head_dim, int64_t slot, void* block) {
    const int64_t padded = head_dim_padded(head_dim);
    uint16_t* keys = static_cast<uint16_t*>(block) + slot * 2;
    uint16_t* values = static_cast<uint16_t*>(block) + kv_block * padded + slot / 2 * padded * 2 + slot % 2;
    for (int64_t d = 0; d < padded; ++d) {
        keys[d / 2 * kv_block * 2 + d % 2] = d < head_dim ? bf16_of(k[d]) : 0;
        values[2 * d] = d < head_dim ? bf16_of(v[d]) : 0;
    }
}

#endif

#if defined(__AVX512BF16__)

struct DotBf16 {
    using Stored = __m512bh;
    static constexpr int64_t slots = 2;
    static constexpr int64_t p_bytes = kv_block * 2;

    static int64_t query_bytes(int64_t head_dim) { return ceil_div(head_dim * 2, 64) * 64; }
    SUBSECOND_INLINE Stored load(const uint8_t* p) { return (Stored)_mm512_loadu_si512(p); }
    SUBSECOND_INLINE Stored load_in_view(const uint8_t* p, int64_t lo, int64_t hi) {
        const __m512i mask = _mm512_set1_epi32(static_cast<int>(pair_mask(lo, hi)));
        return (Stored)_mm512_and_si512(_mm512_loadu_si512(p), mask);
    }
    SUBSECOND_INLINE f32x16 multiply(const uint8_t* a, int64_t k, Stored b, f32x16 acc) {
        int32_t pair;
        memcpy(&pair, a + 4 * k, sizeof pair);
        return _mm512_dpbf16_ps(acc, b, (Stored)_mm512_set1_epi32(pair));
    }
    template <bool whole>
    SUBSECOND_INLINE float probabilities(const f32x16 (&s)[block_vectors], f32x16 m, View view, uint8_t* p) {
        const Stored ones = (Stored)_mm512_set1_epi32(0x3f803f80);
        const f32x16 scale = set1(log2_e), shift = sub(zero(), mul(m, scale));
        f32x16 sum = zero();
        for (int v = 0; v < block_vectors; v += 2) {
            f32x16 low = fast_exp2(fma(s[v], scale, shift)), high = fast_exp2(fma(s[v + 1], scale, shift));
            if (!whole) {
                low = select(view, v, low, zero());
                high = select(view, v + 1, high, zero());
            }
            const Stored pairs = _mm512_cvtne2ps_pbh(high, low);
            _mm512_store_si512(p + v * 32, (__m512i)pairs);
            sum = _mm512_dpbf16_ps(sum, pairs, ones);
        }
        return reduce_add(sum);
    }
};

void query_prepare(const float* q, int64_t head_dim, float scale, void* row) {
    uint16_t* out = static_cast<uint16_t*>(row);
    const int64_t padded = DotBf16::query_bytes(head_dim) / 2;
    for (int64_t d = 0; d < padded; d += lanes)
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + d),
                            _mm512_cvtepi32_epi16(bf16_lanes(mul(load_part(q, head_dim, d), set1(scale)))));
}

#else

struct DotBf16 {
    struct Stored {
        f32x16 even, odd;
    };
    static constexpr int64_t slots = 2;
    static constexpr int64_t p_bytes = kv_block * 4;

    static int64_t query_bytes(int64_t head_dim) { return head_dim_padded(head_dim) * 4; }
#if defined(__aarch64__)
    SUBSECOND_INLINE float32x4_t even_of(const uint8_t* p, uint32x4_t mask) {
        return vreinterpretq_f32_u32(vshlq_n_u32(vandq_u32(vreinterpretq_u32_u8(vld1q_u8(p)), mask), 16));
    }
    SUBSECOND_INLINE float32x4_t odd_of(const uint8_t* p, uint32x4_t mask) {
        const uint32x4_t high = vandq_u32(mask, vdupq_n_u32(0xffff0000u));
        return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_u8(vld1q_u8(p)), high));
    }
    SUBSECOND_INLINE Stored load_masked(const uint8_t* p, uint32x4_t mask) {
        return {{even_of(p, mask), even_of(p + 16, mask), even_of(p + 32, mask), even_of(p + 48, mask)},
                {odd_of(p, mask), odd_of(p + 16, mask), odd_of(p + 32, mask), odd_of(p + 48, mask)}};
    }
    SUBSECOND_INLINE Stored load(const uint8_t* p) { return load_masked(p, vdupq_n_u32(~0u)); }
    SUBSECOND_INLINE Stored load_in_view(const uint8_t* p, int64_t lo, int64_t hi) {
        return load_masked(p, vdupq_n_u32(pair_mask(lo, hi)));
    }
#elif defined(__AVX512F__)
    SUBSECOND_INLINE Stored widen(__m512i pairs) {
        const __m512i high = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
        return {_mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)), _mm512_castsi512_ps(_mm512_and_si512(pairs, high))};
    }
    SUBSECOND_INLINE Stored load(const uint8_t* p) { return widen(_mm512_loadu_si512(p)); }
    SUBSECOND_INLINE Stored load_in_view(const uint8_t* p, int64_t lo, int64_t hi) {
        const __m512i mask = _mm512_set1_epi32(static_cast<int>(pair_mask(lo, hi)));
        return widen(_mm512_and_si512(_mm512_loadu_si512(p), mask));
    }
#else
    SUBSECOND_INLINE Stored widen(__m256i a, __m256i b) {
        const __m256i high = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
        return {{_mm256_castsi256_ps(_mm256_slli_epi32(a, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(b, 16))},
                {_mm256_castsi256_ps(_mm256_and_si256(a, high)), _mm256_castsi256_ps(_mm256_and_si256(b, high))}};
    }
    SUBSECOND_INLINE Stored load(const uint8_t* p) {
        return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
                     _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32)));
    }
    SUBSECOND_INLINE Stored load_in_view(const uint8_t* p, int64_t lo, int64_t hi) {
        const __m256i mask = _mm256_set1_epi32(static_cast<int>(pair_mask(lo, hi)));
        return widen(_mm256_and_si256(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), mask),
                     _mm256_and_si256(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32)), mask));
    }
#endif
    SUBSECOND_INLINE f32x16 multiply(const uint8_t* a, int64_t k, Stored b, f32x16 acc) {
        const float* pair = reinterpret_cast<const float*>(a) + 2 * k;
        return fma(set1(pair[1]), b.odd, fma(set1(pair[0]), b.even, acc));
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

#endif

}  // namespace

const KvKernel kv_bf16 = {DotBf16::query_bytes, query_prepare, store_slot, attend_rows<FloatKernel<DotBf16>>};

}  // namespace subsecond::SUBSECOND_ISA
