// Products with int8_split weights, and the bounds of them that the upper six bits give.
//
// Owns: joining the two parts in registers, and the bounds. The float operations of a product are int8's own, so its
// results are too. Those of a bound, of an output and a group (u: the values without their lower two bits):
//   sum = fma(float(dot of u), weight_scale * act_scale, sum);   sum = fma(weight_scale, 1.5 * scaled_sum, sum)
#include "linear_int8.h"
#include "reduce.h"

namespace subsecond::SUBSECOND_ISA {
namespace {

constexpr int64_t half_upper = 192, half_lower = 64;  // bytes of half a group

// int8's block where lines of the cache begin.
struct alignas(64) JoinedBlock {
    uint8_t quant[tile_channels * group_int];
    uint16_t scale[tile_channels];
};

using Joined = Int8Of<JoinedBlock>;

struct SplitCursor {
    const block_split_upper* upper;
    const block_split_lower* lower;  // nullptr: the lower bits count as zeros
};
SUBSECOND_INLINE SplitCursor operator+(SplitCursor at, int64_t blocks) {
    return {at.upper + blocks, at.lower == nullptr ? nullptr : at.lower + blocks};
}
SUBSECOND_INLINE void operator++(SplitCursor& at) { at = at + 1; }

#if defined(__AVX512VNNI__)

// Bits of x where the mask has ones, else of y.
SUBSECOND_INLINE __m512i choose(__m512i mask, __m512i x, __m512i y) {
    return _mm512_ternarylogic_epi32(mask, x, y, 0xca);
}

// The values of half a group, four quads; `with_lower` or their upper bits alone. Shifts of 16-bit lanes do for bytes,
// because what crosses over is masked.
template <bool with_lower>
SUBSECOND_INLINE void unpack_half(const uint8_t* upper, const uint8_t* lower, __m512i (&w)[4]) {
    const __m512i six = _mm512_set1_epi8(static_cast<char>(0xfc));
    const __m512i two = _mm512_set1_epi8(static_cast<char>(0xc0)), four = _mm512_set1_epi8(static_cast<char>(0xf0));
    const __m512i a = _mm512_loadu_si512(upper), b = _mm512_loadu_si512(upper + 64),
                  c = _mm512_loadu_si512(upper + 128);
    const __m512i fourth =
        choose(four, choose(two, _mm512_slli_epi16(a, 6), _mm512_slli_epi16(b, 4)), _mm512_slli_epi16(c, 2));
    if constexpr (with_lower) {
        const __m512i rest = _mm512_loadu_si512(lower);
        w[0] = choose(six, a, rest);
        w[1] = choose(six, b, _mm512_srli_epi16(rest, 2));
        w[2] = choose(six, c, _mm512_srli_epi16(rest, 4));
        w[3] = choose(six, fourth, _mm512_srli_epi16(rest, 6));
    } else {
        w[0] = _mm512_and_si512(a, six);
        w[1] = _mm512_and_si512(b, six);
        w[2] = _mm512_and_si512(c, six);
        w[3] = _mm512_and_si512(fourth, six);
    }
}

// `joined`, unless it is nullptr: where int8's values of tile t go, [t * groups].
template <bool with_lower, int rows, int tiles>
SUBSECOND_INLINE void split_dots(SplitCursor weight, int64_t groups, const act_group* act, int64_t act_stride,
                                 i32x16 (&dot)[rows][tiles], JoinedBlock* joined = nullptr) {
    for (int r = 0; r < rows; ++r) {
        const __m512i start = _mm512_set1_epi32(act_at(act, r * act_stride)->offset_dot);
        for (int t = 0; t < tiles; ++t) dot[r][t] = start;
    }
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
        __m512i w[tiles][4];
        for (int t = 0; t < tiles; ++t)
            unpack_half<with_lower>(weight.upper[t * groups].quant + half_upper * half,
                                    with_lower ? weight.lower[t * groups].quant + half_lower * half : nullptr, w[t]);
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
            for (int t = 0; t < tiles && joined != nullptr; ++t)
                _mm512_store_si512(joined[t * groups].quant + 64 * (4 * half + j), w[t][j]);
            for (int r = 0; r < rows; ++r) {
                const __m512i a = _mm512_set1_epi32(quad_of(act_at(act, r * act_stride), 4 * half + j));
                for (int t = 0; t < tiles; ++t) dot[r][t] = _mm512_dpbusd_epi32(dot[r][t], w[t][j], a);
            }
        }
    }
}

