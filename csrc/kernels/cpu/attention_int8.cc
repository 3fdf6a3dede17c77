// Attention with the int8 KV cache: a scale per token and head for keys and for values.
//
// Owns: kv_int8. Scores: query and keys have 8 bits on scales of their own, their product is an exact s32. Values: a
// probability times its token's value scale, 2^(score + level), is rounded to a u8 of the block's largest, the products
// are exact s32 again. l sums the unrounded probabilities: 2^(score + level) * (1 / scale). AVX-512 takes keys as u8
// (offset 128), for vpdpbusd; NEON takes probabilities as s8 (offset 128); AVX2 uses pmaddwd.
#include <math.h>

#include "attention_tile.h"
#include "parts.h"

namespace subsecond::SUBSECOND_ISA {
namespace {

constexpr float code_limit = 127.0f;
constexpr float p_bits = 7.99435344f;         // log2 of 255, the largest code of a probability
constexpr int64_t quad_bytes = kv_block * 4;  // 64 positions, 4 dimensions each

// A prepared query: the header, then head_dim (padded to 64) values, as s8 or (AVX2) as s16.
struct query_header {
    float scale;
    int32_t offset_sum;  // 128 * (sum of the values): what the offset of the keys adds to every dot product
    uint8_t padding[56];
};
static_assert(sizeof(query_header) == 64, "a prepared row stays 64-byte aligned");

#if defined(__AVX512F__) || defined(__aarch64__)
using QueryCode = int8_t;
#else
using QueryCode = int16_t;
#endif

int64_t query_bytes(int64_t head_dim) {
    return static_cast<int64_t>(sizeof(query_header) +
                                sizeof(QueryCode) * static_cast<size_t>(ceil_div(head_dim, 64) * 64));
}
int64_t keys_bytes(int64_t padded) { return kv_block * padded + 3 * kv_block * 4; }  // and all scales

// The grid of a vector's own: |largest| is code_limit. The scale is NaN when a value is not finite: a broken sequence
// has to stay visible.
struct Grid {
    float scale, inverse;  // inverse 0: all codes are 0
};
Grid grid_of(const float* x, int64_t n) {
    uint32_t bits = 0;  // of the largest magnitude: their order as integers is its own, infinity and NaN on top
    for (int64_t i = 0; i < n; ++i) {
        uint32_t size;
        memcpy(&size, x + i, sizeof size);
        size &= 0x7fffffffu;
        bits = size > bits ? size : bits;
    }
    if (bits >= 0x7f800000u) return {__builtin_nanf(""), 0.0f};
    float largest;
    memcpy(&largest, &bits, sizeof largest);
    if (!(largest > kv_int8_floor)) return {0.0f, 0.0f};
    return {largest / code_limit, code_limit / largest};
}

void query_prepare(const float* q, int64_t head_dim, float scale, void* row) {
    query_header* header = static_cast<query_header*>(row);
    QueryCode* out = reinterpret_cast<QueryCode*>(header + 1);
    const Grid grid = grid_of(q, head_dim);
    memset(row, 0, static_cast<size_t>(query_bytes(head_dim)));
    header->scale = grid.scale * scale;
    if (!(grid.inverse > 0.0f)) return;
    int32_t sum = 0;
    for (int64_t d = 0; d < head_dim; ++d) {
        const int32_t code = static_cast<int32_t>(__builtin_rintf(q[d] * grid.inverse));
        sum += code;
        out[d] = static_cast<QueryCode>(code);
    }
    header->offset_sum = 128 * sum;
}

// Codes of x, padded with zeros.
void encode(const float* x, int64_t head_dim, int64_t padded, float inverse, int8_t* codes) {
    for (int64_t d = 0; d < head_dim; ++d) codes[d] = static_cast<int8_t>(__builtin_rintf(x[d] * inverse));
    for (int64_t d = head_dim; d < padded; ++d) codes[d] = 0;
}

void store_slot(const float* k, const float* v, int64_t head_dim, int64_t slot, void* block) {
    constexpr int64_t piece = 64;
    int8_t codes[piece];
    const int64_t padded = head_dim_padded(head_dim);
    uint8_t* keys = static_cast<uint8_t*>(block);
    uint8_t* values = keys + keys_bytes(padded);
    const Grid k_grid = grid_of(k, head_dim), v_grid = grid_of(v, head_dim);
    const float size = v_grid.scale == 0.0f ? kv_int8_floor : v_grid.scale;
    const float level = log2f(size), inverse = 1.0f / size;
    memcpy(keys + kv_block * padded + slot * 4, &k_grid.scale, sizeof k_grid.scale);
    memcpy(values - 2 * kv_block * 4 + slot * 4, &level, sizeof level);
    memcpy(values - kv_block * 4 + slot * 4, &inverse, sizeof inverse);
    uint8_t* value = values + slot / 4 * padded * 4 + slot % 4;
    for (int64_t first = 0; first < padded; first += piece) {
        const int64_t width = padded - first < piece ? padded - first : piece;
        const int64_t own = head_dim - first < width ? head_dim - first : width;
        encode(k + first, own, width, k_grid.inverse, codes);
        uint8_t* key = keys + first / 4 * quad_bytes + slot * 4;
        for (int64_t j = 0; j < width / 4; ++j) memcpy(key + j * quad_bytes, codes + 4 * j, 4);
        encode(v + first, own, width, v_grid.inverse, codes);
        for (int64_t d = 0; d < width; ++d) value[4 * (first + d)] = static_cast<uint8_t>(codes[d]);
    }
}

#if defined(__AVX512F__)

constexpr int64_t code_bytes = kv_block;
constexpr int code_none = 0;
constexpr int rows_at_once = 6;  // 24 accumulators, 4 stored vectors, 1 broadcast, 1 offset of 32 registers

SUBSECOND_INLINE __m512i broadcast_quad(const uint8_t* p) {
    int32_t quad;
    memcpy(&quad, p, sizeof quad);
    return _mm512_set1_epi32(quad);
}

// acc += four products of u8 and s8 each, in the register where acc lies: left to itself GCC copies the accumulators of
// a loop to others, and to memory when they run out.
SUBSECOND_INLINE void dot_in_place(__m512i& acc, __m512i u, __m512i s) {
    acc = _mm512_dpbusd_epi32(acc, u, s);
    __asm__("" : "+v"(acc));
}

// Scores of R rows against C columns of 16 slots, without the query's scale.
template <int R, int C>
static void score_columns(const uint8_t* query, const uint8_t* keys, const uint8_t* ahead, int64_t head_dim, int first,
                          float* score) {
    const int64_t stride = query_bytes(head_dim);
    const uint8_t* a = query + sizeof(query_header);
    const __m512i offset = _mm512_set1_epi8(static_cast<char>(0x80));
    __m512i acc[R][C];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
        const query_header* header = reinterpret_cast<const query_header*>(query + r * stride);
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c) acc[r][c] = _mm512_set1_epi32(-header->offset_sum);
    }
    for (int64_t j = 0; j < ceil_div(head_dim, 4); ++j) {
        __m512i stored[C];
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c) {
            const int64_t at = j * quad_bytes + (first + c) * 64;
            stored[c] = _mm512_xor_si512(_mm512_loadu_si512(keys + at), offset);
            fetch(ahead, at);
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            const __m512i quad = broadcast_quad(a + r * stride + 4 * j);
#pragma GCC unroll 8
            for (int c = 0; c < C; ++c) dot_in_place(acc[r][c], stored[c], quad);
        }
    }
    const float* scale = reinterpret_cast<const float*>(keys + kv_block * head_dim_padded(head_dim));
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) {
        const f32x16 factor = load(scale + (first + c) * lanes);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) store(score + r * kv_block + (first + c) * lanes, mul(to_float(acc[r][c]), factor));
    }
}

