// The limits that this machine sets to inference: how fast memory is read, and how fast the processor multiplies.
//
// Owns: the measurement, with its own threads and buffers. Knows nothing of models, kernels or the executor, so that
// what it reports is the machine's and not ours. Every call takes about the time that it is given.
#pragma once
#include <cstdint>
#include <optional>

namespace subsecond::limits {

// Bytes a second that `threads` threads read from memory, each looping over its own part of a buffer of `bytes` bytes.
// A buffer well above the last cache's size measures memory, a smaller one that cache. Throws std::bad_alloc.
double read_bandwidth(int threads, int64_t bytes, double seconds);

// Operations a second (a multiplication and an addition are two) of `threads` threads that do nothing else, with the
// widest instruction for the type that this CPU has; nothing where it has none.
//   int8: vpdpbusd, vpmaddubsw + vpmaddwd + vpaddd, or sdot;   bf16: vdpbf16ps;   f32: fused multiply-add
std::optional<double> int8_rate(int threads, double seconds);
std::optional<double> bf16_rate(int threads, double seconds);
std::optional<double> f32_rate(int threads, double seconds);

}  // namespace subsecond::limits
