// Attention kernels and sampling on one thread, beside the limits of this machine measured in the same run.
//
//   cmake --build BUILD --target subsecond_bench_attention
//   BUILD/csrc/kernels/subsecond_bench_attention [isa] [seconds a figure]
//
// prefill: 512 causal tokens, GFLOP/s of visible (query, key) pairs beside the processor's multiply rate.
// decode:  one token against 4,096 positions in neighbouring pages (as a fresh sequence has them) of a pool larger than
//          the caches, GB/s beside a bare read; scattered: the same with the pages in random order.
// sample:  microseconds a row of 49,152 logits.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "kernels/ops.h"
#include "runtime/limits.h"
#include "runtime/platform.h"
#include "runtime/sampler.h"

namespace {

using namespace subsecond;

constexpr const char* kv_names[] = {"f32", "bf16", "int8"};

struct Shape {
    const char* name;
    int64_t group, kv_heads, head_dim;  // group: query heads a KV head
};
constexpr Shape shapes[] = {{"smollm2-135m", 3, 3, 64}, {"qwen2.5-0.5b", 7, 2, 64}, {"llama-3.2-1b", 4, 8, 64}};

// Large pages, as the KV pool has them.
struct Memory {
    explicit Memory(size_t bytes) : lazy(bytes) {
        lazy.prefer_large_pages();
        std::memset(lazy.data(), 0, bytes);
        data = lazy.data();
    }
    platform::LazyMemory lazy;
    uint8_t* data;
};

std::string json;

void report(const std::string& name, double value, const char* unit, double limit, const char* limit_name) {
    std::printf("%-34s %9.1f %-8s", name.c_str(), value, unit);
    if (limit > 0) std::printf("  %5.1f %% of %s %.1f", 100 * value / limit, limit_name, limit);
    std::printf("\n");
    char line[256];
    std::snprintf(line, sizeof line, "%s{\"name\": \"%s\", \"value\": %.3f, \"unit\": \"%s\", \"limit\": %.3f}",
                  json.empty() ? "" : ",\n  ", name.c_str(), value, unit, limit);
    json += line;
}

// Seconds a call: the best of at least 5 timed runs, since others may use the machine.
template <typename Body>
double time_of(double seconds, Body body) {
    using Clock = std::chrono::steady_clock;
    double best = INFINITY;
    body();
    const auto begin = Clock::now();
    for (int run = 0; run < 5 || std::chrono::duration<double>(Clock::now() - begin).count() < seconds; ++run) {
        const auto start = Clock::now();
        body();
        best = std::min(best, std::chrono::duration<double>(Clock::now() - start).count());
    }
    return best;
}

void fill(const KvKernel& kernel, const Shape& shape, uint8_t* block, std::mt19937& random) {
    std::normal_distribution<float> normal;
    std::vector<float> k(static_cast<size_t>(shape.head_dim)), v(k.size());
    for (int64_t slot = 0; slot < kv_block; ++slot) {
        for (float& x : k) x = normal(random);
        for (float& x : v) x = normal(random);
        kernel.store(k.data(), v.data(), shape.head_dim, slot, block);
    }
}

// The running and the new partial results of `rows` query rows, and the prepared queries.
struct Rows {
    Rows(const KvKernel& kernel, const Shape& shape, int64_t rows, std::mt19937& random)
        : count(rows),
          padded(head_dim_padded(shape.head_dim)),
          query(static_cast<size_t>(rows * kernel.query_bytes(shape.head_dim))),
          m(static_cast<size_t>(2 * rows)),
          l(m.size()),
          acc(static_cast<size_t>(2 * rows * padded)),
          lo(static_cast<size_t>(rows)),
          hi(lo.size()) {
        std::normal_distribution<float> normal;
        std::vector<float> q(static_cast<size_t>(shape.head_dim));
        for (int64_t r = 0; r < rows; ++r) {
            for (float& x : q) x = normal(random);
            kernel.query_prepare(q.data(), shape.head_dim, 0.125f, query.data + r * kernel.query_bytes(shape.head_dim));
        }
    }
    void clear() {
        std::fill(m.begin(), m.begin() + count, -INFINITY);
        std::fill(l.begin(), l.begin() + count, 0.0f);
    }
    void attend(const KernelTable& table, const KvKernel& kernel, const uint8_t* block, const uint8_t* next,
                int64_t head_dim) {
        float *m2 = m.data() + count, *l2 = l.data() + count, *acc2 = acc.data() + count * padded;
        kernel.attend(query.data, count, block, next, head_dim, lo.data(), hi.data(), 0.0f, m2, l2, acc2);
        table.attend_merge(m.data(), l.data(), acc.data(), m2, l2, acc2, count, head_dim);
    }
    int64_t count, padded;
    Memory query;
    std::vector<float> m, l, acc;
    std::vector<int32_t> lo, hi;
};

void bench_prefill(const KernelTable& table, KvFormat format, const Shape& shape, double seconds, double peak) {
    constexpr int64_t tokens = 512, tile = 64;
    std::mt19937 random(1);
    const KvKernel& kernel = table.kv[static_cast<int>(format)];
    const int64_t bytes = kv_block_bytes(format, shape.head_dim);
    Memory blocks(static_cast<size_t>(tokens / kv_block * bytes));
    for (int64_t b = 0; b < tokens / kv_block; ++b) fill(kernel, shape, blocks.data + b * bytes, random);
    Rows rows(kernel, shape, tile * shape.group, random);
    const double took = time_of(seconds, [&] {
        for (int64_t first = 0; first < tokens; first += tile) {
            rows.clear();
            for (int64_t b = 0; b * kv_block < first + tile; ++b) {
                for (int64_t r = 0; r < rows.count; ++r) {
                    const int64_t position = first + r / shape.group;
                    rows.lo[static_cast<size_t>(r)] = 0;
                    rows.hi[static_cast<size_t>(r)] =
                        static_cast<int32_t>(std::clamp<int64_t>(position + 1 - b * kv_block, 0, kv_block));
                }
                rows.attend(table, kernel, blocks.data + b * bytes, nullptr, shape.head_dim);
            }
        }
    });
    const double pairs = static_cast<double>(tokens * (tokens + 1) / 2 * shape.group);
    report(std::string("prefill ") + shape.name + " " + kv_names[static_cast<int>(format)],
           pairs * 4 * static_cast<double>(shape.head_dim) / took * 1e-9, "GFLOP/s", peak * 1e-9, "the multiply rate");
}

void bench_decode(const KernelTable& table, KvFormat format, const Shape& shape, bool scattered, double seconds,
                  double bandwidth) {
    constexpr int64_t context = 4096, pool_bytes = 256 << 20;
    std::mt19937 random(2);
    const KvKernel& kernel = table.kv[static_cast<int>(format)];
    const int64_t bytes = kv_block_bytes(format, shape.head_dim), pool = pool_bytes / bytes;
    Memory blocks(static_cast<size_t>(pool * bytes));
    fill(kernel, shape, blocks.data, random);
    for (int64_t b = 1; b < pool; ++b) std::memcpy(blocks.data + b * bytes, blocks.data, static_cast<size_t>(bytes));
    std::vector<int64_t> order(static_cast<size_t>(pool));
    std::iota(order.begin(), order.end(), 0);
    if (scattered) std::shuffle(order.begin(), order.end(), random);
    Rows rows(kernel, shape, shape.group, random);
    std::fill(rows.lo.begin(), rows.lo.end(), 0);
    std::fill(rows.hi.begin(), rows.hi.end(), static_cast<int32_t>(kv_block));
    size_t next = 0;
    const double took = time_of(seconds, [&] {
        rows.clear();
        for (int64_t b = 0; b < context / kv_block; ++b) {
            const uint8_t* block = blocks.data + order[next] * bytes;
            next = (next + 1) % order.size();
            rows.attend(table, kernel, block, blocks.data + order[next] * bytes, shape.head_dim);
        }
    });
    report(std::string(scattered ? "scattered " : "decode ") + shape.name + " " + kv_names[static_cast<int>(format)],
           static_cast<double>(context / kv_block * bytes) / took * 1e-9, "GB/s", bandwidth * 1e-9, "a bare read");
}

void bench_sampling(const KernelTable& table, double seconds) {
    constexpr int64_t vocab = 49152;
    std::mt19937 random(3);
    std::normal_distribution<float> normal;
    for (const float spread : {1.0f, 3.0f}) {
        std::vector<float> source(vocab), logits(vocab);
        for (float& x : source) x = spread * normal(random);
        const double copy = time_of(seconds, [&] { logits = source; });
        const struct {
            const char* name;
            SamplerOptions options;
        } cases[] = {
            {"greedy", {}},
            {"temperature", {.temperature = 0.8f}},
            {"top_k 50", {.temperature = 0.8f, .top_k = 50}},
            {"top_p 0.95", {.temperature = 0.8f, .top_p = 0.95f}},
            {"top_k 50 top_p 0.9 min_p 0.05", {.temperature = 0.8f, .top_k = 50, .top_p = 0.9f, .min_p = 0.05f}},
            {"logprobs 5", {.logprobs = 5}}};
        for (const auto& c : cases) {
            const Sampler sampler(c.options, &table);
            int64_t position = 0;
            const double took = time_of(seconds, [&] {
                logits = source;
                if (sampler.sample(logits.data(), vocab, position++).status != SampleStatus::ok) std::abort();
            });
            report("sample spread " + std::to_string(static_cast<int>(spread)) + " " + c.name, (took - copy) * 1e6,
                   "us", 0, "");
        }
    }
}

}  // namespace