// Four vectors of numbers 0..255 to 64 bytes.
SUBSECOND_INLINE void pack_codes(const f32x16 (&codes)[block_vectors], uint8_t* p) {
    const __m512i low = _mm512_packs_epi32(to_int(codes[0]), to_int(codes[1]));
    const __m512i high = _mm512_packs_epi32(to_int(codes[2]), to_int(codes[3]));
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    _mm512_store_si512(p, _mm512_permutexvar_epi32(order, _mm512_packus_epi16(low, high)));
}

template <int R, int C>
static void value_columns(const uint8_t* p, int64_t p_stride, const uint8_t* values, const uint8_t* ahead,
                          int64_t padded, int64_t first, Span span, float* out) {
    __m512i acc[R][C];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c) acc[r][c] = _mm512_setzero_si512();
    for (int64_t j = span.lo / 4; j < ceil_div(span.hi, 4); ++j) {
        __m512i stored[C];
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c) {
            const int64_t at = (j * padded / lanes + first + c) * 64;
            stored[c] = _mm512_loadu_si512(values + at);
            fetch(ahead, at);
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            const __m512i quad = broadcast_quad(p + r * p_stride + 4 * j);
#pragma GCC unroll 8
            for (int c = 0; c < C; ++c) dot_in_place(acc[r][c], quad, stored[c]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c) store(out + r * padded + (first + c) * lanes, to_float(acc[r][c]));
}

