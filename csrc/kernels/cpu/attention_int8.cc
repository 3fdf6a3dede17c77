// Attention with the int8 KV cache: a scale per token and head for keys and for values.
//
// Owns: kv_int8. Scores: the query has 16 bits on its own scale and keys 8, so their product is an exact s32 and only
// the keys' rounding is lost. Values: probabilities times the token's value scale are rounded to u8 on a scale per row
// and block, the products are exact s32 again. l sums the unrounded probabilities. AVX-512 splits the query into two s8
// halves and takes keys as u8 (offset 128), for vpdpbusd; NEON splits it too and takes probabilities as s8 (offset
// 128); AVX2 uses pmaddwd.
#include "attention_tile.h"
#include "parts.h"

namespace subsecond::SUBSECOND_ISA {
namespace {

constexpr float query_limit = 32512.0f;  // 127 * 256: the high half stays within s8 after rounding
constexpr float p_limit = 255.0f;
constexpr int64_t quad_bytes = kv_block * 4;  // 64 positions, 4 dimensions each

// A prepared query: the header, then head_dim (padded to 64) values as s16, or as all high halves, then all low ones.
struct query_header {
    float scale;
    int32_t offset_sum;  // 128 * (sum of the values): what the offset of the keys adds to every dot product
    uint8_t padding[56];
};
static_assert(sizeof(query_header) == 64, "a prepared row stays 64-byte aligned");

int64_t query_width(int64_t head_dim) { return ceil_div(head_dim, 64) * 64; }
int64_t query_bytes(int64_t head_dim) { return static_cast<int64_t>(sizeof(query_header)) + 2 * query_width(head_dim); }
int64_t part_bytes(int64_t padded) { return kv_block * padded + kv_block * 4; }

// |largest| of x, or NaN when a value is not finite: a broken sequence has to stay visible.
float finite_absmax(const float* x, int64_t n) {
    float largest = 0.0f;
    for (int64_t i = 0; i < n; ++i) {
        const float size = __builtin_fabsf(x[i]);
        if (!(size <= 3.4028234e38f)) return __builtin_nanf("");
        largest = size > largest ? size : largest;
    }
    return largest;
}

void query_prepare(const float* q, int64_t head_dim, float scale, void* row) {
    query_header* header = static_cast<query_header*>(row);
    memset(row, 0, static_cast<size_t>(query_bytes(head_dim)));
    const float largest = finite_absmax(q, head_dim), inverse = largest > 1e-30f ? query_limit / largest : 0.0f;
    header->scale = inverse > 0.0f ? largest / query_limit * scale : largest != largest ? largest : 0.0f;
    int32_t sum = 0;
    for (int64_t d = 0; d < head_dim && inverse > 0.0f; ++d) {
        const int32_t value = static_cast<int32_t>(__builtin_rintf(q[d] * inverse));
        sum += value;
#if defined(__AVX512F__) || defined(__aarch64__)
        int8_t* high = reinterpret_cast<int8_t*>(header + 1);
        high[d] = static_cast<int8_t>((value + 128) >> 8);
        high[query_width(head_dim) + d] = static_cast<int8_t>(value - (((value + 128) >> 8) << 8));
#else
        reinterpret_cast<int16_t*>(header + 1)[d] = static_cast<int16_t>(value);
#endif
    }
    header->offset_sum = 128 * sum;
}

void store_slot(const float* k, const float* v, int64_t head_dim, int64_t slot, void* block) {
    const int64_t padded = head_dim_padded(head_dim);
    uint8_t* part = static_cast<uint8_t*>(block);
    for (int which = 0; which < 2; ++which, part += part_bytes(padded)) {
        const float* x = which == 0 ? k : v;
        uint8_t* out = part + (which == 0 ? slot * 4 : slot / 4 * padded * 4 + slot % 4);
        const int64_t step = which == 0 ? quad_bytes : 16, inner = which == 0 ? 1 : 4;
        const float largest = finite_absmax(x, head_dim), inverse = largest > 1e-30f ? 127.0f / largest : 0.0f;
        const float scale = inverse > 0.0f ? largest / 127.0f : largest != largest ? largest : 0.0f;
        memcpy(part + kv_block * padded + slot * 4, &scale, sizeof scale);
        for (int64_t d = 0; d < padded; ++d) {
            const bool zeroed = d >= head_dim || !(inverse > 0.0f);
            const int32_t code = zeroed ? 0 : static_cast<int32_t>(__builtin_rintf(x[d] * inverse));
            out[d / 4 * step + d % 4 * inner] = static_cast<uint8_t>(static_cast<int8_t>(code));
        }
    }
}

#if defined(__AVX512F__)

constexpr int64_t code_bytes = kv_block;
constexpr int score_vectors = 2;  // columns at once, a high and a low accumulator a row each

SUBSECOND_INLINE __m512i broadcast_quad(const uint8_t* p) {
    int32_t quad;
    memcpy(&quad, p, sizeof quad);
    return _mm512_set1_epi32(quad);
}

// Integer scores of R rows against C columns of 16 slots, scaled.
template <int R, int C>
static void score_columns(const uint8_t* query, const uint8_t* keys, const uint8_t* ahead, int64_t head_dim, int first,
                          float* score) {
    const int64_t stride = query_bytes(head_dim), width = query_width(head_dim);
    const uint8_t* a = query + sizeof(query_header);
    const __m512i offset = _mm512_set1_epi8(static_cast<char>(0x80));
    __m512i high[R][C], low[R][C];
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < C; ++c) high[r][c] = low[r][c] = _mm512_setzero_si512();
    for (int64_t j = 0; j < ceil_div(head_dim, 4); ++j) {
        __m512i stored[C];
        for (int c = 0; c < C; ++c) {
            const int64_t at = j * quad_bytes + (first + c) * 64;
            stored[c] = _mm512_xor_si512(_mm512_loadu_si512(keys + at), offset);
            fetch(ahead, at);
        }
        for (int r = 0; r < R; ++r) {
            const __m512i q_high = broadcast_quad(a + r * stride + 4 * j);
            for (int c = 0; c < C; ++c) high[r][c] = _mm512_dpbusd_epi32(high[r][c], stored[c], q_high);
            const __m512i q_low = broadcast_quad(a + r * stride + width + 4 * j);
            for (int c = 0; c < C; ++c) low[r][c] = _mm512_dpbusd_epi32(low[r][c], stored[c], q_low);
        }
    }
    const float* scale = reinterpret_cast<const float*>(keys + kv_block * head_dim_padded(head_dim));
    for (int r = 0; r < R; ++r) {
        const query_header* header = reinterpret_cast<const query_header*>(query + r * stride);
        for (int c = 0; c < C; ++c) {
            const __m512i sum = _mm512_sub_epi32(_mm512_add_epi32(_mm512_slli_epi32(high[r][c], 8), low[r][c]),
                                                 _mm512_set1_epi32(header->offset_sum));
            const f32x16 factor = mul(load(scale + (first + c) * lanes), set1(header->scale));
            store(score + r * kv_block + (first + c) * lanes, mul(to_float(sum), factor));
        }
    }
}

SUBSECOND_INLINE void pack_codes(const f32x16 (&codes)[block_vectors], uint8_t* p) {
    for (int v = 0; v < block_vectors; ++v)
        _mm_store_si128(reinterpret_cast<__m128i*>(p + v * lanes), _mm512_cvtepi32_epi8(to_int(codes[v])));
}

template <int R, int C>
static void value_columns(const uint8_t* p, int64_t p_stride, const uint8_t* values, const uint8_t* ahead,
                          int64_t padded, int64_t first, Span span, float* out) {
    __m512i acc[R][C];
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < C; ++c) acc[r][c] = _mm512_setzero_si512();
    for (int64_t j = span.lo / 4; j < ceil_div(span.hi, 4); ++j) {
        __m512i stored[C];
        for (int c = 0; c < C; ++c) {
            const int64_t at = (j * padded / lanes + first + c) * 64;
            stored[c] = _mm512_loadu_si512(values + at);
            fetch(ahead, at);
        }
        for (int r = 0; r < R; ++r) {
            const __m512i quad = broadcast_quad(p + r * p_stride + 4 * j);
            for (int c = 0; c < C; ++c) acc[r][c] = _mm512_dpbusd_epi32(acc[r][c], quad, stored[c]);
        }
    }
    for (int r = 0; r < R; ++r) {
        const f32x16 step = set1(*reinterpret_cast<const float*>(p + r * p_stride + code_bytes));
        for (int c = 0; c < C; ++c) store(out + r * padded + (first + c) * lanes, mul(to_float(acc[r][c]), step));
    }
}

