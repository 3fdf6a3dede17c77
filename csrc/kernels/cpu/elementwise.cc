// Norms, activations, rope and the other elementwise kernels (contracts: ops.h).
//
// Owns: their loops. Reductions run in 16 lanes (element i in lane i mod 16) and end in isa.h's fixed tree.
#include "vector_math.h"

namespace subsecond::SUBSECOND_ISA {
namespace {

// y[i] = f(x[i]) and y[i] = f(a[i], b[i]); the last, partial vector is padded with zeros, which f must bear.
template <typename F>
SUBSECOND_INLINE void map(const float* x, int64_t n, float* y, F f) {
    int64_t i = 0;
    for (; i + lanes <= n; i += lanes) store(y + i, f(load(x + i)));
    if (i < n) store_first(y + i, f(load_first(x + i, n - i)), n - i);
}

template <typename F>
SUBSECOND_INLINE void map(const float* a, const float* b, int64_t n, float* y, F f) {
    int64_t i = 0;
    for (; i + lanes <= n; i += lanes) store(y + i, f(load(a + i), load(b + i)));
    if (i < n) store_first(y + i, f(load_first(a + i, n - i), load_first(b + i, n - i)), n - i);
}

float sum_of(const float* x, int64_t n) {
    f32x16 sum = zero();
    int64_t i = 0;
    for (; i + lanes <= n; i += lanes) sum = add(sum, load(x + i));
    if (i < n) sum = add(sum, load_first(x + i, n - i));
    return reduce_add(sum);
}

float sum_of_squares(const float* x, int64_t n, float mean) {
    const f32x16 center = set1(mean);
    f32x16 sum = zero();
    int64_t i = 0;
    for (; i + lanes <= n; i += lanes) {
        const f32x16 d = sub(load(x + i), center);
        sum = fma(d, d, sum);
    }
    if (i < n) {
        // Lanes past the end count as the mean: their difference is zero.
        alignas(64) float last[lanes];
        for (int j = 0; j < lanes; ++j) last[j] = i + j < n ? x[i + j] : mean;
        const f32x16 d = sub(load(last), center);
        sum = fma(d, d, sum);
    }
    return reduce_add(sum);
}

SUBSECOND_INLINE f32x16 sigmoid_times(f32x16 x, f32x16 logit) {
    const f32x16 one = set1(1.0f);
    return div(x, add(one, vector_exp(sub(zero(), logit))));
}

// 0.5 x (1 + tanh(u)) = x * sigmoid(2 u), which does not cancel for negative x.
SUBSECOND_INLINE f32x16 gelu_tanh_of(f32x16 x) {
    const f32x16 cube = mul(mul(set1(0.044715f), x), x);
    const f32x16 inner = mul(set1(0.7978845608028654f), fma(cube, x, x));
    return sigmoid_times(x, add(inner, inner));
}

SUBSECOND_INLINE f32x16 gelu_of(f32x16 x) {
    const f32x16 e = vector_erf(mul(x, set1(0.7071067811865476f)));
    return mul(mul(set1(0.5f), x), add(set1(1.0f), e));
}

// Calls f with the activation as a function object, so that the choice is made outside the loops.
template <typename F>
SUBSECOND_INLINE void with_activation(Activation kind, F f) {
    switch (kind) {
        case Activation::silu:
            return f([](f32x16 x) { return sigmoid_times(x, x); });
        case Activation::gelu_tanh:
            return f([](f32x16 x) { return gelu_tanh_of(x); });
        case Activation::gelu:
            return f([](f32x16 x) { return gelu_of(x); });
        case Activation::relu:
            return f([](f32x16 x) { return max(zero(), x); });
        case Activation::tanh:
            return f([](f32x16 x) { return vector_tanh(x); });
    }
}

SUBSECOND_INLINE float inverse_root(float x) { return 1.0f / square_root(x); }

}  // namespace

void rms_norm(const float* x, const float* w, int64_t n, float eps, float* y) {
    const f32x16 inverse = set1(inverse_root(sum_of_squares(x, n, 0) / static_cast<float>(n) + eps));
    if (w != nullptr)
        map(x, w, n, y, [=](f32x16 v, f32x16 weight) { return mul(mul(v, inverse), weight); });
    else
        map(x, n, y, [=](f32x16 v) { return mul(v, inverse); });
}

void layer_norm(const float* x, const float* w, const float* b, int64_t n, float eps, float* y) {
    const float mean = sum_of(x, n) / static_cast<float>(n);
    const f32x16 center = set1(mean);
    const f32x16 inverse = set1(inverse_root(sum_of_squares(x, n, mean) / static_cast<float>(n) + eps));
    map(x, n, y, [=](f32x16 v) { return mul(sub(v, center), inverse); });
    if (w != nullptr) map(y, w, n, y, [](f32x16 v, f32x16 weight) { return mul(v, weight); });
    if (b != nullptr) map(y, b, n, y, [](f32x16 v, f32x16 bias) { return add(v, bias); });
}

void activation(Activation kind, const float* x, int64_t n, float* y) {
    with_activation(kind, [=](auto f) { map(x, n, y, f); });
}

void gated(Activation kind, const float* gate, const float* up, int64_t n, float* y) {
    with_activation(kind, [=](auto f) { map(gate, up, n, y, [=](f32x16 g, f32x16 u) { return mul(f(g), u); }); });
}

void add(const float* a, const float* b, int64_t n, float* y) {
    map(a, b, n, y, [](f32x16 u, f32x16 v) { return add(u, v); });
}

void scale(const float* x, float factor, int64_t n, float* y) {
    const f32x16 by = set1(factor);
    map(x, n, y, [=](f32x16 v) { return mul(v, by); });
}

void softcap(const float* x, float cap, int64_t n, float* y) {
    const f32x16 limit = set1(cap);
    map(x, n, y, [=](f32x16 v) { return mul(limit, vector_tanh(div(v, limit))); });
}

void rope(float* x, const float* cosine, const float* sine, int64_t rotary, bool interleaved) {
    const int64_t pairs = rotary / 2;
    int64_t i = 0;
    if (!interleaved)
        for (; i + lanes <= pairs; i += lanes) {
            const f32x16 a = load(x + i), b = load(x + pairs + i), c = load(cosine + i), s = load(sine + i);
            store(x + i, fma(a, c, sub(zero(), mul(b, s))));
            store(x + pairs + i, fma(b, c, mul(a, s)));
        }
    for (; i < pairs; ++i) {
        float* first_of_pair = interleaved ? x + 2 * i : x + i;
        float* second_of_pair = interleaved ? first_of_pair + 1 : first_of_pair + pairs;
        const float a = *first_of_pair, b = *second_of_pair;
        *first_of_pair = __builtin_fmaf(a, cosine[i], -(b * sine[i]));
        *second_of_pair = __builtin_fmaf(b, cosine[i], a * sine[i]);
    }
}

}  // namespace subsecond::SUBSECOND_ISA
