// Products with int4 weights.
//
// Owns: the unpacking of nibbles, and the order of float operations of an output and a group:
//   sum = fma(float(dot), weight_scale * act_scale, sum);  sum = fma(weight_minimum, act_scale * act_sum, sum)
#include "linear_int.h"

namespace subsecond::SUBSECOND_ISA {
namespace {

struct Int4 {
    using Block = block_int4;
    using Cursor = const Block*;
    static constexpr int64_t block_bytes = sizeof(Block), near_bytes = 12 << 10;

    static Cursor start(Tiles weight) { return static_cast<Cursor>(weight.first); }
    static const char* address(Cursor at) { return reinterpret_cast<const char*>(at); }

#if defined(__AVX512VNNI__)

    static constexpr int max_tiles = 2, max_rows = 4, most_rows = 6;

    template <int rows, int tiles>
    SUBSECOND_INLINE void dots(const Block* weight, int64_t groups, const act_group* act, int64_t act_stride,
                               i32x16 (&dot)[rows][tiles]) {
        const __m512i nibble = _mm512_set1_epi8(15);
        for (int r = 0; r < rows; ++r)
            for (int t = 0; t < tiles; ++t) dot[r][t] = _mm512_setzero_si512();
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
            __m512i low[tiles], high[tiles];
            for (int t = 0; t < tiles; ++t) {
                const __m512i both = _mm512_loadu_si512(weight[t * groups].quant + 64 * j);
                low[t] = _mm512_and_si512(both, nibble);
                high[t] = _mm512_and_si512(_mm512_srli_epi16(both, 4), nibble);
            }
            for (int r = 0; r < rows; ++r) {
                const act_group* group = act_at(act, r * act_stride);
                const __m512i a = _mm512_set1_epi32(quad_of(group, j)), b = _mm512_set1_epi32(quad_of(group, j + 4));
                for (int t = 0; t < tiles; ++t) dot[r][t] = _mm512_dpbusd_epi32(dot[r][t], low[t], a);
                for (int t = 0; t < tiles; ++t) dot[r][t] = _mm512_dpbusd_epi32(dot[r][t], high[t], b);
            }
        }
    }

#elif defined(__aarch64__)

    static constexpr int max_tiles = 1, max_rows = 4, most_rows = 4;

    template <int rows, int tiles>
    SUBSECOND_INLINE void dots(const Block* weight, int64_t groups, const act_group* act, int64_t act_stride,
                               i32x16 (&dot)[rows][tiles]) {
        const uint8x16_t nibble = vdupq_n_u8(15);
        for (int t = 0; t < tiles; ++t) {
            i32x16 sum[rows];
            for (int r = 0; r < rows; ++r) sum[r] = {vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0)};
#pragma GCC unroll 4
            for (int j = 0; j < 4; ++j) {
                const uint8_t* quant = weight[t * groups].quant + 64 * j;
                const uint8x16_t q0 = vld1q_u8(quant), q1 = vld1q_u8(quant + 16), q2 = vld1q_u8(quant + 32),
                                 q3 = vld1q_u8(quant + 48);
                for (int r = 0; r < rows; ++r) {
                    const act_group* group = act_at(act, r * act_stride);
                    const int8x16_t a = broadcast_quad(group, j), b = broadcast_quad(group, j + 4);
                    sum[r].a = nibble_dots(sum[r].a, q0, nibble, a, b);
                    sum[r].b = nibble_dots(sum[r].b, q1, nibble, a, b);
                    sum[r].c = nibble_dots(sum[r].c, q2, nibble, a, b);
                    sum[r].d = nibble_dots(sum[r].d, q3, nibble, a, b);
                }
            }
            for (int r = 0; r < rows; ++r) dot[r][t] = sum[r];
        }
    }

    SUBSECOND_INLINE int32x4_t nibble_dots(int32x4_t sum, uint8x16_t both, uint8x16_t nibble, int8x16_t a,
                                           int8x16_t b) {
        const int8x16_t low = vreinterpretq_s8_u8(vandq_u8(both, nibble));
        return dot_two_quads(sum, low, a, vreinterpretq_s8_u8(vshrq_n_u8(both, 4)), b);
    }

#else

