#include "limits.h"

#include <algorithm>
#include <atomic>
#include <barrier>
#include <cstring>
#include <numeric>
#include <thread>
#include <vector>

#include "platform.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace subsecond::limits {
namespace {

std::atomic<uint64_t> sink;  // keeps the reads from being dropped

// Runs body(thread) on every thread at once; the body returns its own rate, the sum is returned.
template <typename Body>
double sum_of_rates(int threads, Body body) {
    std::vector<double> rates(static_cast<size_t>(threads));
    std::barrier start(threads);
    auto run = [&](int thread) { rates[static_cast<size_t>(thread)] = body(thread, start); };
    {
        std::vector<std::jthread> others;
        for (int thread = 1; thread < threads; ++thread) others.emplace_back(run, thread);
        run(0);
    }
    return std::accumulate(rates.begin(), rates.end(), 0.0);
}

// Repeats step(), worth `work` units, for `seconds`, and returns units a second.
template <typename Step>
double rate_of(double work, double seconds, Step step) {
    const int64_t start = platform::clock_ns();
    const int64_t wanted = static_cast<int64_t>(seconds * 1e9);
    double done = 0;
    int64_t elapsed = 0;
    while (elapsed < wanted || elapsed == 0) {
        step();
        done += work;
        elapsed = platform::clock_ns() - start;
    }
    return done / static_cast<double>(elapsed) * 1e9;
}

constexpr int64_t read_step = 1 << 20;  // bytes between two looks at the clock: 20 to 40 microseconds

void read_generic(const uint8_t* data, int64_t bytes) {
    uint64_t value[8] = {};
    const uint64_t* words = reinterpret_cast<const uint64_t*>(data);
    for (int64_t i = 0; i < bytes / 8; i += 8)
        for (int64_t j = 0; j < 8; ++j) value[j] |= words[i + j];
    for (uint64_t x : value) sink.fetch_or(x, std::memory_order_relaxed);
}

#if defined(__x86_64__)
__attribute__((target("avx512f"))) void read_avx512(const uint8_t* data, int64_t bytes) {
    __m512i value[8];
    for (__m512i& v : value) v = _mm512_setzero_si512();
    for (int64_t i = 0; i < bytes; i += 512)
        for (int64_t j = 0; j < 8; ++j) value[j] = _mm512_or_si512(value[j], _mm512_load_si512(data + i + 64 * j));
    for (int j = 1; j < 8; ++j) value[0] = _mm512_or_si512(value[0], value[j]);
    alignas(64) uint64_t words[8];
    _mm512_store_si512(words, value[0]);
    for (uint64_t x : words) sink.fetch_or(x, std::memory_order_relaxed);
}
#endif

using Reader = void (*)(const uint8_t* data, int64_t bytes);

Reader reader() {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f")) return read_avx512;
#endif
    return read_generic;
}

// A block of independent operations, as many as hide the latency of each; `trips` blocks a call.
constexpr int64_t trips = 20000;

struct Loop {
    void (*run)();
    double operations;  // of one call
};

double loop_rate(const Loop& loop, int threads, double seconds) {
    return sum_of_rates(threads, [&](int, std::barrier<>& start) {
        loop.run();  // the clock rises to what these instructions run at
        start.arrive_and_wait();
        return rate_of(loop.operations, seconds, loop.run);
    });
}

// The accumulators are named registers: compilers spill an array of 24 of them, and then memory is what is measured.
#if defined(__x86_64__)
#define SUBSECOND_EIGHT(op, a, b, c, d, e, f, g, h) op(a) op(b) op(c) op(d) op(e) op(f) op(g) op(h)
#define SUBSECOND_ZMM_CLOBBERS                                                                                       \
    "zmm0", "zmm1", "zmm8", "zmm9", "zmm10", "zmm11", "zmm12", "zmm13", "zmm14", "zmm15", "zmm16", "zmm17", "zmm18", \
        "zmm19", "zmm20", "zmm21", "zmm22", "zmm23", "zmm24", "zmm25", "zmm26", "zmm27", "zmm28", "zmm29", "zmm30",  \
        "zmm31"
#define SUBSECOND_ZMM_LOOP(op)                                                                                         \
    asm volatile("vzeroall" ::: "zmm0", "zmm1");                                                                       \
    for (int64_t i = 0; i < trips; ++i)                                                                                \
    asm volatile(SUBSECOND_EIGHT(op, 8, 9, 10, 11, 12, 13, 14, 15) SUBSECOND_EIGHT(op, 16, 17, 18, 19, 20, 21, 22, 23) \
                     SUBSECOND_EIGHT(op, 24, 25, 26, 27, 28, 29, 30, 31)::                                             \
                         : SUBSECOND_ZMM_CLOBBERS)
#define SUBSECOND_YMM_LOOP(op)                                                                                    \
    asm volatile("vzeroall" ::: "ymm0", "ymm1");                                                                  \
    for (int64_t i = 0; i < trips; ++i)                                                                           \
    asm volatile(SUBSECOND_EIGHT(op, 8, 9, 10, 11, 12, 13, 14, 15) op(6) op(7)::                                  \
                     : "ymm0", "ymm1", "ymm2", "ymm3", "ymm6", "ymm7", "ymm8", "ymm9", "ymm10", "ymm11", "ymm12", \
                       "ymm13", "ymm14", "ymm15")
#define SUBSECOND_VPDPBUSD(r) "vpdpbusd %%zmm0,%%zmm1,%%zmm" #r "\n\t"
#define SUBSECOND_VDPBF16PS(r) "vdpbf16ps %%zmm0,%%zmm1,%%zmm" #r "\n\t"
#define SUBSECOND_FMA_ZMM(r) "vfmadd231ps %%zmm0,%%zmm1,%%zmm" #r "\n\t"
#define SUBSECOND_FMA_YMM(r) "vfmadd231ps %%ymm0,%%ymm1,%%ymm" #r "\n\t"
#define SUBSECOND_MADD_YMM(r) \
    "vpmaddubsw %%ymm0,%%ymm1,%%ymm2\n\tvpmaddwd %%ymm0,%%ymm2,%%ymm3\n\tvpaddd %%ymm3,%%ymm" #r ",%%ymm" #r "\n\t"

__attribute__((target("avx512f"))) void int8_avx512() { SUBSECOND_ZMM_LOOP(SUBSECOND_VPDPBUSD); }
__attribute__((target("avx512f"))) void bf16_avx512() { SUBSECOND_ZMM_LOOP(SUBSECOND_VDPBF16PS); }
__attribute__((target("avx512f"))) void f32_avx512() { SUBSECOND_ZMM_LOOP(SUBSECOND_FMA_ZMM); }
__attribute__((target("avx2,fma"))) void int8_avx2() { SUBSECOND_YMM_LOOP(SUBSECOND_MADD_YMM); }
__attribute__((target("avx2,fma"))) void f32_avx2() { SUBSECOND_YMM_LOOP(SUBSECOND_FMA_YMM); }

constexpr double zmm_block = trips * 24.0, ymm_block = trips * 10.0;  // instructions a call
#elif defined(__aarch64__)
#define SUBSECOND_NEON_LOOP(op)                                                                                   \
    for (int64_t i = 0; i < trips; ++i)                                                                           \
    asm volatile(op(8) op(9) op(10) op(11) op(12) op(13) op(14) op(15) op(16) op(17) op(18) op(19) op(20) op(21)  \
                     op(22) op(23)::                                                                              \
                         : "v0", "v1", "v8", "v9", "v10", "v11", "v12", "v13", "v14", "v15", "v16", "v17", "v18", \
                           "v19", "v20", "v21", "v22", "v23")
#define SUBSECOND_FMLA(r) "fmla v" #r ".4s, v0.4s, v1.4s\n\t"
#define SUBSECOND_SDOT(r) "sdot v" #r ".4s, v0.16b, v1.16b\n\t"

void f32_neon() { SUBSECOND_NEON_LOOP(SUBSECOND_FMLA); }
#if defined(__ARM_FEATURE_DOTPROD)
void int8_neon() { SUBSECOND_NEON_LOOP(SUBSECOND_SDOT); }
#endif
constexpr double neon_block = trips * 16.0;
#endif

}  // namespace

