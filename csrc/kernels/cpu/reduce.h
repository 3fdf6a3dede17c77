// Largest lane and NaN test of 16 lanes, for attention and sampling.
#pragma once
#include "isa.h"

namespace subsecond::SUBSECOND_ISA {
namespace {

#if defined(__aarch64__)

// Fixed tree: lane i against lane i+8, then +4, +2, +1. Within a pair the later lane's NaN is the result.
SUBSECOND_INLINE float reduce_max(f32x16 x) {
    const float32x4_t a = max_quarter(max_quarter(x.a, x.c), max_quarter(x.b, x.d));
    const float32x4_t b = max_quarter(a, vextq_f32(a, a, 2));
    return vgetq_lane_f32(max_quarter(b, vdupq_laneq_f32(b, 1)), 0);
}
SUBSECOND_INLINE uint32x4_t both_numbers(float32x4_t a, float32x4_t b) {
    return vandq_u32(vceqq_f32(a, a), vceqq_f32(b, b));
}
SUBSECOND_INLINE bool any_nan(f32x16 x, f32x16 y) {
    const uint32x4_t lo = vandq_u32(both_numbers(x.a, y.a), both_numbers(x.b, y.b));
    const uint32x4_t hi = vandq_u32(both_numbers(x.c, y.c), both_numbers(x.d, y.d));
    return vminvq_u32(vandq_u32(lo, hi)) == 0;
}

#else

// Fixed tree: lane i against lane i+8, then +4, +2, +1.
SUBSECOND_INLINE float reduce_max_half(__m256 lo, __m256 hi) {
    const __m256 a = _mm256_max_ps(lo, hi);
    const __m128 b = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 c = _mm_max_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_max_ss(c, _mm_shuffle_ps(c, c, 1)));
}

#if defined(__AVX512F__)
SUBSECOND_INLINE float reduce_max(f32x16 x) {
    return reduce_max_half(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
}
SUBSECOND_INLINE bool any_nan(f32x16 a, f32x16 b) { return _mm512_cmp_ps_mask(a, b, _CMP_UNORD_Q) != 0; }
#else
SUBSECOND_INLINE float reduce_max(f32x16 x) { return reduce_max_half(x.lo, x.hi); }
SUBSECOND_INLINE bool any_nan(f32x16 a, f32x16 b) {
    const __m256 lo = _mm256_cmp_ps(a.lo, b.lo, _CMP_UNORD_Q), hi = _mm256_cmp_ps(a.hi, b.hi, _CMP_UNORD_Q);
    return _mm256_movemask_ps(_mm256_or_ps(lo, hi)) != 0;
}
#endif

#endif

}  // namespace
}  // namespace subsecond::SUBSECOND_ISA