#elif defined(__aarch64__)

constexpr int64_t code_bytes = kv_block;
constexpr int code_none = 128;   // with the offset
constexpr int rows_at_once = 2;  // an accumulator of four registers a row

SUBSECOND_INLINE int8x16_t broadcast_quad(const uint8_t* p) {
    int32_t quad;
    memcpy(&quad, p, sizeof quad);
    return vreinterpretq_s8_s32(vdupq_n_s32(quad));
}

SUBSECOND_INLINE i32x16 no_sums() {
    const int32x4_t none = vdupq_n_s32(0);
    return {none, none, none, none};
}

// 64 stored bytes: 16 slots or channels, four values each.
struct Stored {
    int8x16_t a, b, c, d;
};
SUBSECOND_INLINE Stored load_stored(const uint8_t* p) {
    const int8_t* at = reinterpret_cast<const int8_t*>(p);
    return {vld1q_s8(at), vld1q_s8(at + 16), vld1q_s8(at + 32), vld1q_s8(at + 48)};
}
SUBSECOND_INLINE i32x16 accumulate_quads(i32x16 acc, const Stored& stored, int8x16_t quad) {
    return {dot_quads(acc.a, stored.a, quad), dot_quads(acc.b, stored.b, quad), dot_quads(acc.c, stored.c, quad),
            dot_quads(acc.d, stored.d, quad)};
}
template <int R, int C>
static void score_columns(const uint8_t* query, const uint8_t* keys, const uint8_t* ahead, int64_t head_dim, int first,
                          float* score) {
    static_assert(C == 1, "one vector of slots at a time");
    const int64_t stride = query_bytes(head_dim);
    const uint8_t* a = query + sizeof(query_header);
    i32x16 acc[R];
    for (int r = 0; r < R; ++r) acc[r] = no_sums();
    for (int64_t j = 0; j < ceil_div(head_dim, 4); ++j) {
        const int64_t at = j * quad_bytes + first * 64;
        const Stored stored = load_stored(keys + at);
        fetch(ahead, at);
        for (int r = 0; r < R; ++r) acc[r] = accumulate_quads(acc[r], stored, broadcast_quad(a + r * stride + 4 * j));
    }
    const f32x16 scale =
        load(reinterpret_cast<const float*>(keys + kv_block * head_dim_padded(head_dim)) + first * lanes);
    for (int r = 0; r < R; ++r) store(score + r * kv_block + first * lanes, mul(to_float(acc[r]), scale));
}

// 128 * plain + sums.
SUBSECOND_INLINE i32x16 with_offset(i32x16 plain, i32x16 sums) {
    return {vaddq_s32(vshlq_n_s32(plain.a, 7), sums.a), vaddq_s32(vshlq_n_s32(plain.b, 7), sums.b),
            vaddq_s32(vshlq_n_s32(plain.c, 7), sums.c), vaddq_s32(vshlq_n_s32(plain.d, 7), sums.d)};
}

// Codes 0..255 as s8 with offset 128, which value_columns takes away again.
SUBSECOND_INLINE void pack_codes(const f32x16 (&codes)[block_vectors], uint8_t* p) {
    for (int v = 0; v < block_vectors; ++v) {
        const i32x16 whole = to_int(codes[v]);
        const int16x8_t lo = vcombine_s16(vmovn_s32(whole.a), vmovn_s32(whole.b));
        const int16x8_t hi = vcombine_s16(vmovn_s32(whole.c), vmovn_s32(whole.d));
        const uint8x16_t bytes = vreinterpretq_u8_s8(vcombine_s8(vmovn_s16(lo), vmovn_s16(hi)));
        vst1q_u8(p + v * lanes, veorq_u8(bytes, vdupq_n_u8(128)));
    }
}