#else

// Other instruction sets bring a block into int8's form in the first-level cache. (These loops become vectors.)
template <bool with_lower>
SUBSECOND_INLINE void unpack(SplitCursor weight, JoinedBlock* block) {
    for (int half = 0; half < 2; ++half) {
        const uint8_t* six = weight.upper->quant + half_upper * half;
        const uint8_t* rest = with_lower ? weight.lower->quant + half_lower * half : nullptr;
        uint8_t* quant = block->quant + 256 * half;
        for (int i = 0; i < 64; ++i) {
            const uint8_t low = with_lower ? rest[i] : 0;
            const uint8_t fourth = static_cast<uint8_t>(six[i] << 6 | (six[64 + i] & 3) << 4 | (six[128 + i] & 3) << 2);
            quant[i] = static_cast<uint8_t>((six[i] & 0xfc) | (low & 3));
            quant[64 + i] = static_cast<uint8_t>((six[64 + i] & 0xfc) | (low >> 2 & 3));
            quant[128 + i] = static_cast<uint8_t>((six[128 + i] & 0xfc) | (low >> 4 & 3));
            quant[192 + i] = static_cast<uint8_t>(fourth | low >> 6);
        }
    }
}

template <bool with_lower, int rows, int tiles>
SUBSECOND_INLINE void split_dots(SplitCursor weight, int64_t groups, const act_group* act, int64_t act_stride,
                                 i32x16 (&dot)[rows][tiles], JoinedBlock* joined = nullptr) {
    for (int t = 0; t < tiles; ++t) {
        JoinedBlock own;
        JoinedBlock* block = joined != nullptr ? joined + t * groups : &own;
        i32x16 one[rows][1];
        unpack<with_lower>(weight + t * groups, block);
        Joined::dots<rows, 1>(block, 1, act, act_stride, one);
        for (int r = 0; r < rows; ++r) dot[r][t] = one[r][0];
    }
}

#endif

struct Int8Split {
    using Cursor = SplitCursor;
    static constexpr int64_t block_bytes = sizeof(block_split_upper), near_bytes = 0;
    static constexpr int max_tiles = Int8::max_tiles, max_rows = Int8::max_rows, most_rows = Int8::most_rows;

    static Cursor start(Tiles weight) {
        return {static_cast<const block_split_upper*>(weight.first),
                static_cast<const block_split_lower*>(weight.lower)};
    }
    static const char* address(Cursor at) { return reinterpret_cast<const char*>(at.upper); }

    template <int rows, int tiles>
    SUBSECOND_INLINE void dots(Cursor weight, int64_t groups, const act_group* act, int64_t act_stride,
                               i32x16 (&dot)[rows][tiles]) {
        split_dots<true, rows, tiles>(weight, groups, act, act_stride, dot);
    }

    template <int rows, int tiles>
    SUBSECOND_INLINE void fold(Cursor weight, int64_t groups, const act_group* act, int64_t act_stride,
                               const i32x16 (&dot)[rows][tiles], f32x16 (&sum)[rows][tiles]) {
        for (int t = 0; t < tiles; ++t) {
            const f32x16 scale = from_half(weight.upper[t * groups].scale);
            for (int r = 0; r < rows; ++r) {
                const f32x16 both = times_power(scale, act_at(act, r * act_stride)->scale);
                sum[r][t] = fma(to_float(dot[r][t]), both, sum[r][t]);
            }
        }
    }
};

