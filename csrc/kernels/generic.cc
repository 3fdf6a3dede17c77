// The kernels in plain C++, for any CPU: the reading of the contract in ops.h that the vector versions are tested
// against.
//
// Owns: clarity, and the order of float operations that every instruction set follows. Integer products, norms, sums
// and rope are bitwise the same everywhere; activations agree to a few units in the last place (they use the C library
// here); bf16 differs where vdpbf16ps flushes denormals.
#define SUBSECOND_ISA generic
#include <cmath>
#include <cstring>

#include "activation_row.h"
#include "cpu/parts.h"

namespace subsecond::generic {
namespace {

constexpr int lanes = 16;

float float_of_bits(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

uint32_t bits_of_float(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

float float_of_half(uint16_t half) {
    const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
    const uint32_t exponent = half >> 10 & 0x1fu, fraction = half & 0x3ffu;
    if (exponent == 31) return float_of_bits(sign | 0x7f800000u | fraction << 13);
    const float magnitude = exponent == 0 ? std::ldexp(static_cast<float>(fraction), -24)
                                          : float_of_bits((exponent + 112) << 23 | fraction << 13);
    return sign != 0 ? -magnitude : magnitude;
}

float float_of_bf16(uint16_t value) { return float_of_bits(static_cast<uint32_t>(value) << 16); }

uint16_t bf16_of_float(float value) {
    const uint32_t bits = bits_of_float(value);
    if (std::isnan(value)) return static_cast<uint16_t>(bits >> 16 | 0x40u);
    return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

int64_t round_up(int64_t bytes) { return ceil_div(bytes, 64) * 64; }

// Integer formats.

void prepare_group(const float* x, int64_t n, act_group* group) {
    float absmax = 0;
    bool finite = true;
    for (int64_t i = 0; i < n; ++i) {
        absmax = std::fmax(absmax, std::fabs(x[i]));
        finite = finite && std::isfinite(x[i]);
    }
    std::memset(group, 0, sizeof *group);
    if (!finite) {
        group->scale = group->scaled_sum = float_of_bits(0x7fc00000u);
        return;
    }
    if (absmax < act_absmax_floor) return;
    int32_t bits = 0;
    const float least = absmax / 127.0f;
    std::memcpy(&bits, &least, sizeof bits);
    bits = (bits + round_up_to_power) & exponent_bits;
    std::memcpy(&group->scale, &bits, sizeof bits);
    const float inverse = 1.0f / group->scale;
    int32_t sum = 0;
    for (int64_t i = 0; i < n; ++i) {
        const int32_t value = static_cast<int32_t>(std::nearbyint(x[i] * inverse));
        group->value[i] = static_cast<int8_t>(value);
        sum += value;
    }
    group->scaled_sum = group->scale * static_cast<float>(sum);
    group->offset_dot = -128 * sum;
}

int quant_of(const block_int4& block, int64_t channel, int64_t k) {
    const int64_t quad = k / 4;
    const uint8_t byte = block.quant[64 * (quad % 4) + 4 * channel + k % 4];
    return quad < 4 ? byte & 15 : byte >> 4;
}

int quant_of(const block_int8& block, int64_t channel, int64_t k) {
    return block.quant[64 * (k / 4) + 4 * channel + k % 4];
}

template <typename Block>
int32_t dot_of(const Block& block, int64_t channel, const act_group& group) {
    int32_t dot = 0;
    for (int64_t k = 0; k < group_int; ++k) dot += quant_of(block, channel, k) * group.value[k];
    return dot;
}

float fold(const block_int4& block, int64_t channel, const act_group& group, float sum) {
    const float scale = float_of_half(block.scale[channel]) * group.scale;
    sum = std::fma(static_cast<float>(dot_of(block, channel, group)), scale, sum);
    return std::fma(float_of_half(block.minimum[channel]), group.scaled_sum, sum);
}

float fold(const block_int8& block, int64_t channel, const act_group& group, float sum) {
    const float scale = float_of_half(block.scale[channel]) * group.scale;
    return std::fma(static_cast<float>(dot_of(block, channel, group) + group.offset_dot), scale, sum);
}

float value_of(const block_int4& block, int64_t channel, int64_t k) {
    const float q = static_cast<float>(quant_of(block, channel, k));
    return std::fma(float_of_half(block.scale[channel]), q, float_of_half(block.minimum[channel]));
}

float value_of(const block_int8& block, int64_t channel, int64_t k) {
    return float_of_half(block.scale[channel]) * static_cast<float>(quant_of(block, channel, k) - 128);
}

// Float formats: the prepared row is the block's own element type.

struct act_bf16 {
    uint16_t value[2];
};
struct act_f32 {
    float value[1];
};

float fold(const block_bf16& block, int64_t channel, const act_bf16& x, float sum) {
    sum = std::fma(float_of_bf16(block.value[2 * channel]), float_of_bf16(x.value[0]), sum);
    return std::fma(float_of_bf16(block.value[2 * channel + 1]), float_of_bf16(x.value[1]), sum);
}

float fold(const block_f32& block, int64_t channel, const act_f32& x, float sum) {
    return std::fma(block.value[channel], x.value[0], sum);
}

float value_of(const block_bf16& block, int64_t channel, int64_t k) {
    return float_of_bf16(block.value[2 * channel + k]);
}
float value_of(const block_f32& block, int64_t channel, int64_t) { return block.value[channel]; }

int64_t act_bytes_bf16(int64_t k) { return round_up(ceil_div(k, 2) * static_cast<int64_t>(sizeof(act_bf16))); }
int64_t act_bytes_f32(int64_t k) { return round_up(k * static_cast<int64_t>(sizeof(act_f32))); }

void act_prepare_bf16(const float* x, int64_t k, void* row) {
    uint16_t* out = static_cast<uint16_t*>(row);
    std::memset(out, 0, static_cast<size_t>(act_bytes_bf16(k)));
    for (int64_t i = 0; i < k; ++i) out[i] = bf16_of_float(x[i]);
}

void act_prepare_f32(const float* x, int64_t k, void* row) {
    std::memset(row, 0, static_cast<size_t>(act_bytes_f32(k)));
    std::memcpy(row, x, static_cast<size_t>(k) * sizeof(float));
}

// One loop for every format: out[r][16 t + c] folds the groups of K in order.
template <typename Block, typename Group, int64_t group_size, int64_t (*act_bytes)(int64_t)>
void product(Tiles weight, int64_t tiles, int64_t k, const void* act, int64_t m, float* out, int64_t out_stride) {
    const Block* blocks = static_cast<const Block*>(weight.first);
    const int64_t groups = ceil_div(k, group_size);
    for (int64_t t = 0; t < tiles; ++t)
        for (int64_t r = 0; r < m; ++r) {
            const char* row = static_cast<const char*>(act) + r * act_bytes(k);
            for (int64_t c = 0; c < tile_channels; ++c) {
                float sum = 0;
                for (int64_t g = 0; g < groups; ++g)
                    sum = fold(blocks[t * groups + g], c, reinterpret_cast<const Group*>(row)[g], sum);
                out[r * out_stride + t * tile_channels + c] = sum;
            }
        }
}

template <typename Block, int64_t group_size>
void lookup(Tiles weight, int64_t index, int64_t k, float* out) {
    const Block* tile = static_cast<const Block*>(weight.first) + index / tile_channels * ceil_div(k, group_size);
    for (int64_t i = 0; i < k; ++i) out[i] = value_of(tile[i / group_size], index % tile_channels, i % group_size);
}

// int8_split: every block is brought into int8's form first, with the lower bits or (for the bounds) without.

block_int8 whole_block(Tiles weight, int64_t index, bool with_lower) {
    const block_split_upper& upper = static_cast<const block_split_upper*>(weight.first)[index];
    const block_split_lower& lower = static_cast<const block_split_lower*>(weight.lower)[index];
    block_int8 block;
    std::memcpy(block.scale, upper.scale, sizeof block.scale);
    for (int half = 0; half < 2; ++half)
        for (int i = 0; i < 64; ++i) {
            const uint8_t* six = upper.quant + 192 * half + i;
            const int rest = with_lower ? lower.quant[64 * half + i] : 0;
            const int fourth = (six[0] & 3) << 6 | (six[64] & 3) << 4 | (six[128] & 3) << 2;
            for (int j = 0; j < 4; ++j) {
                const int high = j < 3 ? six[64 * j] & 0xfc : fourth;
                block.quant[64 * (4 * half + j) + i] = static_cast<uint8_t>(high | (rest >> 2 * j & 3));
            }
        }
    return block;
}

void product_split(Tiles weight, int64_t tiles, int64_t k, const void* act, int64_t m, float* out, int64_t out_stride) {
    const int64_t groups = ceil_div(k, group_int), act_bytes = act_bytes_int(k);
    for (int64_t t = 0; t < tiles; ++t)
        for (int64_t r = 0; r < m; ++r) {
            const act_group* row = reinterpret_cast<const act_group*>(static_cast<const char*>(act) + r * act_bytes);
            float sum[tile_channels] = {};
            for (int64_t g = 0; g < groups; ++g) {
                const block_int8 block = whole_block(weight, t * groups + g, true);
                for (int64_t c = 0; c < tile_channels; ++c) sum[c] = fold(block, c, row[g], sum[c]);
            }
            std::memcpy(out + r * out_stride + t * tile_channels, sum, sizeof sum);
        }
}

void lookup_split(Tiles weight, int64_t index, int64_t k, float* out) {
    const int64_t first = index / tile_channels * ceil_div(k, group_int);
    for (int64_t i = 0; i < k; ++i)
        out[i] = value_of(whole_block(weight, first + i / group_int, true), index % tile_channels, i % group_int);
}

void screen(Tiles weight, const float* radius, int64_t tiles, int64_t k, const void* act, int64_t m, float* high,
            float* low, int64_t stride) {
    const int64_t groups = ceil_div(k, group_int), act_bytes = act_bytes_int(k);
    for (int64_t r = 0; r < m; ++r) {
        const act_group* row = reinterpret_cast<const act_group*>(static_cast<const char*>(act) + r * act_bytes);
        const float norm = act_norm_int(row, k);
        for (int64_t t = 0; t < tiles; ++t) {
            float highest = -INFINITY, lowest = -INFINITY;
            bool known = norm <= screen_norm_limit;
            for (int64_t c = 0; c < tile_channels; ++c) {
                float sum = 0;
                for (int64_t g = 0; g < groups; ++g) {
                    const block_int8 block = whole_block(weight, t * groups + g, false);
                    sum = fold(block, c, row[g], sum);
                    sum = std::fma(float_of_half(block.scale[c]), 1.5f * row[g].scaled_sum, sum);
                }
                const float reach = std::fma(radius[t * tile_channels + c], norm, screen_floor);
                known = known && std::isfinite(sum) && std::isfinite(reach);
                highest = std::fmax(highest, sum + reach);
                lowest = std::fmax(lowest, sum - reach);
            }
            high[r * stride + t] = known ? highest : float_of_bits(0x7fc00000u);
            low[r * stride + t] = known ? lowest : float_of_bits(0x7fc00000u);
        }
    }
}

// Elementwise.

float tree_sum(float* lane) {
    for (int half = lanes / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
    return lane[0];
}

float sum_of(const float* x, int64_t n) {
    float lane[lanes] = {};
    for (int64_t i = 0; i < n; ++i) lane[i % lanes] += x[i];
    return tree_sum(lane);
}

float sum_of_squares(const float* x, int64_t n, float mean) {
    float lane[lanes] = {};
    for (int64_t i = 0; i < n; ++i) lane[i % lanes] = std::fma(x[i] - mean, x[i] - mean, lane[i % lanes]);
    return tree_sum(lane);
}

float activate(Activation kind, float x) {
    switch (kind) {
        case Activation::silu:
            return x / (1.0f + std::exp(-x));
        case Activation::gelu_tanh: {
            const float inner = 0.7978845608028654f * std::fma(0.044715f * x * x, x, x);
            return x / (1.0f + std::exp(-2.0f * inner));
        }
        case Activation::gelu:
            return 0.5f * x * (1.0f + std::erf(x * 0.7071067811865476f));
        case Activation::relu:
            return x < 0 ? 0.0f : x;
        case Activation::tanh:
            return std::tanh(x);
    }
    return x;
}

}  // namespace

int64_t act_bytes_int(int64_t k) { return round_up(ceil_div(k, group_int) * static_cast<int64_t>(sizeof(act_group))); }

void act_prepare_int(const float* x, int64_t k, void* row) {
    act_group* groups = static_cast<act_group*>(row);
    for (int64_t g = 0; g * group_int < k; ++g) {
        const int64_t left = k - g * group_int;
        prepare_group(x + g * group_int, left < group_int ? left : group_int, groups + g);
    }
}

float act_norm_int(const void* row, int64_t k) {
    const act_group* groups = static_cast<const act_group*>(row);
    double sum = 0;
    for (int64_t g = 0; g * group_int < k; ++g) {
        int32_t squares = 0;
        for (int64_t i = 0; i < group_int; ++i) squares += groups[g].value[i] * groups[g].value[i];
        sum += static_cast<double>(groups[g].scale) * groups[g].scale * squares;
    }
    return static_cast<float>(std::sqrt(sum) * act_norm_margin);
}

const LinearKernel linear_f32 = {act_bytes_f32, act_prepare_f32, product<block_f32, act_f32, 1, act_bytes_f32>,
                                 lookup<block_f32, 1>};
const LinearKernel linear_bf16 = {act_bytes_bf16, act_prepare_bf16, product<block_bf16, act_bf16, 2, act_bytes_bf16>,
                                  lookup<block_bf16, 2>};
const LinearKernel linear_int8 = {act_bytes_int, act_prepare_int,
                                  product<block_int8, act_group, group_int, act_bytes_int>,
                                  lookup<block_int8, group_int>};
const LinearKernel linear_int4 = {act_bytes_int, act_prepare_int,
                                  product<block_int4, act_group, group_int, act_bytes_int>,
                                  lookup<block_int4, group_int>};
const LinearKernel linear_int8_split = {act_bytes_int, act_prepare_int, product_split, lookup_split, screen};

void rms_norm(const float* x, const float* w, int64_t n, float eps, float* y) {
    const float inverse = 1.0f / std::sqrt(sum_of_squares(x, n, 0) / static_cast<float>(n) + eps);
    for (int64_t i = 0; i < n; ++i) y[i] = w != nullptr ? x[i] * inverse * w[i] : x[i] * inverse;
}

void layer_norm(const float* x, const float* w, const float* b, int64_t n, float eps, float* y) {
    const float mean = sum_of(x, n) / static_cast<float>(n);
    const float inverse = 1.0f / std::sqrt(sum_of_squares(x, n, mean) / static_cast<float>(n) + eps);
    for (int64_t i = 0; i < n; ++i) {
        const float unit = (x[i] - mean) * inverse;
        const float scaled = w != nullptr ? unit * w[i] : unit;
        y[i] = b != nullptr ? scaled + b[i] : scaled;
    }
}

void activation(Activation kind, const float* x, int64_t n, float* y) {
    for (int64_t i = 0; i < n; ++i) y[i] = activate(kind, x[i]);
}

void gated(Activation kind, const float* gate, const float* up, int64_t n, float* y) {
    for (int64_t i = 0; i < n; ++i) y[i] = activate(kind, gate[i]) * up[i];
}

void add(const float* a, const float* b, int64_t n, float* y) {
    for (int64_t i = 0; i < n; ++i) y[i] = a[i] + b[i];
}

void scale(const float* x, float factor, int64_t n, float* y) {
    for (int64_t i = 0; i < n; ++i) y[i] = x[i] * factor;
}

void softcap(const float* x, float cap, int64_t n, float* y) {
    for (int64_t i = 0; i < n; ++i) y[i] = cap * std::tanh(x[i] / cap);
}

void rope(float* x, const float* cosine, const float* sine, int64_t rotary, bool interleaved) {
    const int64_t pairs = rotary / 2;
    for (int64_t i = 0; i < pairs; ++i) {
        float* a = interleaved ? x + 2 * i : x + i;
        float* b = interleaved ? a + 1 : a + pairs;
        const float a0 = *a, b0 = *b;
        *a = std::fma(a0, cosine[i], -(b0 * sine[i]));
        *b = std::fma(b0, cosine[i], a0 * sine[i]);
    }
}

}  // namespace subsecond::generic
