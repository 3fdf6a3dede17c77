// The prepared activation row of the integer formats (int4 and int8 share it, so one prepared row feeds both).
//
// Owns: the struct and its meaning. An input group of 32 values x becomes  x ~ scale * value, |value| <= 127. Scales
// are powers of two, because AVX-512 multiplies weight scales with them outside of the units that the dots keep busy.
// (Measured on the default model: perplexity +0.13 % against scales of absmax / 127.)
// The three words behind the values are what a product needs once per (row, group); they lie beside the values so that
// a row is read with one pointer.
#pragma once
#include <cstdint>

#include "formats.h"

namespace subsecond {

struct act_group {
    int8_t value[group_int];
    // The least power of two from absmax / 127 on; 0 for a group of zeros, NaN if the group holds a NaN or an infinity.
    float scale;
    float scaled_sum;    // scale * sum(value): multiplies the int4 minimum
    int32_t offset_dot;  // -128 * sum(value): where an int8 accumulator starts, because q is stored with offset 128
};
static_assert(sizeof(act_group) == 44, "rows are walked by this stride");

// Below this absmax 1 / scale could overflow; such a group counts as zeros.
constexpr float act_absmax_floor = 1e-35f;

// The length of a prepared row is taken this much too long: rounding never makes it too short.
constexpr double act_norm_margin = 1.0 + 0x1p-20;

// A positive normal number's bits plus this, without the mantissa, is the least power of two from the number on.
constexpr int32_t round_up_to_power = 0x7fffff;
constexpr int32_t exponent_bits = 0x7f800000;

}  // namespace subsecond