int main(int argc, char** argv) {
    const KernelTable* table = argc > 1 ? table_by_name(argv[1]) : table_best();
    const double seconds = argc > 2 ? std::atof(argv[2]) : 0.3;
    if (table == nullptr || !(seconds > 0)) {
        std::fprintf(stderr,
                     "usage: %s [generic|avx2|avx512_vnni|avx512|neon] [seconds]: not built or not supported here\n",
                     argv[0]);
        return 2;
    }
    const double bandwidth = limits::read_bandwidth(1, int64_t{256} << 20, 1.0);
    const double f32 = limits::f32_rate(1, 0.5).value_or(0), bf16 = limits::bf16_rate(1, 0.5).value_or(f32);
    const double int8 = limits::int8_rate(1, 0.5).value_or(f32);
    std::printf("%s, one thread; read %.1f GB/s, f32 %.0f, bf16 %.0f, int8 %.0f Gop/s\n", table->name, bandwidth * 1e-9,
                f32 * 1e-9, bf16 * 1e-9, int8 * 1e-9);
    const double peaks[] = {f32, bf16, int8};
    for (const Shape& shape : shapes)
        for (int f = 0; f < 3; ++f) bench_prefill(*table, static_cast<KvFormat>(f), shape, seconds, peaks[f]);
    for (const bool scattered : {false, true})
        for (const Shape& shape : shapes)
            for (int f = 0; f < 3; ++f)
                bench_decode(*table, static_cast<KvFormat>(f), shape, scattered, seconds, bandwidth);
    bench_sampling(*table, seconds);
    std::printf("{\"isa\": \"%s\", \"read_gb_s\": %.2f, \"bf16_gop_s\": %.1f, \"figures\": [\n  %s\n]}\n", table->name,
                bandwidth * 1e-9, bf16 * 1e-9, json.c_str());
    return 0;
}
