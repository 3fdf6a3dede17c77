// Brings an activation row onto the grid of the integer formats (activation_row.h).
//
// Owns: the quantization, group by group along K, from the row's own values alone. Eight groups go together, so that
// their maxima and sums are reduced side by side; both reductions are exact, so which groups go together shows nowhere.
// AVX-512 uses the 256-bit code too: this work is bound by shuffles and by the number of instructions, not by width.
#include "isa.h"

namespace subsecond::SUBSECOND_ISA {
namespace {

#if defined(__aarch64__)

// NEON reduces a vector in one instruction, so groups go one by one.
constexpr int together = 1;

SUBSECOND_INLINE int8x8_t quantize(float32x4_t lo, float32x4_t hi, float inverse) {
    const int32x4_t a = vcvtnq_s32_f32(vmulq_n_f32(lo, inverse)), b = vcvtnq_s32_f32(vmulq_n_f32(hi, inverse));
    return vqmovn_s16(vcombine_s16(vqmovn_s32(a), vqmovn_s32(b)));
}

// The largest |x| of a vector as bits: their order as integers is that of the magnitudes, infinity and NaN on top.
SUBSECOND_INLINE uint32x4_t magnitude_bits(float32x4_t x) { return vreinterpretq_u32_f32(vabsq_f32(x)); }

template <int count>
void prepare_groups(const float* x, act_group* group) {
    static_assert(count == 1);
    float32x4_t v[8];
    uint32x4_t largest = vdupq_n_u32(0);
    for (int i = 0; i < 8; ++i) {
        v[i] = vld1q_f32(x + 4 * i);
        largest = vmaxq_u32(largest, magnitude_bits(v[i]));
    }
    const uint32_t bits = vmaxvq_u32(largest);
    float absmax;
    __builtin_memcpy(&absmax, &bits, sizeof absmax);
    if (!(absmax >= act_absmax_floor) || bits >= 0x7f800000u) {
        __builtin_memset(group, 0, sizeof *group);
        if (bits >= 0x7f800000u) group->scale = group->scaled_sum = __builtin_nanf("");
        return;
    }
    const int32x4_t least = vreinterpretq_s32_f32(vdupq_n_f32(absmax / 127.0f));
    const int32x4_t power = vandq_s32(vaddq_s32(least, vdupq_n_s32(round_up_to_power)), vdupq_n_s32(exponent_bits));
    const float scale = vgetq_lane_f32(vreinterpretq_f32_s32(power), 0), inverse = 1.0f / scale;
    int16x8_t sums = vdupq_n_s16(0);
    for (int i = 0; i < 4; ++i) {
        const int8x8_t value = quantize(v[2 * i], v[2 * i + 1], inverse);
        vst1_s8(group->value + 8 * i, value);
        sums = vaddw_s8(sums, value);
    }
    const int32_t sum = vaddlvq_s16(sums);
    group->scale = scale;
    group->scaled_sum = scale * static_cast<float>(sum);
    group->offset_dot = -128 * sum;
}

#else

constexpr int together = 8;

struct Max {
    SUBSECOND_INLINE __m256i of(__m256i a, __m256i b) { return _mm256_max_epu32(a, b); }
};
struct Sum {
    SUBSECOND_INLINE __m256i of(__m256i a, __m256i b) { return _mm256_add_epi32(a, b); }
};

template <int low, int high>
SUBSECOND_INLINE __m256i halves(__m256i a, __m256i b, int which) {
    const __m256 x = _mm256_castsi256_ps(a), y = _mm256_castsi256_ps(b);
    return _mm256_castps_si256(which == 0 ? _mm256_shuffle_ps(x, y, low) : _mm256_shuffle_ps(x, y, high));
}

// Lane g of the result is v[g] reduced over its eight lanes.
template <typename Op>
SUBSECOND_INLINE __m256i reduce_each(const __m256i (&v)[together]) {
    __m256i pair[4], four[2];
    for (int i = 0; i < 4; ++i)
        pair[i] = Op::of(_mm256_permute2x128_si256(v[2 * i], v[2 * i + 1], 0x20),
                         _mm256_permute2x128_si256(v[2 * i], v[2 * i + 1], 0x31));
    for (int i = 0; i < 2; ++i)
        four[i] = Op::of(halves<0x44, 0xee>(pair[2 * i], pair[2 * i + 1], 0),
                         halves<0x44, 0xee>(pair[2 * i], pair[2 * i + 1], 1));
    const __m256i eight = Op::of(halves<0x88, 0xdd>(four[0], four[1], 0), halves<0x88, 0xdd>(four[0], four[1], 1));
    return _mm256_permutevar8x32_epi32(eight, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

// The largest |x| of a group's lane as bits: their order as integers is that of the magnitudes, infinity and NaN on
// top.
SUBSECOND_INLINE __m256i largest_magnitude(const float* x) {
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
    __m256i v[4];
    for (int i = 0; i < 4; ++i) v[i] = _mm256_and_si256(_mm256_castps_si256(_mm256_loadu_ps(x + 8 * i)), magnitude);
    return _mm256_max_epu32(_mm256_max_epu32(v[0], v[1]), _mm256_max_epu32(v[2], v[3]));
}

SUBSECOND_INLINE __m256i quantize(const float* x, float inverse) {
    const __m256 by = _mm256_set1_ps(inverse);
    __m256i v[4];
    for (int i = 0; i < 4; ++i) v[i] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 8 * i), by));
    const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(v[0], v[1]), _mm256_packs_epi32(v[2], v[3]));
    return _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

SUBSECOND_INLINE __m256i sums_of_four(__m256i bytes) {
    return _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_set1_epi8(1), bytes), _mm256_set1_epi16(1));
}

