// The vector vocabulary of one instruction set: 16 lanes of f32 or s32, and the u8 x s8 dot product of the integer
// formats.
//
// Owns: the mapping from names to instructions. Knows nothing of kernels. Every source in this folder is compiled once
// an instruction set, with SUBSECOND_ISA naming the namespace: avx2, avx512_vnni, avx512 (multiplies bf16 as well),
// neon and neon_dotprod (which differ in the instructions of dot_quads and dot_two_quads alone).
//
// Invariant: sources of an instruction set hold static functions and intrinsics only. A std:: template or a shared
// inline function could be emitted here with newer instructions and be picked by the linker for an older CPU's path.
// Invariant: 16 lanes mean the same in every instruction set, so that results do not depend on which one runs.
#pragma once
#if defined(__aarch64__)
#include <arm_neon.h>
#else
#include <immintrin.h>
#endif

#include <cstddef>
#include <cstdint>

#include "../activation_row.h"
#include "parts.h"

#define SUBSECOND_INLINE static inline __attribute__((always_inline))

namespace subsecond::SUBSECOND_ISA {
namespace {

constexpr int lanes = 16;

SUBSECOND_INLINE void fetch_to_l1(const void* p) { __builtin_prefetch(p, 0, 3); }
SUBSECOND_INLINE void fetch_to_l2(const void* p) { __builtin_prefetch(p, 0, 2); }

#if defined(__AVX512VNNI__)

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

#elif defined(__aarch64__)

// Lanes 0-3, 4-7, 8-11, 12-15.
struct f32x16 {
    float32x4_t a, b, c, d;
};
struct i32x16 {
    int32x4_t a, b, c, d;
};

#define SUBSECOND_UNARY(name, from, to, op) \
    SUBSECOND_INLINE to name(from x) { return {op(x.a), op(x.b), op(x.c), op(x.d)}; }
#define SUBSECOND_BINARY(name, op)                                       \
    SUBSECOND_INLINE f32x16 name(f32x16 x, f32x16 y) {                   \
        return {op(x.a, y.a), op(x.b, y.b), op(x.c, y.c), op(x.d, y.d)}; \
    }

SUBSECOND_INLINE f32x16 set1(float x) {
    const float32x4_t all = vdupq_n_f32(x);
    return {all, all, all, all};
}
SUBSECOND_INLINE f32x16 zero() { return set1(0.0f); }
SUBSECOND_INLINE f32x16 load(const float* p) {
    return {vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)};
}
SUBSECOND_INLINE void store(float* p, f32x16 x) {
    vst1q_f32(p, x.a);
    vst1q_f32(p + 4, x.b);
    vst1q_f32(p + 8, x.c);
    vst1q_f32(p + 12, x.d);
}
// The first n lanes (n in 0..15) are memory's, the others zero, and are not touched.
SUBSECOND_INLINE f32x16 load_first(const float* p, int64_t n) {
    float all[lanes] = {};
    __builtin_memcpy(all, p, static_cast<size_t>(n) * sizeof(float));
    return load(all);
}
SUBSECOND_INLINE void store_first(float* p, f32x16 x, int64_t n) {
    float all[lanes];
    store(all, x);
    __builtin_memcpy(p, all, static_cast<size_t>(n) * sizeof(float));
}
SUBSECOND_BINARY(add, vaddq_f32)
SUBSECOND_BINARY(sub, vsubq_f32)
SUBSECOND_BINARY(mul, vmulq_f32)
SUBSECOND_BINARY(div, vdivq_f32)
// A NaN in b is the result (x86's rule); a NaN in a is not. (vminq and vmaxq would give either.)
SUBSECOND_INLINE float32x4_t min_quarter(float32x4_t a, float32x4_t b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
SUBSECOND_INLINE float32x4_t max_quarter(float32x4_t a, float32x4_t b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
SUBSECOND_BINARY(min, min_quarter)
SUBSECOND_BINARY(max, max_quarter)
SUBSECOND_INLINE f32x16 fma(f32x16 a, f32x16 b, f32x16 c) {
    return {vfmaq_f32(c.a, a.a, b.a), vfmaq_f32(c.b, a.b, b.b), vfmaq_f32(c.c, a.c, b.c), vfmaq_f32(c.d, a.d, b.d)};
}
SUBSECOND_INLINE f32x16 fnma(f32x16 a, f32x16 b, f32x16 c) {
    return {vfmsq_f32(c.a, a.a, b.a), vfmsq_f32(c.b, a.b, b.b), vfmsq_f32(c.c, a.c, b.c), vfmsq_f32(c.d, a.d, b.d)};
}
SUBSECOND_UNARY(abs, f32x16, f32x16, vabsq_f32)
SUBSECOND_UNARY(round_even, f32x16, f32x16, vrndnq_f32)
SUBSECOND_UNARY(to_float, i32x16, f32x16, vcvtq_f32_s32)
SUBSECOND_UNARY(to_int, f32x16, i32x16, vcvtnq_s32_f32)
SUBSECOND_INLINE float32x4_t half_quarter(const uint16_t* p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
SUBSECOND_INLINE f32x16 from_half(const uint16_t* p) {
    return {half_quarter(p), half_quarter(p + 4), half_quarter(p + 8), half_quarter(p + 12)};
}
SUBSECOND_INLINE float32x4_t power_quarter(int32x4_t n) {  // 2^n, n in the range of normal numbers
    return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(n, vdupq_n_s32(127)), 23));
}
SUBSECOND_UNARY(power_of_two, i32x16, f32x16, power_quarter)
// x * 2^n for integral n, |n| <= 160, in two factors, because 2^n itself may leave the range.
SUBSECOND_INLINE f32x16 scale_by_power(f32x16 x, f32x16 n) {
    const i32x16 whole = to_int(n);
    const i32x16 half = {vshrq_n_s32(whole.a, 1), vshrq_n_s32(whole.b, 1), vshrq_n_s32(whole.c, 1),
                         vshrq_n_s32(whole.d, 1)};
    const i32x16 rest = {vsubq_s32(whole.a, half.a), vsubq_s32(whole.b, half.b), vsubq_s32(whole.c, half.c),
                         vsubq_s32(whole.d, half.d)};
    return mul(mul(x, power_of_two(half)), power_of_two(rest));
}
// a < b ? x : y, lane by lane (false for NaN).
SUBSECOND_INLINE f32x16 select_less(f32x16 a, f32x16 b, f32x16 x, f32x16 y) {
    return {vbslq_f32(vcltq_f32(a.a, b.a), x.a, y.a), vbslq_f32(vcltq_f32(a.b, b.b), x.b, y.b),
            vbslq_f32(vcltq_f32(a.c, b.c), x.c, y.c), vbslq_f32(vcltq_f32(a.d, b.d), x.d, y.d)};
}
SUBSECOND_INLINE float32x4_t sign_quarter(float32x4_t magnitude, float32x4_t sign) {
    return vbslq_f32(vdupq_n_u32(0x80000000u), sign, magnitude);
}
// |magnitude| with the sign of sign; magnitude must not be negative.
SUBSECOND_BINARY(with_sign, sign_quarter)
#undef SUBSECOND_UNARY
#undef SUBSECOND_BINARY
// Fixed tree: lane i + lane i+8, then +4, +2, +1.
SUBSECOND_INLINE float reduce_add(f32x16 x) {
    const float32x4_t four = vaddq_f32(vaddq_f32(x.a, x.c), vaddq_f32(x.b, x.d));
    const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}

// acc[i] += w[4i] * quad[0] + .. + w[4i + 3] * quad[3], exact, where quad repeats the same four values.
SUBSECOND_INLINE int32x4_t dot_quads(int32x4_t acc, int8x16_t w, int8x16_t quad) {
#if defined(__ARM_FEATURE_DOTPROD)
    return vdotq_s32(acc, w, quad);
#else
    const int32x4_t lo = vpaddlq_s16(vmull_s8(vget_low_s8(w), vget_low_s8(quad)));
    const int32x4_t hi = vpaddlq_s16(vmull_high_s8(w, quad));
    return vaddq_s32(acc, vpaddq_s32(lo, hi));
#endif
}
// Two of these at once. Without dot products two products share 16 bits: values and quads must not both hold -128.
SUBSECOND_INLINE int32x4_t dot_two_quads(int32x4_t acc, int8x16_t v, int8x16_t v_quad, int8x16_t w, int8x16_t w_quad) {
#if defined(__ARM_FEATURE_DOTPROD)
    return vdotq_s32(vdotq_s32(acc, v, v_quad), w, w_quad);
#else
    const int16x8_t lo = vmlal_s8(vmull_s8(vget_low_s8(v), vget_low_s8(v_quad)), vget_low_s8(w), vget_low_s8(w_quad));
    const int16x8_t hi = vmlal_high_s8(vmull_high_s8(v, v_quad), w, w_quad);
    return vaddq_s32(acc, vpaddq_s32(vpaddlq_s16(lo), vpaddlq_s16(hi)));
#endif
}

#else
#error "no vector vocabulary for this target"
#endif

#if defined(__aarch64__)
SUBSECOND_INLINE float half_to_float(uint16_t half) {
    return vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(half))), 0);
}
SUBSECOND_INLINE float square_root(float x) { return vget_lane_f32(vsqrt_f32(vdup_n_f32(x)), 0); }
#else
SUBSECOND_INLINE float half_to_float(uint16_t half) { return _cvtsh_ss(half); }
SUBSECOND_INLINE float square_root(float x) { return _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(x))); }
#endif

}  // namespace

}  // namespace subsecond::SUBSECOND_ISA