    static constexpr int max_tiles = 1, max_rows = 2, most_rows = 2;

    // The eight products of a pair of K positions fit 16 bits (8 * 2 * 15 * 127 < 32768): widened once a group.
    template <int rows, int tiles>
    SUBSECOND_INLINE void dots(const Block* weight, int64_t groups, const act_group* act, int64_t act_stride,
                               i32x16 (&dot)[rows][tiles]) {
        const __m256i nibble = _mm256_set1_epi8(15), one = _mm256_set1_epi16(1);
        for (int t = 0; t < tiles; ++t) {
            i32x16 sum[rows];
            for (int r = 0; r < rows; ++r) sum[r] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
#pragma GCC unroll 4
            for (int j = 0; j < 4; ++j) {
                const __m256i* quant = reinterpret_cast<const __m256i*>(weight[t * groups].quant + 64 * j);
                const __m256i lo = _mm256_loadu_si256(quant), hi = _mm256_loadu_si256(quant + 1);
                const __m256i low_lo = _mm256_and_si256(lo, nibble), low_hi = _mm256_and_si256(hi, nibble);
                const __m256i high_lo = _mm256_and_si256(_mm256_srli_epi16(lo, 4), nibble);
                const __m256i high_hi = _mm256_and_si256(_mm256_srli_epi16(hi, 4), nibble);
                for (int r = 0; r < rows; ++r) {
                    const act_group* group = act_at(act, r * act_stride);
                    const __m256i a = _mm256_set1_epi32(quad_of(group, j));
                    const __m256i b = _mm256_set1_epi32(quad_of(group, j + 4));
                    add_in_place(sum[r].lo, _mm256_maddubs_epi16(low_lo, a));
                    add_in_place(sum[r].hi, _mm256_maddubs_epi16(low_hi, a));
                    add_in_place(sum[r].lo, _mm256_maddubs_epi16(high_lo, b));
                    add_in_place(sum[r].hi, _mm256_maddubs_epi16(high_hi, b));
                }
            }
            for (int r = 0; r < rows; ++r)
                dot[r][t] = {_mm256_madd_epi16(sum[r].lo, one), _mm256_madd_epi16(sum[r].hi, one)};
        }
    }

#endif

    template <int rows, int tiles>
    SUBSECOND_INLINE void fold(const Block* weight, int64_t groups, const act_group* act, int64_t act_stride,
                               const i32x16 (&dot)[rows][tiles], f32x16 (&sum)[rows][tiles]) {
        for (int t = 0; t < tiles; ++t) {
            const f32x16 scale = from_half(weight[t * groups].scale), minimum = from_half(weight[t * groups].minimum);
            for (int r = 0; r < rows; ++r) {
                const act_group* group = act_at(act, r * act_stride);
                sum[r][t] = fma(to_float(dot[r][t]), times_power(scale, group->scale), sum[r][t]);
                sum[r][t] = fma(minimum, set1(group->scaled_sum), sum[r][t]);
            }
        }
    }
};

void lookup(Tiles weight, int64_t index, int64_t k, float* out) {
    const block_int4* tile = Int4::start(weight) + index / tile_channels * ceil_div(k, group_int);
    const int64_t c = index % tile_channels;
    for (int64_t i = 0; i < k; ++i) {
        const block_int4& b = tile[i / group_int];
        const int64_t quad = i % group_int / 4;
        const uint8_t byte = b.quant[64 * (quad % 4) + 4 * c + i % 4];
        const float q = static_cast<float>(quad < 4 ? byte & 15 : byte >> 4);
        out[i] = __builtin_fmaf(half_to_float(b.scale[c]), q, half_to_float(b.minimum[c]));
    }
}

}  // namespace

const LinearKernel linear_int4 = {act_bytes_int, act_prepare_int, product<Int4>, lookup};

}  // namespace subsecond::SUBSECOND_ISA
