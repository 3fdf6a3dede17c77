// Norms, activations, rope, the other elementwise kernels, and what sampling uses, against the generic table.
//
// Owns: the lengths (no whole vectors, none at all), the ends (NaN, infinity, large values) and the tolerances of what
// needs an exponential. All else has the same bits.
#include <vector>

#include "compare_tables.h"

namespace compare {
namespace {

constexpr int64_t sizes[] = {1, 2, 15, 16, 17, 31, 48, 100, 577};

// What call(table, y) writes into n floats, the guard behind them included, has the same bits in both tables.
template <typename Call>
void check_same(Line& line, const KernelTable& table, int64_t n, int64_t which, Call call) {
    Floats got(n, 7), want(n, 7);
    call(table, got.data());
    call(generic(), want.data());
    line.same(got.data(), want.data(), n + 16, n, which);
}

bool compare_norms(const KernelTable& table) {
    Line rms(table, "rms_norm"), layer(table, "layer_norm");
    for (const int64_t n : sizes)
        for (int which = 0; which < 8; ++which) {
            Floats x(n, 1), w(n, 2), b(n, 3);
            const float* weight = which % 2 == 0 ? w.data() : nullptr;
            const float* bias = which / 2 % 2 == 0 ? b.data() : nullptr;
            if (which >= 4)
                for (int64_t i = 0; i < n; ++i) x[i] += 1000.0f;
            check_same(rms, table, n, which,
                       [&](const KernelTable& t, float* y) { t.rms_norm(x.data(), weight, n, 1e-5f, y); });
            check_same(layer, table, n, which,
                       [&](const KernelTable& t, float* y) { t.layer_norm(x.data(), weight, bias, n, 1e-5f, y); });
        }
    const bool right = rms.finish();
    return layer.finish() && right;
}

// An exponent that is itself rounded costs as many epsilons of the result; gelu cancels in 1 + erf.
double activation_limit(Activation kind, float x, float want) {
    const double size = std::fabs(static_cast<double>(x));
    const double exponent = kind == Activation::silu        ? size
                            : kind == Activation::gelu_tanh ? 1.6 * size + 0.072 * size * size * size
                                                            : 0.0;
    const double unit = kind == Activation::gelu ? size : std::fabs(static_cast<double>(want));
    return unit * (6e-7 + 4e-7 * exponent) + 1e-37;
}

bool compare_activation(const KernelTable& table, Activation kind, const char* name) {
    Line line(table, name);
    constexpr int64_t n = 8001 + 7;
    constexpr float ends[] = {NAN, infinity, 3e38f, -3e38f, -200.0f, 200.0f, -0.0f};
    Floats x(n), up(n, 9), got(n), want(n), gated(n);
    for (int64_t i = 0; i < 8001; ++i) x[i] = static_cast<float>(i - 4000) / 200.0f;
    std::copy(std::begin(ends), std::end(ends), x.data() + 8001);
    table.activation(kind, x.data(), n, got.data());
    generic().activation(kind, x.data(), n, want.data());
    table.gated(kind, x.data(), up.data(), n, gated.data());
    for (int64_t i = 0; i < n; ++i) {
        line.near(got[i], want[i], activation_limit(kind, x[i], want[i]), i);
        line.expect(bits_of(gated[i]) == bits_of(got[i] * up[i]), "gated is not activation * up at %lld",
                    static_cast<long long>(i));
    }
    // A value's place in the vector does not matter, and nothing is written behind the last.
    for (const int64_t length : sizes) {
        Floats part(length);
        table.activation(kind, x.data() + 4100, length, part.data());
        line.expect(std::equal(part.data(), part.data() + length, got.data() + 4100) && part[length] == guard,
                    "%lld values alone differ", static_cast<long long>(length));
    }
    return line.finish();
}

bool compare_elementwise(const KernelTable& table) {
    Line add(table, "add"), scale(table, "scale"), cap(table, "softcap");
    for (const int64_t n : sizes) {
        Floats a(n, 1), b(n, 2), got(n), want(n);
        check_same(add, table, n, 0, [&](const KernelTable& t, float* y) { t.add(a.data(), b.data(), n, y); });
        check_same(scale, table, n, 0, [&](const KernelTable& t, float* y) { t.scale(a.data(), 0.3f, n, y); });
        table.softcap(a.data(), 1.7f, n, got.data());
        generic().softcap(a.data(), 1.7f, n, want.data());
        for (int64_t i = 0; i < n; ++i) cap.near(got[i], want[i], 1e-6 * std::fabs(want[i]), n, i);
        cap.expect(got[n] == guard, "wrote behind %lld values", static_cast<long long>(n));
    }
    bool right = add.finish();
    right = scale.finish() && right;
    return cap.finish() && right;
}

bool compare_rope(const KernelTable& table) {
    Line line(table, "rope");
    for (const int64_t rotary : {2, 6, 16, 18, 32, 34, 64, 80, 256})
        for (const bool interleaved : {false, true}) {
            Floats cosine(rotary / 2, 1, 1.0f), sine(rotary / 2, 2, 1.0f);
            check_same(line, table, rotary + 5, interleaved, [&](const KernelTable& t, float* x) {
                t.rope(x, cosine.data(), sine.data(), rotary, interleaved);
            });
        }
    return line.finish();
}

void check_argmax(Line& line, const KernelTable& table, const float* x, int64_t n, int which) {
    float got = guard, want = guard;
    int64_t got_index = -2, want_index = -2;
    table.argmax(x, n, &got, &got_index);
    generic().argmax(x, n, &want, &want_index);
    line.same(&got, &want, 1, n, which);
    line.expect(got_index == want_index, "case %lld, %d: index %lld, not %lld", static_cast<long long>(n), which,
                static_cast<long long>(got_index), static_cast<long long>(want_index));
}

bool compare_sampling(const KernelTable& table) {
    Line largest(table, "argmax"), sum(table, "exp_sum"), weights(table, "exp_weights");
    for (const int64_t n : {1, 15, 16, 17, 1000, 1024, 1025, 4099, 20001}) {
        Floats x(n, 4, 20.0f);
        float value = 0;
        int64_t index = 0;
        generic().argmax(x.data(), n, &value, &index);
        check_argmax(largest, table, x.data(), n, 0);
        for (const float inverse : {1.0f, 1.0f / 0.7f, 10.0f}) {
            const float got = table.exp_sum(x.data(), n, value, inverse);
            const float want = generic().exp_sum(x.data(), n, value, inverse);
            sum.same(&got, &want, 1, n);
            std::vector<uint32_t> a(static_cast<size_t>(n) + 1, 77), b = a;
            table.exp_weights(x.data(), n, value, inverse, a.data());
            generic().exp_weights(x.data(), n, value, inverse, b.data());
            weights.same_bytes(a.data(), b.data(), 4 * (n + 1), n);
        }
        x[n / 2] = x[n - 1] = value + 1;  // the first of two
        check_argmax(largest, table, x.data(), n, 1);
        x[n / 3] = -infinity;
        check_argmax(largest, table, x.data(), n, 2);
        const float got = table.exp_sum(x.data(), n, value + 1, 1.0f),
                    want = generic().exp_sum(x.data(), n, value + 1, 1.0f);
        sum.same(&got, &want, 1, n, 1);
        x[2 * n / 3] = NAN;
        check_argmax(largest, table, x.data(), n, 3);
        std::fill(x.data(), x.data() + n, -infinity);
        check_argmax(largest, table, x.data(), n, 4);
    }
    bool right = largest.finish();
    right = sum.finish() && right;
    return weights.finish() && right;
}

}  // namespace

bool all_rows(const KernelTable& table) {
    bool right = compare_norms(table);
    right = compare_activation(table, Activation::silu, "silu, gated") && right;
    right = compare_activation(table, Activation::gelu_tanh, "gelu_tanh, gated") && right;
    right = compare_activation(table, Activation::gelu, "gelu, gated") && right;
    right = compare_activation(table, Activation::relu, "relu, gated") && right;
    right = compare_activation(table, Activation::tanh, "tanh, gated") && right;
    right = compare_elementwise(table) && right;
    right = compare_rope(table) && right;
    return compare_sampling(table) && right;
}

}  // namespace compare