double read_bandwidth(int threads, int64_t bytes, double seconds) {
    const int64_t part = std::max<int64_t>(bytes / threads / read_step, 1) * read_step;
    platform::LazyMemory buffer(static_cast<size_t>(part * threads));
    buffer.prefer_large_pages();
    const Reader read = reader();
    return sum_of_rates(threads, [&](int thread, std::barrier<>& start) {
        uint8_t* own = buffer.data() + part * thread;
        std::memset(own, 1, static_cast<size_t>(part));
        start.arrive_and_wait();
        int64_t at = 0;
        return rate_of(static_cast<double>(read_step), seconds, [&] {
            read(own + at, read_step);
            at = at + read_step < part ? at + read_step : 0;
        });
    });
}

std::optional<double> int8_rate([[maybe_unused]] int threads, [[maybe_unused]] double seconds) {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512vnni")) return loop_rate({int8_avx512, zmm_block * 64 * 2}, threads, seconds);
    if (__builtin_cpu_supports("avx2")) return loop_rate({int8_avx2, ymm_block * 32 * 2}, threads, seconds);
#elif defined(__ARM_FEATURE_DOTPROD)
    return loop_rate({int8_neon, neon_block * 16 * 2}, threads, seconds);
#endif
    return std::nullopt;
}

std::optional<double> bf16_rate([[maybe_unused]] int threads, [[maybe_unused]] double seconds) {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512bf16")) return loop_rate({bf16_avx512, zmm_block * 32 * 2}, threads, seconds);
#endif
    return std::nullopt;
}

std::optional<double> f32_rate([[maybe_unused]] int threads, [[maybe_unused]] double seconds) {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f")) return loop_rate({f32_avx512, zmm_block * 16 * 2}, threads, seconds);
    if (__builtin_cpu_supports("fma")) return loop_rate({f32_avx2, ymm_block * 8 * 2}, threads, seconds);
#elif defined(__aarch64__)
    return loop_rate({f32_neon, neon_block * 4 * 2}, threads, seconds);
#endif
    return std::nullopt;
}

}  // namespace subsecond::limits
