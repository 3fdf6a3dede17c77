// What the sources of one instruction set define for its kernel table (contracts: ops.h).
//
// Owns: the names. No intrinsics, so that table.cc can be compiled for the oldest CPU.
#pragma once
#include <cstdint>

#include "../formats.h"
#include "../ops.h"

#ifndef SUBSECOND_ISA
#error "compile with -DSUBSECOND_ISA=generic, avx2, avx512_vnni, avx512, neon or neon_dotprod"
#endif

namespace subsecond::SUBSECOND_ISA {

// The prepared row of activation_row.h, shared by int8 and int4.
int64_t act_bytes_int(int64_t k);
void act_prepare_int(const float* x, int64_t k, void* row);
// The Euclidean length of such a row, rounded up; NaN when a group is not finite.
float act_norm_int(const void* row, int64_t k);
extern const LinearKernel linear_f32, linear_bf16, linear_int8, linear_int4, linear_int8_split;
extern const KvKernel kv_f32, kv_bf16, kv_int8;
void attend_merge(float* m, float* l, float* acc, const float* m2, const float* l2, const float* acc2, int64_t rows,
                  int64_t head_dim);
void rms_norm(const float* x, const float* w, int64_t n, float eps, float* y);
void layer_norm(const float* x, const float* w, const float* b, int64_t n, float eps, float* y);
void activation(Activation kind, const float* x, int64_t n, float* y);
void gated(Activation kind, const float* gate, const float* up, int64_t n, float* y);
void add(const float* a, const float* b, int64_t n, float* y);
void scale(const float* x, float factor, int64_t n, float* y);
void softcap(const float* x, float cap, int64_t n, float* y);
void rope(float* x, const float* cosine, const float* sine, int64_t rotary, bool interleaved);
void argmax(const float* x, int64_t n, float* value, int64_t* index);
float exp_sum(const float* x, int64_t n, float shift, float inv_temperature);
void exp_weights(const float* x, int64_t n, float shift, float inv_temperature, uint32_t* weights);

}  // namespace subsecond::SUBSECOND_ISA
