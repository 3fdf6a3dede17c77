// The dots of int8 weights, for the kernels of int8 and int8_split.
//
// Owns: the dots and the order of float operations of an output and a group. Weights are stored with offset 128, so a
// dot starts at -128 * sum(activations), which the prepared row holds:
//   sum = fma(float(dot), weight_scale * act_scale, sum)
#pragma once
#include "linear_int.h"

namespace subsecond::SUBSECOND_ISA {
namespace {

template <typename AnyBlock>
struct Int8Of {
    using Block = AnyBlock;
    using Cursor = const Block*;
    static constexpr int64_t block_bytes = sizeof(Block), near_bytes = 0;

    static Cursor start(Tiles weight) { return static_cast<Cursor>(weight.first); }
    static const char* address(Cursor at) { return reinterpret_cast<const char*>(at); }

#if defined(__AVX512VNNI__)

    static constexpr int max_tiles = 2, max_rows = 4, most_rows = 6;

    template <int rows, int tiles>
    SUBSECOND_INLINE void dots(const Block* weight, int64_t groups, const act_group* act, int64_t act_stride,
                               i32x16 (&dot)[rows][tiles]) {
        for (int r = 0; r < rows; ++r) {
            const __m512i start = _mm512_set1_epi32(act_at(act, r * act_stride)->offset_dot);
            for (int t = 0; t < tiles; ++t) dot[r][t] = start;
        }
#pragma GCC unroll 8
        for (int j = 0; j < 8; ++j) {
            __m512i w[tiles];
            for (int t = 0; t < tiles; ++t) w[t] = _mm512_loadu_si512(weight[t * groups].quant + 64 * j);
            for (int r = 0; r < rows; ++r) {
                const __m512i a = _mm512_set1_epi32(quad_of(act_at(act, r * act_stride), j));
                for (int t = 0; t < tiles; ++t) dot[r][t] = _mm512_dpbusd_epi32(dot[r][t], w[t], a);
            }
        }
    }

#elif defined(__aarch64__)

    static constexpr int max_tiles = 1, max_rows = 4, most_rows = 4;

    // Flipping the top bit takes the offset away: q - 128 as s8, so nothing has to be corrected afterwards.
    template <int rows, int tiles>
    SUBSECOND_INLINE void dots(const Block* weight, int64_t groups, const act_group* act, int64_t act_stride,
                               i32x16 (&dot)[rows][tiles]) {
        for (int t = 0; t < tiles; ++t) {
            i32x16 sum[rows];
            for (int r = 0; r < rows; ++r) sum[r] = {vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0)};
#pragma GCC unroll 4
            for (int j = 0; j < 8; j += 2) {
                const uint8_t* quant = weight[t * groups].quant + 64 * j;
                for (int r = 0; r < rows; ++r) {
                    const act_group* group = act_at(act, r * act_stride);
                    const int8x16_t a = broadcast_quad(group, j), b = broadcast_quad(group, j + 1);
                    sum[r] = {pair_dots(sum[r].a, quant, a, b), pair_dots(sum[r].b, quant + 16, a, b),
                              pair_dots(sum[r].c, quant + 32, a, b), pair_dots(sum[r].d, quant + 48, a, b)};
                }
            }
            for (int r = 0; r < rows; ++r) dot[r][t] = sum[r];
        }
    }

    // Four channels of a quad and of the next one. (Activations are never -128.)
    SUBSECOND_INLINE int32x4_t pair_dots(int32x4_t sum, const uint8_t* quant, int8x16_t a, int8x16_t b) {
        return dot_two_quads(sum, without_offset(quant), a, without_offset(quant + 64), b);
    }

    SUBSECOND_INLINE int8x16_t without_offset(const uint8_t* quant) {
        return vreinterpretq_s8_u8(veorq_u8(vld1q_u8(quant), vdupq_n_u8(128)));
    }

#else

    static constexpr int max_tiles = 1, max_rows = 2, most_rows = 2;

    // vpmaddubsw would saturate on 255 * 127 * 2, so weights are cut into nibbles: the eight products of a pair of
    // K positions then fit 16 bits (8 * 2 * 15 * 127 < 32768), and the halves join as 1 * low + 16 * high when widened.
    template <int rows>
    SUBSECOND_INLINE void half_dots(const uint8_t* quant, const act_group* act, int64_t act_stride,
                                    __m256i (&dot)[rows]) {
        const __m256i nibble = _mm256_set1_epi8(15), one = _mm256_set1_epi16(1), sixteen = _mm256_set1_epi16(16);
        __m256i low[rows], high[rows];
        for (int r = 0; r < rows; ++r) low[r] = high[r] = _mm256_setzero_si256();
#pragma GCC unroll 8
        for (int j = 0; j < 8; ++j) {
            const __m256i w = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(quant + 64 * j));
            const __m256i w_low = _mm256_and_si256(w, nibble);
            const __m256i w_high = _mm256_and_si256(_mm256_srli_epi16(w, 4), nibble);
            for (int r = 0; r < rows; ++r) {
                const __m256i a = _mm256_set1_epi32(quad_of(act_at(act, r * act_stride), j));
                add_in_place(low[r], _mm256_maddubs_epi16(w_low, a));
                add_in_place(high[r], _mm256_maddubs_epi16(w_high, a));
            }
        }
        for (int r = 0; r < rows; ++r) {
            const __m256i start = _mm256_set1_epi32(act_at(act, r * act_stride)->offset_dot);
            const __m256i low_dot = _mm256_madd_epi16(low[r], one), high_dot = _mm256_madd_epi16(high[r], sixteen);
            dot[r] = _mm256_add_epi32(start, _mm256_add_epi32(low_dot, high_dot));
        }
    }

    template <int rows, int tiles>
    SUBSECOND_INLINE void dots(const Block* weight, int64_t groups, const act_group* act, int64_t act_stride,
                               i32x16 (&dot)[rows][tiles]) {
        for (int t = 0; t < tiles; ++t) {
            __m256i lo[rows], hi[rows];
            half_dots<rows>(weight[t * groups].quant, act, act_stride, lo);
            half_dots<rows>(weight[t * groups].quant + 32, act, act_stride, hi);
            for (int r = 0; r < rows; ++r) dot[r][t] = {lo[r], hi[r]};
        }
    }

#endif

    template <int rows, int tiles>
    SUBSECOND_INLINE void fold(const Block* weight, int64_t groups, const act_group* act, int64_t act_stride,
                               const i32x16 (&dot)[rows][tiles], f32x16 (&sum)[rows][tiles]) {
        for (int t = 0; t < tiles; ++t) {
            const f32x16 scale = from_half(weight[t * groups].scale);
            for (int r = 0; r < rows; ++r) {
                const f32x16 both = times_power(scale, act_at(act, r * act_stride)->scale);
                sum[r][t] = fma(to_float(dot[r][t]), both, sum[r][t]);
            }
        }
    }
};

using Int8 = Int8Of<block_int8>;

}  // namespace
}  // namespace subsecond::SUBSECOND_ISA
