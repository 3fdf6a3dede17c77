// Products with bf16 weights: pairs along K in order, f32 accumulation.
//
// Owns: the bf16 prepared row (round to nearest even, padded to whole pairs). AVX-512 with BF16 uses vdpbf16ps, which
// takes denormals for zero; elsewhere both halves are widened and folded by FMA in the same pair order.
#include "linear_float.h"

namespace subsecond::SUBSECOND_ISA {
namespace {

struct Bf16 {
    using Block = block_bf16;
    using Act = int32_t;  // a pair
    static constexpr int64_t group = 2;

    static int64_t act_bytes(int64_t k) { return ceil_div(k * 2, 64) * 64; }

#if defined(__AVX512BF16__)

    static constexpr int max_rows = 6, max_tiles = 4;
    using Weights = __m512i;

    SUBSECOND_INLINE Weights load(const Block& b) { return _mm512_loadu_si512(b.value); }
    SUBSECOND_INLINE f32x16 fold(Weights w, Act a, f32x16 sum) {
        return _mm512_dpbf16_ps(sum, (__m512bh)w, (__m512bh)_mm512_set1_epi32(a));
    }

#elif defined(__aarch64__)

    static constexpr int max_rows = 5, max_tiles = 1;  // 20 sums, 8 weights, 2 activations of 32 registers
    struct Weights {
        f32x16 first, second;
    };

    SUBSECOND_INLINE float32x4_t first_of(uint32x4_t pairs) { return vreinterpretq_f32_u32(vshlq_n_u32(pairs, 16)); }
    SUBSECOND_INLINE float32x4_t second_of(uint32x4_t pairs) {
        return vreinterpretq_f32_u32(vandq_u32(pairs, vdupq_n_u32(0xffff0000u)));
    }
    SUBSECOND_INLINE uint32x4_t pairs_at(const Block& b, int i) {
        return vreinterpretq_u32_u16(vld1q_u16(b.value + 8 * i));
    }
    SUBSECOND_INLINE Weights load(const Block& b) {
        const uint32x4_t p0 = pairs_at(b, 0), p1 = pairs_at(b, 1), p2 = pairs_at(b, 2), p3 = pairs_at(b, 3);
        return {{first_of(p0), first_of(p1), first_of(p2), first_of(p3)},
                {second_of(p0), second_of(p1), second_of(p2), second_of(p3)}};
    }
    SUBSECOND_INLINE f32x16 fold(Weights w, Act a, f32x16 sum) {
        const uint32x4_t both = vdupq_n_u32(static_cast<uint32_t>(a));
        const float32x4_t a0 = first_of(both), a1 = second_of(both);
        sum = fma(w.first, {a0, a0, a0, a0}, sum);
        return fma(w.second, {a1, a1, a1, a1}, sum);
    }

#elif defined(__AVX512F__)

    static constexpr int max_rows = 5, max_tiles = 4;  // 20 sums, 8 weights, 2 activations of 32 registers
    struct Weights {
        f32x16 first, second;
    };

    SUBSECOND_INLINE f32x16 first_of(__m512i pairs) { return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)); }
    SUBSECOND_INLINE f32x16 second_of(__m512i pairs) {
        return _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
    }
    SUBSECOND_INLINE Weights load(const Block& b) {
        const __m512i pairs = _mm512_loadu_si512(b.value);
        return {first_of(pairs), second_of(pairs)};
    }
    SUBSECOND_INLINE f32x16 fold(Weights w, Act a, f32x16 sum) {
        const __m512i both = _mm512_set1_epi32(a);
        return fma(w.second, second_of(both), fma(w.first, first_of(both), sum));
    }

#else

    static constexpr int max_rows = 2, max_tiles = 2;
    struct Weights {
        f32x16 first, second;
    };

    SUBSECOND_INLINE __m256 first_of(__m256i pairs) { return _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)); }
    SUBSECOND_INLINE __m256 second_of(__m256i pairs) {
        return _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
    }
    SUBSECOND_INLINE Weights load(const Block& b) {
        const __m256i* pairs = reinterpret_cast<const __m256i*>(b.value);
        const __m256i lo = _mm256_loadu_si256(pairs), hi = _mm256_loadu_si256(pairs + 1);
        return {{first_of(lo), first_of(hi)}, {second_of(lo), second_of(hi)}};
    }
    SUBSECOND_INLINE f32x16 fold(Weights w, Act a, f32x16 sum) {
        const __m256i both = _mm256_set1_epi32(a);
        const __m256 a0 = first_of(both), a1 = second_of(both);
        sum = fma(w.first, {a0, a0}, sum);
        return fma(w.second, {a1, a1}, sum);
    }

#endif
};

uint16_t bf16_of(float value) {
    uint32_t u;
    __builtin_memcpy(&u, &value, sizeof u);
    if ((u & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>(u >> 16 | 0x40u);
    return static_cast<uint16_t>((u + 0x7fffu + (u >> 16 & 1u)) >> 16);
}

void act_prepare(const float* x, int64_t k, void* row) {
    uint16_t* out = static_cast<uint16_t*>(row);
    for (int64_t i = 0; i < k; ++i) out[i] = bf16_of(x[i]);
    for (int64_t i = k; i < Bf16::act_bytes(k) / 2; ++i) out[i] = 0;
}

void lookup(Tiles weight, int64_t index, int64_t k, float* out) {
    const block_bf16* tile = static_cast<const block_bf16*>(weight.first) + index / tile_channels * ceil_div(k, 2);
    for (int64_t i = 0; i < k; ++i) {
        const uint32_t u = static_cast<uint32_t>(tile[i / 2].value[2 * (index % tile_channels) + i % 2]) << 16;
        __builtin_memcpy(out + i, &u, sizeof u);
    }
}

}  // namespace

const LinearKernel linear_bf16 = {Bf16::act_bytes, act_prepare, product<Bf16>, lookup};

}  // namespace subsecond::SUBSECOND_ISA