#elif defined(__aarch64__)

constexpr int64_t code_bytes = kv_block;
constexpr int score_vectors = 1;  // columns at once, a high and a low accumulator of four registers each a row

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
// high * 2^bits + low.
template <int bits>
SUBSECOND_INLINE i32x16 joined(i32x16 high, i32x16 low) {
    return {vaddq_s32(vshlq_n_s32(high.a, bits), low.a), vaddq_s32(vshlq_n_s32(high.b, bits), low.b),
            vaddq_s32(vshlq_n_s32(high.c, bits), low.c), vaddq_s32(vshlq_n_s32(high.d, bits), low.d)};
}

template <int R, int C>
static void score_columns(const uint8_t* query, const uint8_t* keys, const uint8_t* ahead, int64_t head_dim, int first,
                          float* score) {
    static_assert(C == 1, "one vector of slots at a time");
    const int64_t stride = query_bytes(head_dim), width = query_width(head_dim);
    const uint8_t* a = query + sizeof(query_header);
    i32x16 high[R], low[R];
    for (int r = 0; r < R; ++r) high[r] = low[r] = no_sums();
    for (int64_t j = 0; j < ceil_div(head_dim, 4); ++j) {
        const int64_t at = j * quad_bytes + first * 64;
        const Stored stored = load_stored(keys + at);
        fetch(ahead, at);
        for (int r = 0; r < R; ++r) {
            high[r] = accumulate_quads(high[r], stored, broadcast_quad(a + r * stride + 4 * j));
            low[r] = accumulate_quads(low[r], stored, broadcast_quad(a + r * stride + width + 4 * j));
        }
    }
    const float* scale = reinterpret_cast<const float*>(keys + kv_block * head_dim_padded(head_dim));
    for (int r = 0; r < R; ++r) {
        const float q_scale = reinterpret_cast<const query_header*>(query + r * stride)->scale;
        const f32x16 factor = mul(load(scale + first * lanes), set1(q_scale));
        store(score + r * kv_block + first * lanes, mul(to_float(joined<8>(high[r], low[r])), factor));
    }
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
    for (int r = 0; r < R; ++r) {
        const f32x16 step = set1(*reinterpret_cast<const float*>(p + r * p_stride + code_bytes));
        // A row that sees nothing has step 0: + 0.0f makes the sign of its zeros the same in every tile.
        store(out + r * padded + first * lanes, add(mul(to_float(joined<7>(plain, acc[r])), step), zero()));
    }
}

