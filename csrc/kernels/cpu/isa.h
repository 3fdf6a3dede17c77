// The vector vocabulary of one instruction set: 16 lanes of f32 or s32, and the u8 x s8 dot product of the integer
// formats.
//
// Owns: the mapping from names to instructions. Knows nothing of kernels. Every source in this folder is compiled once
// an instruction set, with SUBSECOND_ISA naming the namespace: avx2, avx512.
//
// Invariant: sources of an instruction set hold static functions and intrinsics only. A std:: template or a shared
// inline function could be emitted here with newer instructions and be picked by the linker for an older CPU's path.
// Invariant: 16 lanes mean the same in every instruction set, so that results do not depend on which one runs.
#pragma once
#include <immintrin.h>

#include <cstdint>

#include "../activation_row.h"
#include "parts.h"

#define SUBSECOND_INLINE static inline __attribute__((always_inline))

namespace subsecond::SUBSECOND_ISA {
namespace {

constexpr int lanes = 16;

#if defined(__AVX512VNNI__) && defined(__AVX512BF16__)

using f32x16 = __m512;
using i32x16 = __m512i;

SUBSECOND_INLINE f32x16 set1(float x) { return _mm512_set1_ps(x); }
SUBSECOND_INLINE f32x16 zero() { return _mm512_setzero_ps(); }
SUBSECOND_INLINE f32x16 load(const float* p) { return _mm512_loadu_ps(p); }
SUBSECOND_INLINE void store(float* p, f32x16 x) { _mm512_storeu_ps(p, x); }
SUBSECOND_INLINE __mmask16 first(int64_t n) { return static_cast<__mmask16>((1u << n) - 1); }
// The first n lanes (n in 0..15) are memory's, the others zero, and are not touched.
SUBSECOND_INLINE f32x16 load_first(const float* p, int64_t n) { return _mm512_maskz_loadu_ps(first(n), p); }
SUBSECOND_INLINE void store_first(float* p, f32x16 x, int64_t n) { _mm512_mask_storeu_ps(p, first(n), x); }
SUBSECOND_INLINE f32x16 add(f32x16 a, f32x16 b) { return _mm512_add_ps(a, b); }
SUBSECOND_INLINE f32x16 sub(f32x16 a, f32x16 b) { return _mm512_sub_ps(a, b); }
SUBSECOND_INLINE f32x16 mul(f32x16 a, f32x16 b) { return _mm512_mul_ps(a, b); }
SUBSECOND_INLINE f32x16 div(f32x16 a, f32x16 b) { return _mm512_div_ps(a, b); }
// A NaN in b is the result (x86's rule); a NaN in a is not.
SUBSECOND_INLINE f32x16 min(f32x16 a, f32x16 b) { return _mm512_min_ps(a, b); }
SUBSECOND_INLINE f32x16 max(f32x16 a, f32x16 b) { return _mm512_max_ps(a, b); }
SUBSECOND_INLINE f32x16 fma(f32x16 a, f32x16 b, f32x16 c) { return _mm512_fmadd_ps(a, b, c); }
SUBSECOND_INLINE f32x16 fnma(f32x16 a, f32x16 b, f32x16 c) { return _mm512_fnmadd_ps(a, b, c); }
SUBSECOND_INLINE f32x16 abs(f32x16 a) { return _mm512_abs_ps(a); }
SUBSECOND_INLINE f32x16 round_even(f32x16 a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT); }
SUBSECOND_INLINE f32x16 to_float(i32x16 a) { return _mm512_cvtepi32_ps(a); }
SUBSECOND_INLINE i32x16 to_int(f32x16 a) { return _mm512_cvtps_epi32(a); }  // to nearest even
SUBSECOND_INLINE f32x16 from_half(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
// x * 2^n for integral n, |n| <= 160, rounded once.
SUBSECOND_INLINE f32x16 scale_by_power(f32x16 x, f32x16 n) { return _mm512_scalef_ps(x, n); }
// a < b ? x : y, lane by lane (false for NaN).
SUBSECOND_INLINE f32x16 select_less(f32x16 a, f32x16 b, f32x16 x, f32x16 y) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), y, x);
}
// |magnitude| with the sign of sign; magnitude must not be negative.
SUBSECOND_INLINE f32x16 with_sign(f32x16 magnitude, f32x16 sign) {
    return _mm512_or_ps(magnitude, _mm512_and_ps(sign, _mm512_set1_ps(-0.0f)));
}
// Fixed tree: lane i + lane i+8, then +4, +2, +1.
SUBSECOND_INLINE float reduce_add(f32x16 x) {
    const __m256 a = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
    const __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 c = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(c, _mm_shuffle_ps(c, c, 1)));
}

#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

struct f32x16 {
    __m256 lo, hi;
};
struct i32x16 {
    __m256i lo, hi;
};