// Groups x[32 g ..) for g < count.
template <int count>
void prepare_groups(const float* x, act_group* groups) {
    __m256i reduced[together], value[count];
    for (int g = 0; g < together; ++g)
        reduced[g] = g < count ? largest_magnitude(x + group_int * g) : _mm256_setzero_si256();
    const __m256i bits = reduce_each<Max>(reduced);
    const __m256 absmax = _mm256_castsi256_ps(bits);
    const __m256 counts = _mm256_cmp_ps(absmax, _mm256_set1_ps(act_absmax_floor), _CMP_GE_OQ);
    const __m256i least = _mm256_castps_si256(_mm256_div_ps(absmax, _mm256_set1_ps(127.0f)));
    const __m256i power = _mm256_and_si256(_mm256_add_epi32(least, _mm256_set1_epi32(round_up_to_power)),
                                           _mm256_set1_epi32(exponent_bits));
    const __m256 scale = _mm256_and_ps(counts, _mm256_castsi256_ps(power)), one = _mm256_set1_ps(1.0f);
    alignas(32) float inverse[together], scales[together], scaled_sums[together];
    alignas(32) int32_t offset_dots[together];
    _mm256_store_ps(inverse, _mm256_and_ps(counts, _mm256_div_ps(one, scale)));
    for (int g = 0; g < count; ++g) {
        value[g] = quantize(x + group_int * g, inverse[g]);
        reduced[g] = sums_of_four(value[g]);
    }
    const __m256i sum = reduce_each<Sum>(reduced);
    _mm256_store_ps(scales, scale);
    _mm256_store_ps(scaled_sums, _mm256_mul_ps(scale, _mm256_cvtepi32_ps(sum)));
    _mm256_store_si256(reinterpret_cast<__m256i*>(offset_dots),
                       _mm256_sub_epi32(_mm256_setzero_si256(), _mm256_slli_epi32(sum, 7)));
    for (int g = 0; g < count; ++g) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(groups[g].value), value[g]);
        groups[g].scale = scales[g];
        groups[g].scaled_sum = scaled_sums[g];
        groups[g].offset_dot = offset_dots[g];
    }
    const __m256i finite = _mm256_cmpgt_epi32(_mm256_set1_epi32(0x7f800000), bits);
    if (_mm256_movemask_epi8(finite) == -1) return;
    alignas(32) int32_t magnitude[together];
    _mm256_store_si256(reinterpret_cast<__m256i*>(magnitude), bits);
    for (int g = 0; g < count; ++g)
        if (magnitude[g] >= 0x7f800000) {
            __builtin_memset(groups + g, 0, sizeof *groups);
            groups[g].scale = groups[g].scaled_sum = __builtin_nanf("");
        }
}

#endif

}  // namespace

int64_t act_bytes_int(int64_t k) {
    return ceil_div(ceil_div(k, group_int) * static_cast<int64_t>(sizeof(act_group)), 64) * 64;
}

void act_prepare_int(const float* x, int64_t k, void* row) {
#if defined(__aarch64__)
    constexpr void (*prepare[])(const float*, act_group*) = {nullptr, prepare_groups<1>};
#else
    constexpr void (*prepare[])(const float*, act_group*) = {nullptr,           prepare_groups<1>, prepare_groups<2>,
                                                             prepare_groups<3>, prepare_groups<4>, prepare_groups<5>,
                                                             prepare_groups<6>, prepare_groups<7>, prepare_groups<8>};
#endif
    act_group* groups = static_cast<act_group*>(row);
    for (int64_t left = k / group_int; left > 0; left -= together) {
        const int64_t count = left < together ? left : together;
        prepare[count](x, groups);
        x += group_int * count;
        groups += count;
    }
    if (k % group_int == 0) return;
    alignas(64) float last[group_int] = {};
    __builtin_memcpy(last, x, static_cast<size_t>(k % group_int) * sizeof(float));
    prepare[1](last, groups);
}

}  // namespace subsecond::SUBSECOND_ISA
