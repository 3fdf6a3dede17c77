// Largest lane and NaN test of 16 lanes, for attention and sampling.
#pragma once
#include "isa.h"

namespace subsecond::SUBSECOND_ISA {
namespace {

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

}  // namespace
}  // namespace subsecond::SUBSECOND_ISA