SUBSECOND_INLINE f32x16 set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
SUBSECOND_INLINE f32x16 zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
SUBSECOND_INLINE f32x16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
SUBSECOND_INLINE void store(float* p, f32x16 x) {
    _mm256_storeu_ps(p, x.lo);
    _mm256_storeu_ps(p + 8, x.hi);
}
SUBSECOND_INLINE __m256i first(int64_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
// The first n lanes (n in 0..15) are memory's, the others zero, and are not touched.
SUBSECOND_INLINE f32x16 load_first(const float* p, int64_t n) {
    return {_mm256_maskload_ps(p, first(n)), _mm256_maskload_ps(p + 8, first(n - 8))};
}
SUBSECOND_INLINE void store_first(float* p, f32x16 x, int64_t n) {
    _mm256_maskstore_ps(p, first(n), x.lo);
    _mm256_maskstore_ps(p + 8, first(n - 8), x.hi);
}
#define SUBSECOND_BINARY(name, op) \
    SUBSECOND_INLINE f32x16 name(f32x16 a, f32x16 b) { return {op(a.lo, b.lo), op(a.hi, b.hi)}; }
SUBSECOND_BINARY(add, _mm256_add_ps)
SUBSECOND_BINARY(sub, _mm256_sub_ps)
SUBSECOND_BINARY(mul, _mm256_mul_ps)
SUBSECOND_BINARY(div, _mm256_div_ps)
// A NaN in b is the result (x86's rule); a NaN in a is not.
SUBSECOND_BINARY(min, _mm256_min_ps)
SUBSECOND_BINARY(max, _mm256_max_ps)
#undef SUBSECOND_BINARY
SUBSECOND_INLINE f32x16 fma(f32x16 a, f32x16 b, f32x16 c) {
    return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
SUBSECOND_INLINE f32x16 fnma(f32x16 a, f32x16 b, f32x16 c) {
    return {_mm256_fnmadd_ps(a.lo, b.lo, c.lo), _mm256_fnmadd_ps(a.hi, b.hi, c.hi)};
}
SUBSECOND_INLINE f32x16 abs(f32x16 a) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(sign, a.lo), _mm256_andnot_ps(sign, a.hi)};
}
SUBSECOND_INLINE f32x16 round_even(f32x16 a) {
    constexpr int mode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return {_mm256_round_ps(a.lo, mode), _mm256_round_ps(a.hi, mode)};
}
SUBSECOND_INLINE f32x16 to_float(i32x16 a) { return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)}; }
SUBSECOND_INLINE i32x16 to_int(f32x16 a) { return {_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi)}; }
SUBSECOND_INLINE f32x16 from_half(const uint16_t* p) {
    return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
            _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
}
SUBSECOND_INLINE __m256 power_half(__m256i n) {  // 2^n, n in the range of normal numbers
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
}
// x * 2^n for integral n, |n| <= 160, in two factors, because 2^n itself may leave the range.
SUBSECOND_INLINE f32x16 scale_by_power(f32x16 x, f32x16 n) {
    const i32x16 whole = to_int(n);
    const __m256i lo = _mm256_srai_epi32(whole.lo, 1), hi = _mm256_srai_epi32(whole.hi, 1);
    const f32x16 a = {power_half(lo), power_half(hi)};
    const f32x16 b = {power_half(_mm256_sub_epi32(whole.lo, lo)), power_half(_mm256_sub_epi32(whole.hi, hi))};
    return mul(mul(x, a), b);
}
// a < b ? x : y, lane by lane (false for NaN).
SUBSECOND_INLINE f32x16 select_less(f32x16 a, f32x16 b, f32x16 x, f32x16 y) {
    return {_mm256_blendv_ps(y.lo, x.lo, _mm256_cmp_ps(a.lo, b.lo, _CMP_LT_OQ)),
            _mm256_blendv_ps(y.hi, x.hi, _mm256_cmp_ps(a.hi, b.hi, _CMP_LT_OQ))};
}
// |magnitude| with the sign of sign; magnitude must not be negative.
SUBSECOND_INLINE f32x16 with_sign(f32x16 magnitude, f32x16 sign) {
    const __m256 bit = _mm256_set1_ps(-0.0f);
    return {_mm256_or_ps(magnitude.lo, _mm256_and_ps(sign.lo, bit)),
            _mm256_or_ps(magnitude.hi, _mm256_and_ps(sign.hi, bit))};
}
// Fixed tree: lane i + lane i+8, then +4, +2, +1.
SUBSECOND_INLINE float reduce_add(f32x16 x) {
    const __m256 a = _mm256_add_ps(x.lo, x.hi);
    const __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 c = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(c, _mm_shuffle_ps(c, c, 1)));
}

#else
#error "no vector vocabulary for this target"
#endif

}  // namespace

}  // namespace subsecond::SUBSECOND_ISA
