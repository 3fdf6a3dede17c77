// The passes over a row of logits that sampling needs.
//
// Owns: argmax, exp_sum and exp_weights. They give the same bits in every instruction set (the exponential by the
// operations of ../exp2.h, sums in 16 lanes by index modulo 16), so that a draw does too.
#include "../exp2.h"
#include "isa.h"
#include "parts.h"
#include "reduce.h"

namespace subsecond::SUBSECOND_ISA {
namespace {

constexpr int64_t argmax_chunk = 64 * lanes;

#if defined(__AVX512F__)
SUBSECOND_INLINE f32x16 power_of_two(f32x16 whole) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(to_int(whole), _mm512_set1_epi32(127)), 23));
}
SUBSECOND_INLINE void store_int(uint32_t* p, i32x16 x) { _mm512_storeu_si512(p, x); }
#elif defined(__aarch64__)
SUBSECOND_INLINE f32x16 power_of_two(f32x16 whole) { return power_of_two(to_int(whole)); }
SUBSECOND_INLINE void store_int(uint32_t* p, i32x16 x) {
    vst1q_u32(p, vreinterpretq_u32_s32(x.a));
    vst1q_u32(p + 4, vreinterpretq_u32_s32(x.b));
    vst1q_u32(p + 8, vreinterpretq_u32_s32(x.c));
    vst1q_u32(p + 12, vreinterpretq_u32_s32(x.d));
}
#else
SUBSECOND_INLINE void store_int(uint32_t* p, i32x16 x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x.lo);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 8), x.hi);
}
SUBSECOND_INLINE f32x16 power_of_two(f32x16 whole) {
    const i32x16 n = to_int(whole);
    return {power_half(n.lo), power_half(n.hi)};
}
#endif

SUBSECOND_INLINE f32x16 exp2_vector(f32x16 y) {
    y = min(max(y, set1(-exp2_limit)), set1(exp2_limit));
    const f32x16 whole = round_even(y), f = sub(y, whole);
    f32x16 p = set1(exp2_coefficient[6]);
    p = add(mul(p, f), set1(exp2_coefficient[5]));
    p = add(mul(p, f), set1(exp2_coefficient[4]));
    p = add(mul(p, f), set1(exp2_coefficient[3]));
    p = add(mul(p, f), set1(exp2_coefficient[2]));
    p = add(mul(p, f), set1(exp2_coefficient[1]));
    p = add(mul(p, f), set1(exp2_coefficient[0]));
    return mul(p, power_of_two(whole));
}

// Largest value of a whole chunk; *nan is set when there is one.
SUBSECOND_INLINE float chunk_max(const float* x, bool* nan) {
    f32x16 a = load(x), b = load(x + lanes);
    bool broken = any_nan(a, b);
    for (int64_t i = 2 * lanes; i < argmax_chunk; i += 2 * lanes) {
        const f32x16 c = load(x + i), d = load(x + i + lanes);
        broken |= any_nan(c, d);
        a = max(a, c);
        b = max(b, d);
    }
    *nan |= broken;
    return reduce_max(max(a, b));
}

}  // namespace

// The largest value and its first index; a NaN anywhere gives (NaN, -1).
void argmax(const float* x, int64_t n, float* value, int64_t* index) {
    float best = -__builtin_inff();
    int64_t chunk = 0, i = 0;
    bool nan = false;
    for (; i + argmax_chunk <= n; i += argmax_chunk) {
        const float largest = chunk_max(x + i, &nan);
        if (largest > best) {
            best = largest;
            chunk = i;
        }
    }
    for (; i < n; ++i) {
        nan |= x[i] != x[i];
        if (x[i] > best) {
            best = x[i];
            chunk = i;
        }
    }
    if (nan || n == 0) {
        *value = nan ? __builtin_nanf("") : best;
        *index = -1;
        return;
    }
    while (x[chunk] != best) ++chunk;
    *value = best;
    *index = chunk;
}

float exp_sum(const float* x, int64_t n, float shift, float inv_temperature) {
    const f32x16 factor = set1(inv_temperature * log2_e), from = set1(shift);
    f32x16 sum = zero();
    int64_t i = 0;
    for (; i + lanes <= n; i += lanes) sum = add(sum, exp2_vector(mul(sub(load(x + i), from), factor)));
    if (i < n) {
        float last[lanes] = {};
        store_first(last, exp2_vector(mul(sub(load_first(x + i, n - i), from), factor)), n - i);
        sum = add(sum, load(last));
    }
    return reduce_add(sum);
}

void exp_weights(const float* x, int64_t n, float shift, float inv_temperature, uint32_t* weights) {
    const f32x16 factor = set1(inv_temperature * log2_e), from = set1(shift), one = set1(weight_one);
    int64_t i = 0;
    for (; i + lanes <= n; i += lanes)
        store_int(weights + i, to_int(mul(exp2_vector(mul(sub(load(x + i), from), factor)), one)));
    if (i < n) {
        uint32_t last[lanes];
        store_int(last, to_int(mul(exp2_vector(mul(sub(load_first(x + i, n - i), from), factor)), one)));
        for (int64_t j = 0; i + j < n; ++j) weights[i + j] = last[j];
    }
}

}  // namespace subsecond::SUBSECOND_ISA
