// The kernel table of one instruction set.
//
// Invariant: compiled for the oldest CPU (without the instruction set's flags), because the table is filled while the
// module is loaded, before anyone asked what this CPU can run.
#include "parts.h"

namespace subsecond::SUBSECOND_ISA {

#define SUBSECOND_STRING_OF(x) #x
#define SUBSECOND_STRING(x) SUBSECOND_STRING_OF(x)
// neon and neon_dotprod give the same bits, so that both are "neon" to callers.
#if !defined(SUBSECOND_TABLE_NAME)
#define SUBSECOND_TABLE_NAME SUBSECOND_ISA
#endif

extern const KernelTable table;
const KernelTable table = {
    .name = SUBSECOND_STRING(SUBSECOND_TABLE_NAME),
    .linear = {linear_f32, linear_bf16, linear_int8, linear_int4, linear_int8_split},
    .kv = {kv_f32, kv_bf16, kv_int8},
    .attend_merge = attend_merge,
    .rms_norm = rms_norm,
    .layer_norm = layer_norm,
    .activation = activation,
    .gated = gated,
    .add = add,
    .scale = scale,
    .softcap = softcap,
    .rope = rope,
    .argmax = argmax,
    .exp_sum = exp_sum,
    .exp_weights = exp_weights,
};

}  // namespace subsecond::SUBSECOND_ISA