// sum(code * v) = sum((code - 128) * v) + 128 * sum(v): one more dot product for all rows together.
template <int R, int C>
static void value_columns(const uint8_t* p, int64_t p_stride, const uint8_t* values, const uint8_t* ahead,
                          int64_t padded, int64_t first, Span span, float* out) {
    static_assert(C == 1, "one vector of channels at a time");
    const int8x16_t ones = vdupq_n_s8(1);
    i32x16 acc[R], plain = no_sums();
    for (int r = 0; r < R; ++r) acc[r] = no_sums();
    for (int64_t j = span.lo / 4; j < ceil_div(span.hi, 4); ++j) {
        const int64_t at = (j * padded / lanes + first) * 64;
        const Stored stored = load_stored(values + at);
        fetch(ahead, at);
        plain = accumulate_quads(plain, stored, ones);
        for (int r = 0; r < R; ++r) acc[r] = accumulate_quads(acc[r], stored, broadcast_quad(p + r * p_stride + 4 * j));
    }
    for (int r = 0; r < R; ++r) store(out + r * padded + first * lanes, to_float(with_offset(plain, acc[r])));
}

#else

constexpr int64_t code_bytes = kv_block * 2;
constexpr int code_none = 0;
constexpr int rows_at_once = 2;  // four accumulators of half the slots each a row

SUBSECOND_INLINE __m256i broadcast_quad(const uint8_t* p) {
    int64_t quad;
    memcpy(&quad, p, sizeof quad);
    return _mm256_set1_epi64x(quad);
}

// acc[r][i]: channels (or slots) 4i..4i+3, two partial sums each, of 16 neighbours whose quads lie at b.
template <int R>
SUBSECOND_INLINE void accumulate_quads(__m256i (&acc)[R][4], const uint8_t* a, int64_t a_stride, const uint8_t* b) {
    for (int i = 0; i < 4; ++i) {
        const __m256i stored = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(b + 16 * i)));
        for (int r = 0; r < R; ++r)
            acc[r][i] = _mm256_add_epi32(acc[r][i], _mm256_madd_epi16(stored, broadcast_quad(a + r * a_stride)));
    }
}

SUBSECOND_INLINE f32x16 fold_quads(const __m256i (&acc)[4]) {
    const __m256i order = _mm256_setr_epi32(0, 1, 4, 5, 2, 3, 6, 7);
    const __m256i lo = _mm256_permutevar8x32_epi32(_mm256_hadd_epi32(acc[0], acc[1]), order);
    const __m256i hi = _mm256_permutevar8x32_epi32(_mm256_hadd_epi32(acc[2], acc[3]), order);
    return to_float(i32x16{lo, hi});
}

template <int R, int C>
static void score_columns(const uint8_t* query, const uint8_t* keys, const uint8_t* ahead, int64_t head_dim, int first,
                          float* score) {
    static_assert(C == 1, "one vector of slots at a time");
    const int64_t stride = query_bytes(head_dim);
    const float* scale = reinterpret_cast<const float*>(keys + kv_block * head_dim_padded(head_dim));
    __m256i acc[R][4];
    for (int r = 0; r < R; ++r)
        for (int i = 0; i < 4; ++i) acc[r][i] = _mm256_setzero_si256();
    for (int64_t j = 0; j < ceil_div(head_dim, 4); ++j) {
        const int64_t at = j * quad_bytes + first * 64;
        fetch(ahead, at);
        accumulate_quads<R>(acc, query + sizeof(query_header) + 8 * j, stride, keys + at);
    }
    for (int r = 0; r < R; ++r)
        store(score + r * kv_block + first * lanes, mul(fold_quads(acc[r]), load(scale + first * lanes)));
}

SUBSECOND_INLINE void pack_codes(const f32x16 (&codes)[block_vectors], uint8_t* p) {
    for (int v = 0; v < block_vectors; ++v) {
        const i32x16 whole = to_int(codes[v]);
        const __m256i packed = _mm256_permute4x64_epi64(_mm256_packs_epi32(whole.lo, whole.hi), 0xd8);
        _mm256_store_si256(reinterpret_cast<__m256i*>(p + v * lanes * 2), packed);
    }
}