#else

constexpr int64_t code_bytes = kv_block * 2;
constexpr int score_vectors = 1;  // columns at once, four accumulators of half the slots each a row

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
    for (int r = 0; r < R; ++r) {
        const float q_scale = reinterpret_cast<const query_header*>(query + r * stride)->scale;
        const f32x16 factor = mul(load(scale + first * lanes), set1(q_scale));
        store(score + r * kv_block + first * lanes, mul(fold_quads(acc[r]), factor));
    }
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
    for (int r = 0; r < R; ++r) {
        const f32x16 step = set1(*reinterpret_cast<const float*>(p + r * p_stride + code_bytes));
        store(out + r * padded + first * lanes, mul(fold_quads(acc[r]), step));
    }
}

#endif

struct Int8Kernel {
    static constexpr int tile_rows = 2 * score_vectors;  // more would spill registers
    static constexpr int64_t p_bytes = code_bytes + 64;  // codes, then their step as f32
    static int64_t query_bytes(int64_t head_dim) { return SUBSECOND_ISA::query_bytes(head_dim); }
    static int64_t part_bytes(int64_t padded) { return SUBSECOND_ISA::part_bytes(padded); }

    template <int R>
    static void scores(const uint8_t* query, const uint8_t* keys, const uint8_t* ahead, int64_t head_dim, int first,
                       int last, float* score) {
        for (int c = first / score_vectors * score_vectors; c < last; c += score_vectors)
            score_columns<R, score_vectors>(query, keys, ahead, head_dim, c, score);
    }

    // exp(s - m) times the scale of the value, in u8 steps; l is the sum of exp(s - m).
    static __attribute__((noinline)) void soften(const float* score, View view, float softcap, const uint8_t* values,
                                                 int64_t padded, uint8_t* p, float* m, float* l) {
        const float* value_scale = reinterpret_cast<const float*>(values + kv_block * padded);
        f32x16 s[block_vectors], e[block_vectors], codes[block_vectors];
        *m = load_scores(score, view, softcap, s);
        for (int v = 0; v < block_vectors; ++v) {
            e[v] = select(view, v, fast_exp(s[v], set1(*m)), zero());
            codes[v] = select(view, v, mul(e[v], load(value_scale + lanes * v)), zero());
        }
        *l = reduce_sum(e);
        const float largest = reduce_max(max(max(codes[0], codes[1]), max(codes[2], codes[3])));
        const f32x16 inverse = set1(largest > 1e-30f ? p_limit / largest : 0.0f);
        // A NaN (a broken value scale) would be lost on the way to integers: it goes on in the step.
        const bool broken = any_nan(codes[0], codes[1]) || any_nan(codes[2], codes[3]);
        const float step = broken ? __builtin_nanf("") : largest / p_limit;
        memcpy(p + code_bytes, &step, sizeof step);
        for (int v = 0; v < block_vectors; ++v) codes[v] = mul(codes[v], inverse);
        pack_codes(codes, p);
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