// The first rows of many: what they unpack, the others find in int8's form.
struct Int8Joining : Int8Split {
    struct Cursor {
        SplitCursor from;
        JoinedBlock* to;
    };

    template <int rows, int tiles>
    SUBSECOND_INLINE void dots(Cursor weight, int64_t groups, const act_group* act, int64_t act_stride,
                               i32x16 (&dot)[rows][tiles]) {
        for (int t = 0; t < tiles; ++t) {
            const SplitCursor next = weight.from + (tiles + t) * groups;
            fetch_to_l2(next.lower->quant);
            fetch_to_l2(next.lower->quant + 64);
            __builtin_memcpy(weight.to[t * groups].scale, weight.from.upper[t * groups].scale, sizeof weight.to->scale);
        }
        split_dots<true, rows, tiles>(weight.from, groups, act, act_stride, dot, weight.to);
    }

    template <int rows, int tiles>
    SUBSECOND_INLINE void fold(Cursor weight, int64_t groups, const act_group* act, int64_t act_stride,
                               const i32x16 (&dot)[rows][tiles], f32x16 (&sum)[rows][tiles]) {
        Int8Split::fold<rows, tiles>(weight.from, groups, act, act_stride, dot, sum);
    }
};
SUBSECOND_INLINE void operator++(Int8Joining::Cursor& at) {
    ++at.from;
    ++at.to;
}

// With many rows the joining would cost as much as the dots if it were done for every few of them: the first ones leave
// the tiles in int8's form in a buffer that stays in the first or second level cache, as long as one fits.
void product_joined(Tiles weight, int64_t tiles, int64_t k, const void* act, int64_t m, float* out,
                    int64_t out_stride) {
    constexpr int64_t few_rows = 4, buffer_blocks = 128;
    const int64_t groups = ceil_div(k, group_int), act_stride = act_bytes_int(k);
    if (m <= few_rows || groups > buffer_blocks) {
        product<Int8Split>(weight, tiles, k, act, m, out, out_stride);
        return;
    }
    JoinedBlock joined[buffer_blocks];
    const SplitCursor w = Int8Split::start(weight);
    const act_group* a = static_cast<const act_group*>(act);
    constexpr int64_t first_rows = Int8::max_rows;
    const int64_t passes = 1 + passes_of<Joined>(m - first_rows);
    const int64_t most = Int8::max_tiles * groups <= buffer_blocks ? Int8::max_tiles : 1;
    for (int64_t t = 0, taken = 0; t < tiles; t += taken) {
        const bool wide = t + most <= tiles && most > 1;
        taken = wide ? most : 1;
        Ahead ahead = ahead_of<Int8Split>(w + (t + taken) * groups, taken, groups, passes);
        float* first_out = out + t * lanes;
        const BlockFunction<Int8Joining> join =
            wide ? block<Int8Joining, first_rows, Int8::max_tiles> : block<Int8Joining, first_rows, 1>;
        join({w + t * groups, joined}, groups, a, act_stride, first_out, out_stride, ahead.from, ahead.lines,
             ahead.near);
        for (int64_t r = first_rows, rows = 0; r < m; r += rows) {
            ahead.pass(groups);
            rows = m - r <= Int8::most_rows ? m - r : Int8::max_rows;
            const BlockFunction<Joined> run =
                wide ? block_of<Joined, Int8::max_tiles>(rows) : block_of<Joined, 1>(rows);
            run(joined, groups, act_at(a, r * act_stride), act_stride, first_out + r * out_stride, out_stride,
                ahead.from, ahead.lines, ahead.near);
        }
    }
}