template <int R, int C>
static void value_columns(const uint8_t* p, int64_t p_stride, const uint8_t* values, const uint8_t* ahead,
                          int64_t padded, int64_t first, Span span, float* out) {
    static_assert(C == 1, "one vector of channels at a time");
    __m256i acc[R][4];
    for (int r = 0; r < R; ++r)
        for (int i = 0; i < 4; ++i) acc[r][i] = _mm256_setzero_si256();
    for (int64_t j = span.lo / 4; j < ceil_div(span.hi, 4); ++j) {
        const int64_t at = (j * padded / lanes + first) * 64;
        fetch(ahead, at);
        accumulate_quads<R>(acc, p + 8 * j, p_stride, values + at);
    }
    for (int r = 0; r < R; ++r) store(out + r * padded + first * lanes, fold_quads(acc[r]));
}

#endif

struct Int8Kernel {
    static constexpr int tile_rows = rows_at_once;  // more would spill registers
    static constexpr int64_t p_bytes = code_bytes;
    static constexpr int p_none = code_none;
    static int64_t query_bytes(int64_t head_dim) { return SUBSECOND_ISA::query_bytes(head_dim); }
    static int64_t part_bytes(int64_t padded) { return keys_bytes(padded); }

    template <int R>
    static void scores(const uint8_t* query, const uint8_t* keys, const uint8_t* ahead, int64_t head_dim, int first,
                       int last, float* score) {
        if (tile_columns == block_vectors && last - first == block_vectors) {
            score_columns<R, tile_columns>(query, keys, ahead, head_dim, 0, score);
        } else {
            for (int c = first; c < last; ++c) score_columns<R, 1>(query, keys, ahead, head_dim, c, score);
        }
    }

    static float score_scale(const uint8_t* query) { return reinterpret_cast<const query_header*>(query)->scale; }

    // y = log2(probability * value scale), up to a constant: codes are 2^(y - largest y) in steps of 1/255 (which m and
    // l contain). Rows go side by side: each is a chain of two reductions.
    template <int R, bool whole>
    static __attribute__((noinline)) void soften(float* score, const float* factor, const int32_t* lo,
                                                 const int32_t* hi, const uint8_t* values, uint8_t* p, float* m,
                                                 float* l) {
        const float* inverse = reinterpret_cast<const float*>(values) - kv_block;
        const float* level = inverse - kv_block;
        float top[R];
        for (int r = 0; r < R; ++r) {
            const f32x16 scale = set1(factor[r] * log2_e);
            f32x16 y[block_vectors];
            for (int v = 0; v < block_vectors; ++v) {
                float* at = score + r * kv_block + lanes * v;
                y[v] = fma(load(at), scale, load(level + lanes * v));
                if (!whole) y[v] = select(view_of(lo[r], hi[r]), v, y[v], set1(minus_infinity));
                store(at, y[v]);
            }
            top[r] = reduce_max(max(max(y[0], y[1]), max(y[2], y[3]))) - p_bits;
        }
        for (int r = 0; r < R; ++r) {
            f32x16 codes[block_vectors], sum = zero();
            for (int v = 0; v < block_vectors; ++v) {
                const View view = view_of(lo[r], hi[r]);
                codes[v] = fast_exp2(sub(load(score + r * kv_block + lanes * v), set1(top[r])));
                f32x16 unit = load(inverse + lanes * v);
                if (!whole) {
                    codes[v] = select(view, v, codes[v], zero());
                    unit = select(view, v, unit, zero());
                }
                sum = fma(codes[v], unit, sum);
            }
            m[r] = top[r] * ln_2;
            l[r] = reduce_add(sum);
            pack_codes(codes, p + r * p_bytes);
        }
    }

    // Codes of slots that no row sees are 0, and 0 times any stored byte is 0: no edges to mask.
    template <int R>
    static void values(const uint8_t* p, const uint8_t* values, const uint8_t* ahead, int64_t padded, Span span,
                       float* out) {
        const int64_t vectors = padded / lanes;
        int64_t v = 0;
        for (; v + tile_columns <= vectors; v += tile_columns)
            value_columns<R, tile_columns>(p, p_bytes, values, ahead, padded, v, span, out);
        for (; v < vectors; ++v) value_columns<R, 1>(p, p_bytes, values, ahead, padded, v, span, out);
    }
};

}  // namespace

const KvKernel kv_int8 = {query_bytes, query_prepare, store_slot, attend_rows<Int8Kernel>};

}  // namespace subsecond::SUBSECOND_ISA
