// The prepared activation row of the integer formats (int4 and int8 share it, so one prepared row feeds both).
//
// Owns: the struct and its meaning. An input group of 32 values x becomes  x ~ scale * value, |value| <= 127.
// The three words behind the values are what a product needs once per (row, group); they lie beside the values so that
// a row is read with one pointer.
#pragma once
#include <cstdint>

#include "formats.h"

namespace subsecond {

struct act_group {
    int8_t value[group_int];
    float scale;         // absmax / 127; 0 for a group of zeros, NaN if the group holds a NaN or an infinity
    float scaled_sum;    // scale * sum(value): multiplies the int4 minimum
    int32_t offset_dot;  // -128 * sum(value): where an int8 accumulator starts, because q is stored with offset 128
};
static_assert(sizeof(act_group) == 44, "rows are walked by this stride");

// Below this absmax 127 / absmax could overflow; such a group counts as zeros.
constexpr float act_absmax_floor = 1e-35f;

}  // namespace subsecond
