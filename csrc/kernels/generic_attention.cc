// Attention over stored KV blocks and the two reductions of sampling, as plain loops.
//
// Owns: the generic versions that every vector version is compared with. They keep queries and probabilities in f32 and
// widen stored values, so they are also the most exact ones. Knows nothing of pages, sequences or heads.
//
// A slot outside a row's [lo, hi) is never read: a fresh or recycled page may hold anything there, NaN included.
#include <math.h>
#include <string.h>

#include "exp2.h"
#include "ops.h"

namespace subsecond::generic {

extern const KvKernel kv_f32, kv_bf16, kv_int8;
void attend_merge(float* m, float* l, float* acc, const float* m2, const float* l2, const float* acc2, int64_t rows,
                  int64_t head_dim);
void argmax(const float* x, int64_t n, float* value, int64_t* index);
float exp_sum(const float* x, int64_t n, float shift, float inv_temperature);
void exp_weights(const float* x, int64_t n, float shift, float inv_temperature, uint32_t* weights);

namespace {

float float_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

uint16_t bf16_of(float value) {
    const uint32_t bits = bits_of(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);  // stays a NaN
    return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

int64_t query_bytes(int64_t head_dim) { return ceil_div(head_dim * 4, 64) * 64; }

void query_prepare(const float* q, int64_t head_dim, float scale, void* row) {
    float* out = static_cast<float*>(row);
    for (int64_t d = 0; d < head_dim; ++d) out[d] = q[d] * scale;
}

// One view a format: where the value of (slot, channel) lies in a block, read and written.
struct ViewF32 {
    static float key(const void* block, int64_t, int64_t slot, int64_t d) {
        return static_cast<const float*>(block)[d * kv_block + slot];
    }
    static float value(const void* block, int64_t padded, int64_t slot, int64_t d) {
        return static_cast<const float*>(block)[(kv_block + slot) * padded + d];
    }
    static void store(const float* k, const float* v, int64_t head_dim, int64_t slot, void* block) {
        const int64_t padded = head_dim_padded(head_dim);
        float* keys = static_cast<float*>(block);
        float* values = keys + kv_block * padded + slot * padded;
        for (int64_t d = 0; d < padded; ++d) {
            keys[d * kv_block + slot] = d < head_dim ? k[d] : 0.0f;
            values[d] = d < head_dim ? v[d] : 0.0f;
        }
    }
};

struct ViewBf16 {
    static int64_t key_at(int64_t slot, int64_t d) { return ((d / 2) * kv_block + slot) * 2 + d % 2; }
    static int64_t value_at(int64_t padded, int64_t slot, int64_t d) {
        return kv_block * padded + ((slot / 2) * padded + d) * 2 + slot % 2;
    }
    static float key(const void* block, int64_t, int64_t slot, int64_t d) {
        return float_of(static_cast<uint32_t>(static_cast<const uint16_t*>(block)[key_at(slot, d)]) << 16);
    }
    static float value(const void* block, int64_t padded, int64_t slot, int64_t d) {
        return float_of(static_cast<uint32_t>(static_cast<const uint16_t*>(block)[value_at(padded, slot, d)]) << 16);
    }
    static void store(const float* k, const float* v, int64_t head_dim, int64_t slot, void* block) {
        const int64_t padded = head_dim_padded(head_dim);
        uint16_t* out = static_cast<uint16_t*>(block);
        for (int64_t d = 0; d < padded; ++d) {
            out[key_at(slot, d)] = d < head_dim ? bf16_of(k[d]) : 0;
            out[value_at(padded, slot, d)] = d < head_dim ? bf16_of(v[d]) : 0;
        }
    }
};

struct ViewInt8 {
    static int64_t key_at(int64_t slot, int64_t d) { return ((d / 4) * kv_block + slot) * 4 + d % 4; }
    static int64_t value_at(int64_t padded, int64_t slot, int64_t d) {
        return ((slot / 4) * padded + d) * 4 + slot % 4;
    }
    static int64_t keys_bytes(int64_t padded) { return kv_block * padded + 3 * kv_block * 4; }  // and all scales
    static float key(const void* block, int64_t padded, int64_t slot, int64_t d) {
        const uint8_t* keys = static_cast<const uint8_t*>(block);
        float scale;
        memcpy(&scale, keys + kv_block * padded + slot * 4, sizeof scale);
        return scale * static_cast<float>(static_cast<int8_t>(keys[key_at(slot, d)]));
    }
    static float value(const void* block, int64_t padded, int64_t slot, int64_t d) {
        const uint8_t* values = static_cast<const uint8_t*>(block) + keys_bytes(padded);
        float inverse;
        memcpy(&inverse, values - kv_block * 4 + slot * 4, sizeof inverse);
        return static_cast<float>(static_cast<int8_t>(values[value_at(padded, slot, d)])) / inverse;
    }
    // The scale is absmax / 127, for vectors below `floor` 0; NaN when a value is not finite, so that a broken sequence
    // stays visible.
    static float quantize(const float* x, int64_t n, float* inverse) {
        float largest = 0.0f;
        bool finite = true;
        for (int64_t i = 0; i < n; ++i) {
            const float size = fabsf(x[i]);
            finite = finite && size <= 3.4028234e38f;
            largest = size > largest ? size : largest;
        }
        *inverse = finite && largest > kv_int8_floor ? 127.0f / largest : 0.0f;
        if (!finite) return float_of(0x7fc00000u);
        return *inverse > 0.0f ? largest / 127.0f : 0.0f;
    }
    static void store(const float* k, const float* v, int64_t head_dim, int64_t slot, void* block) {
        const int64_t padded = head_dim_padded(head_dim);
        uint8_t* keys = static_cast<uint8_t*>(block);
        uint8_t* values = keys + keys_bytes(padded);
        float k_inverse, v_inverse;
        const float k_scale = quantize(k, head_dim, &k_inverse), v_scale = quantize(v, head_dim, &v_inverse);
        const float size = v_scale == 0.0f ? kv_int8_floor : v_scale, level = log2f(size), inverse = 1.0f / size;
        memcpy(keys + kv_block * padded + slot * 4, &k_scale, 4);
        memcpy(values - 2 * kv_block * 4 + slot * 4, &level, 4);
        memcpy(values - kv_block * 4 + slot * 4, &inverse, 4);
        for (int64_t d = 0; d < padded; ++d) {
            keys[key_at(slot, d)] = code(d < head_dim ? k[d] : 0.0f, k_inverse);
            values[value_at(padded, slot, d)] = code(d < head_dim ? v[d] : 0.0f, v_inverse);
        }
    }
    static uint8_t code(float x, float inverse) {
        return inverse > 0.0f ? static_cast<uint8_t>(static_cast<int8_t>(lrintf(x * inverse))) : 0;
    }
};

template <typename View>
void attend_row(const float* q, const void* block, int64_t head_dim, int64_t lo, int64_t hi, float softcap, float* m,
                float* l, float* acc) {
    const int64_t padded = head_dim_padded(head_dim);
    float score[kv_block];
    float largest = -INFINITY, sum = 0.0f;
    for (int64_t slot = lo; slot < hi; ++slot) {
        float s = 0.0f;
        for (int64_t d = 0; d < head_dim; ++d) s += q[d] * View::key(block, padded, slot, d);
        score[slot] = softcap > 0.0f ? softcap * tanhf(s / softcap) : s;
        largest = score[slot] > largest ? score[slot] : largest;
    }
    for (int64_t d = 0; d < padded; ++d) acc[d] = 0.0f;
    for (int64_t slot = lo; slot < hi; ++slot) {
        const float p = expf(score[slot] - largest);
        sum += p;
        for (int64_t d = 0; d < padded; ++d) acc[d] += p * View::value(block, padded, slot, d);
    }
    *m = largest;
    *l = sum;
}

template <typename View>
void attend(const void* query, int64_t rows, const void* block, const void* /*next*/, int64_t head_dim,
            const int32_t* lo, const int32_t* hi, float softcap, float* m, float* l, float* acc) {
    const int64_t stride = query_bytes(head_dim), padded = head_dim_padded(head_dim);
    for (int64_t r = 0; r < rows; ++r) {
        const float* q = reinterpret_cast<const float*>(static_cast<const uint8_t*>(query) + r * stride);
        attend_row<View>(q, block, head_dim, lo[r], hi[r], softcap, m + r, l + r, acc + r * padded);
    }
}

}  // namespace

const KvKernel kv_f32 = {query_bytes, query_prepare, ViewF32::store, attend<ViewF32>};
const KvKernel kv_bf16 = {query_bytes, query_prepare, ViewBf16::store, attend<ViewBf16>};
const KvKernel kv_int8 = {query_bytes, query_prepare, ViewInt8::store, attend<ViewInt8>};

void attend_merge(float* m, float* l, float* acc, const float* m2, const float* l2, const float* acc2, int64_t rows,
                  int64_t head_dim) {
    const int64_t padded = head_dim_padded(head_dim);
    for (int64_t r = 0; r < rows; ++r, acc += padded, acc2 += padded) {
        if (m2[r] == -INFINITY && l2[r] == 0.0f) continue;
        if (m[r] == -INFINITY && l[r] == 0.0f) {
            m[r] = m2[r];
            l[r] = l2[r];
            memcpy(acc, acc2, static_cast<size_t>(padded) * sizeof(float));
            continue;
        }
        const float largest = m2[r] > m[r] ? m2[r] : m[r];
        const float a = expf(m[r] - largest), b = expf(m2[r] - largest);
        m[r] = largest;
        l[r] = l[r] * a + l2[r] * b;
        for (int64_t d = 0; d < padded; ++d) acc[d] = acc[d] * a + acc2[d] * b;
    }
}

// The largest value and its first index; a NaN anywhere gives (NaN, -1).
void argmax(const float* x, int64_t n, float* value, int64_t* index) {
    float best = -INFINITY;
    int64_t at = n > 0 ? 0 : -1;
    for (int64_t i = 0; i < n; ++i) {
        if (x[i] != x[i]) {
            *value = x[i];
            *index = -1;
            return;
        }
        if (x[i] > best) {
            best = x[i];
            at = i;
        }
    }
    *value = best;
    *index = at;
}

// 16 lanes by index modulo 16, folded 8, 4, 2, 1 apart: the same bits in every instruction set.
float exp_sum(const float* x, int64_t n, float shift, float inv_temperature) {
    const float factor = inv_temperature * log2_e;
    float lane[16] = {};
    for (int64_t i = 0; i < n; ++i) lane[i % 16] += exp2_same_bits((x[i] - shift) * factor);
    for (int64_t half = 8; half > 0; half /= 2) {
        for (int64_t i = 0; i < half; ++i) lane[i] += lane[i + half];
    }
    return lane[0];
}

void exp_weights(const float* x, int64_t n, float shift, float inv_temperature, uint32_t* weights) {
    const float factor = inv_temperature * log2_e;
    for (int64_t i = 0; i < n; ++i)
        weights[i] = static_cast<uint32_t>(lrintf(exp2_same_bits((x[i] - shift) * factor) * weight_one));
}

}  // namespace subsecond::generic
