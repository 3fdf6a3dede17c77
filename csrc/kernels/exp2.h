// 2^y by multiplication and addition alone: the exponential of sampling, with the same bits everywhere.
//
// Owns: the coefficients and the scalar form. The vector forms in cpu/sampling.cc do the same operations in the same
// order, so that a draw does not depend on the instruction set. Internal linkage throughout: sources that are compiled
// for several instruction sets include this, and the linker must not merge their copies.
#pragma once
#include <stdint.h>
#include <string.h>

namespace subsecond {

constexpr float log2_e = 1.4426950408889634f;
constexpr float weight_one = 1073741824.0f;  // 2^30: the weight of the largest logit in exp_weights
constexpr float exp2_limit = 127.0f;         // y is clamped to +-limit; 2^-127 is returned as 0
constexpr float exp2_magic = 12582912.0f;    // 1.5 * 2^23: adding and subtracting it rounds to the nearest integer
// Taylor series of 2^f on [-1/2, 1/2], degrees 0 to 6: relative error below 2e-8 before rounding.
constexpr float exp2_coefficient[7] = {1.0f,
                                       6.9314718055994531e-1f,
                                       2.4022650695910071e-1f,
                                       5.5504108664821580e-2f,
                                       9.6181291076284772e-3f,
                                       1.3333558146428443e-3f,
                                       1.5403530393381610e-4f};

[[maybe_unused]] static inline float exp2_same_bits(float y) {
    y = y > -exp2_limit ? y : -exp2_limit;
    y = y < exp2_limit ? y : exp2_limit;
    const float whole = (y + exp2_magic) - exp2_magic, f = y - whole;
    float p = exp2_coefficient[6];
    p = p * f + exp2_coefficient[5];
    p = p * f + exp2_coefficient[4];
    p = p * f + exp2_coefficient[3];
    p = p * f + exp2_coefficient[2];
    p = p * f + exp2_coefficient[1];
    p = p * f + exp2_coefficient[0];
    const uint32_t bits = static_cast<uint32_t>(static_cast<int32_t>(whole) + 127) << 23;
    float power;
    memcpy(&power, &bits, sizeof power);
    return p * power;
}

}  // namespace subsecond
