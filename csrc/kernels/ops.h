// The kernel table: what an instruction set offers to the executor.
//
// Owns: the signatures and the numerics contract of every kernel. Each instruction set (generic, avx2, avx512, neon)
// fills one table in its own namespace; the executor picks one at start-up. Kernels are pure functions of their
// arguments: no allocation, no threads, no state, no knowledge of programs or sequences.
//
// Numerics contract (tests hold it): an output element is produced by one order of float operations that depends on
// K (or on absolute positions) alone: never on m, on the number of tiles, or on how the caller cuts the work.
#pragma once
#include <cstddef>
#include <cstdint>

#include "formats.h"

namespace subsecond {

// A matrix product with one weight format. Activations are first brought into the format's own grid, row by row
// ("prepared": an opaque row of act_bytes(k) bytes, 64-byte aligned), by the row's own values alone:
//   int4, int8, int8_split: s8 per group of 32 along K with a scale a group (the least power of two from absmax / 127
//   on), plus
//               the group's sum
//   bf16: round to nearest even;   f32: copied, padded with zeros.
// Products: int4/int8/int8_split: exact s32 dot within a group, then groups added in K order by FMA in f32;
//           bf16: pairs along K in order, f32 accumulation;  f32: FMA in K order.
struct LinearKernel {
    int64_t (*act_bytes)(int64_t k);
    void (*act_prepare)(const float* x, int64_t k, void* row);
    // out[r * out_stride + 16 * t + c] for r < m, t < tiles, c < 16. `weight` is where the first tile begins; rows of
    // `act` are act_bytes(k) apart. out may hold padded channels: 16 * tiles columns are always written.
    void (*product)(Tiles weight, int64_t tiles, int64_t k, const void* act, int64_t m, float* out, int64_t out_stride);
    // Row `index` of the packed matrix, of which `weight` is tile 0, as f32 (embedding lookup): out[0..k).
    void (*lookup)(Tiles weight, int64_t index, int64_t k, float* out);
    // int8_split alone, else nullptr. Bounds of the products of 16-channel tiles from the upper six bits: every value
    // that `product` would give for tile t and row r is at most high[r * stride + t], and one of them is at least
    // low[r * stride + t]. Both are NaN where that cannot be said (a row or scale that is not finite, or is huge).
    // radius: 16 a tile, see below; m <= 2.
    void (*screen)(Tiles weight, const float* radius, int64_t tiles, int64_t k, const void* act, int64_t m, float* high,
                   float* low, int64_t stride) = nullptr;
};

// The bound of int8_split. A value is q = u + 1.5 + d with u = q & ~3 and |d| <= 1.5. By Cauchy and Schwarz the part
// that the lower bits add to a product lies within  |a| * sqrt(sum of (scale * d)^2)  of what u + 1.5 gives, where |a|
// is the length of the prepared row. The stored radius also covers the rounding of `product`, of `screen` and of |a|
// (formats/pack.py derives it). What it cannot cover: sums that vanish below the normal numbers (screen_floor is
// added), and sums that overflow (rows longer than screen_norm_limit are not screened: with fp16 scales and K up to
// 2^22 no partial sum then leaves the range of f32).
constexpr float screen_norm_limit = 1e25f;
constexpr float screen_floor = 1e-33f;

// Attention over one stored block of 64 positions of one KV head, for `rows` query rows that share this KV head.
// A row sees the slots [lo[r], hi[r]) of the block; lo == hi means it sees nothing (m = -inf, l = 0, acc = 0).
// The partial result of (row, block) is  l = sum exp(s - m),  acc = sum exp(s - m) * v  for an m near the largest score
// (int8 weighs it with the size of the values): it depends on the row and the block alone. merge() folds a partial into
// the running one, in ascending block order.
struct KvKernel {
    int64_t (*query_bytes)(int64_t head_dim);  // a prepared query row, multiple of 64
    void (*query_prepare)(const float* q, int64_t head_dim, float scale, void* row);  // scale folded into q
    void (*store)(const float* k, const float* v, int64_t head_dim, int64_t slot, void* block);
    // m, l: [rows]; acc: [rows][head_dim_padded]. softcap 0 = off, else s = cap * tanh(s / cap).
    // `next` is the block that these rows attend to next, or nullptr: a hint to fetch it meanwhile, nothing else.
    void (*attend)(const void* query, int64_t rows, const void* block, const void* next, int64_t head_dim,
                   const int32_t* lo, const int32_t* hi, float softcap, float* m, float* l, float* acc);
};

enum class Activation : uint8_t { silu = 0, gelu_tanh = 1, gelu = 2, relu = 3, tanh = 4 };

struct KernelTable {
    const char* name;  // "generic", "avx2", "avx512_vnni", "avx512", "neon"
    LinearKernel linear[format_count];
    KvKernel kv[3];
    // (m, l, acc) += (m2, l2, acc2) by the rule of online softmax, for rows of head_dim_padded values of acc.
    void (*attend_merge)(float* m, float* l, float* acc, const float* m2, const float* l2, const float* acc2,
                         int64_t rows, int64_t head_dim);
    // y = x / rms(x) * w, sum of squares in a fixed order of 16 lanes then a fixed tree; w may be null (all ones).
    void (*rms_norm)(const float* x, const float* w, int64_t n, float eps, float* y);
    void (*layer_norm)(const float* x, const float* w, const float* b, int64_t n, float eps, float* y);
    void (*activation)(Activation kind, const float* x, int64_t n, float* y);
    void (*gated)(Activation kind, const float* gate, const float* up, int64_t n, float* y);  // act(gate) * up
    void (*add)(const float* a, const float* b, int64_t n, float* y);
    void (*scale)(const float* x, float factor, int64_t n, float* y);
    void (*softcap)(const float* x, float cap, int64_t n, float* y);
    // Rotates x[0..rotary) in place (the rest is untouched); cos/sin: rotary/2 values of this position.
    // interleaved: pairs (2i, 2i+1); else pairs (i, i + rotary/2).
    void (*rope)(float* x, const float* cosine, const float* sine, int64_t rotary, bool interleaved);
    // For sampling, the same bits in every table: largest value and its first index (NaN and -1 when there is a NaN);
    // sum of exp((x - shift) * inv_temperature); these exponentials one by one, in units of 2^-30, for shift >= all x.
    void (*argmax)(const float* x, int64_t n, float* value, int64_t* index);
    float (*exp_sum)(const float* x, int64_t n, float shift, float inv_temperature);
    void (*exp_weights)(const float* x, int64_t n, float shift, float inv_temperature, uint32_t* weights);
};

// The tables that were compiled in; nullptr where this build lacks one. `supported` asks the CPU.
const KernelTable* table_generic();
const KernelTable* table_avx2();
const KernelTable* table_avx512_vnni();
const KernelTable* table_avx512();
const KernelTable* table_neon();
bool isa_supported(const char* name);
const KernelTable* table_by_name(const char* name);  // nullptr: unknown, not built, or not supported here
const KernelTable* table_best();

}  // namespace subsecond