void lookup(Tiles weight, int64_t index, int64_t k, float* out) {
    const SplitCursor tile = Int8Split::start(weight) + index / tile_channels * ceil_div(k, group_int);
    const int64_t c = index % tile_channels;
    for (int64_t i = 0; i < k; ++i) {
        const block_split_upper& upper = tile.upper[i / group_int];
        const int64_t quad = i % group_int / 4, half = quad / 4, j = quad % 4, byte = 4 * c + i % 4;
        const uint8_t* six = upper.quant + half_upper * half + byte;
        const int high = j < 3 ? six[64 * j] & 0xfc : (six[0] & 3) << 6 | (six[64] & 3) << 4 | (six[128] & 3) << 2;
        const int low = tile.lower[i / group_int].quant[half_lower * half + byte] >> 2 * j & 3;
        out[i] = half_to_float(upper.scale[c]) * static_cast<float>((high | low) - 128);
    }
}

// Where a value or how far it may be off is no number, the whole tile's bounds are none.
SUBSECOND_INLINE void bounds(f32x16 sum, f32x16 reach, float* high, float* low) {
    const f32x16 highest = add(sum, reach), lowest = sub(sum, reach);
    // x - x is NaN for what is not finite.
    const bool broken = any_nan(sub(highest, highest), sub(lowest, lowest));
    *high = broken ? __builtin_nanf("") : reduce_max(highest);
    *low = broken ? __builtin_nanf("") : reduce_max(lowest);
}

template <int rows>
void screen_rows(SplitCursor weight, const float* radius, int64_t tiles, int64_t k, const act_group* act,
                 int64_t act_stride, float* high, float* low, int64_t stride) {
    const int64_t groups = ceil_div(k, group_int);
    float norm[rows];
    for (int r = 0; r < rows; ++r) {
        norm[r] = act_norm_int(act_at(act, r * act_stride), k);
        if (!(norm[r] <= screen_norm_limit)) norm[r] = __builtin_nanf("");
    }
    for (int64_t t = 0; t < tiles; ++t, radius += lanes) {
        f32x16 sum[rows];
        for (int r = 0; r < rows; ++r) sum[r] = zero();
        const act_group* group = act;
        for (int64_t g = 0; g < groups; ++g, ++weight, ++group) {
            i32x16 dot[rows][1];
            split_dots<false, rows, 1>(weight, groups, group, act_stride, dot);
            const f32x16 scale = from_half(weight.upper->scale);
            for (int r = 0; r < rows; ++r) {
                const act_group* own = act_at(group, r * act_stride);
                sum[r] = fma(to_float(dot[r][0]), times_power(scale, own->scale), sum[r]);
                sum[r] = fma(scale, set1(1.5f * own->scaled_sum), sum[r]);
            }
        }
        const f32x16 own_radius = load(radius), floor = set1(screen_floor);
        for (int r = 0; r < rows; ++r)
            bounds(sum[r], fma(own_radius, set1(norm[r]), floor), high + r * stride + t, low + r * stride + t);
    }
}

void screen(Tiles weight, const float* radius, int64_t tiles, int64_t k, const void* act, int64_t m, float* high,
            float* low, int64_t stride) {
    const SplitCursor upper = {static_cast<const block_split_upper*>(weight.first), nullptr};
    const act_group* row = static_cast<const act_group*>(act);
    const int64_t act_stride = act_bytes_int(k);
    if (m == 1)
        screen_rows<1>(upper, radius, tiles, k, row, act_stride, high, low, stride);
    else if (m == 2)
        screen_rows<2>(upper, radius, tiles, k, row, act_stride, high, low, stride);
}

}  // namespace

float act_norm_int(const void* row, int64_t k) {
    const act_group* groups = static_cast<const act_group*>(row);
    double sum = 0;
    for (int64_t g = 0; g < ceil_div(k, group_int); ++g) {
        int32_t squares = 0;
        for (int64_t i = 0; i < group_int; ++i) squares += groups[g].value[i] * groups[g].value[i];
        sum += static_cast<double>(groups[g].scale) * static_cast<double>(groups[g].scale) * squares;
    }
    return static_cast<float>(__builtin_sqrt(sum) * act_norm_margin);
}

const LinearKernel linear_int8_split = {act_bytes_int, act_prepare_int, product_joined, lookup, screen};

}  // namespace subsecond::SUBSECOND_ISA
