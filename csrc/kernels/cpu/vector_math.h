// exp, tanh and erf on 16 lanes.
//
// Owns: the approximations. Each keeps within about 2 units in the last place of the exact value (erf: 1e-7 absolute),
// turns a NaN into a NaN and saturates at the ends. Coefficients: weighted minimax fits made for these intervals.
#pragma once
#include "isa.h"

namespace subsecond::SUBSECOND_ISA {
namespace {

// exp(x) = 2^n * exp(r), n = round(x / ln 2), |r| <= ln 2 / 2, exp(r) by a polynomial of degree 6. Results below the
// smallest normal number keep their denormal digits; under 1e-45 they are 0.
SUBSECOND_INLINE f32x16 vector_exp(f32x16 x) {
    x = min(set1(89.0f), max(set1(-105.0f), x));
    const f32x16 n = round_even(mul(x, set1(1.44269504f)));
    // ln 2 in two parts: n times the first is exact.
    f32x16 r = fnma(n, set1(0.693359375f), x);
    r = fnma(n, set1(-2.12194440e-4f), r);
    f32x16 p = set1(1.38146023e-3f);
    p = fma(p, r, set1(8.36871564e-3f));
    p = fma(p, r, set1(4.16683890e-2f));
    p = fma(p, r, set1(1.66665211e-1f));
    p = fma(p, r, set1(4.99999940e-1f));
    p = fma(mul(r, r), p, r);
    return scale_by_power(add(p, set1(1.0f)), n);
}

// |x| < 0.625: x + x^3 P(x^2); beyond: 1 - 2 / (exp(2 |x|) + 1), which no longer cancels.
SUBSECOND_INLINE f32x16 vector_tanh(f32x16 x) {
    const f32x16 t = abs(x), s = mul(x, x);
    f32x16 p = set1(-5.70498733e-3f);
    p = fma(p, s, set1(2.06390880e-2f));
    p = fma(p, s, set1(-5.37397154e-2f));
    p = fma(p, s, set1(1.33314416e-1f));
    p = fma(p, s, set1(-3.33332807e-1f));
    const f32x16 small = fma(mul(x, s), p, x);
    const f32x16 one = set1(1.0f);
    const f32x16 large = sub(one, div(set1(2.0f), add(vector_exp(add(t, t)), one)));
    return select_less(t, set1(0.625f), small, with_sign(large, x));
}

// |x| < 1: x + x P(x^2); beyond: 1 - exp(-Q(|x|)), Q fitted to -log(erfc) on [1, 4], where erf rounds to 1.
SUBSECOND_INLINE f32x16 vector_erf(f32x16 x) {
    const f32x16 t = min(set1(4.0f), abs(x)), s = mul(x, x);
    f32x16 p = set1(7.85389639e-5f);
    p = fma(p, s, set1(-8.01020535e-4f));
    p = fma(p, s, set1(5.18832915e-3f));
    p = fma(p, s, set1(-2.68538129e-2f));
    p = fma(p, s, set1(1.12835854e-1f));
    p = fma(p, s, set1(-3.76126260e-1f));
    p = fma(p, s, set1(1.28379166e-1f));
    const f32x16 small = fma(p, x, x);
    f32x16 q = set1(-1.85574070e-4f);
    q = fma(q, t, set1(2.93960795e-3f));
    q = fma(q, t, set1(-2.18053199e-2f));
    q = fma(q, t, set1(1.03037372e-1f));
    q = fma(q, t, set1(6.38225675e-1f));
    q = fma(q, t, set1(1.12704003f));
    q = fma(q, t, set1(3.53718759e-4f));
    const f32x16 large = sub(set1(1.0f), vector_exp(sub(zero(), q)));
    return select_less(abs(x), set1(1.0f), small, with_sign(large, x));
}

}  // namespace
}  // namespace subsecond::SUBSECOND_ISA
