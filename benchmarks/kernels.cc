// Speed of the matrix products beside the limits that this machine sets, measured in the same run.
//
//   cmake --build BUILD --target subsecond_bench_kernels && BUILD/.../subsecond_bench_kernels [--isa NAME] [--threads
//   N]
//       [--seconds S] [--format NAME]
//
// Owns: the cases, the best-of-several timing, and the output: a table, then one line of JSON. `memory` cases stream a
// matrix far larger than the caches (GB/s against a bare read loop), `arithmetic` cases work on one layer's matrix
// (Gop/s, a multiplication and an addition are two, against the widest instruction alone). Tasks of a few tiles are
// handed out dynamically, as the runtime does.
#include <algorithm>
#include <atomic>
#include <barrier>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "kernels/ops.h"
#include "runtime/limits.h"

namespace {

using namespace subsecond;

double now_s() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

struct Free {
    void operator()(void* p) const { std::free(p); }
};
template <typename T>
using Memory = std::unique_ptr<T, Free>;

template <typename T>
Memory<T> memory(int64_t bytes) {
    void* p = std::aligned_alloc(64, static_cast<size_t>(ceil_div(bytes, 64) * 64));
    if (p == nullptr) std::abort();
    std::memset(p, 0, static_cast<size_t>(bytes));
    return Memory<T>(static_cast<T*>(p));
}

struct Options {
    const KernelTable* table = table_best();
    int threads = 2;
    double seconds = 0.15;
    std::string format;
};

struct Case {
    const char* kind;  // "memory" or "arithmetic"
    Format format;
    int64_t m, k, n;
};

struct Result {
    double seconds, gop_s, gbyte_s;
};

// Best time of one product [m, k] x [n, k]^T, cut into tasks of `task_tiles`.
Result measure(const Case& c, const Options& options) {
    constexpr int64_t task_tiles = 8;
    const LinearKernel& kernel = options.table->linear[static_cast<int>(c.format)];
    const int64_t tiles = tile_count(c.n), bytes_a_tile = tile_bytes(c.format, c.k), act_bytes = kernel.act_bytes(c.k);
    const Memory<char> weight = memory<char>(tiles * bytes_a_tile), act = memory<char>(c.m * act_bytes);
    const Memory<float> out = memory<float>(c.m * tiles * tile_channels * 4), x = memory<float>(c.k * 4);
    for (int64_t i = 0; i < c.k; ++i) x.get()[i] = static_cast<float>(i % 13) - 6;
    for (int64_t r = 0; r < c.m; ++r) kernel.act_prepare(x.get(), c.k, act.get() + r * act_bytes);

    std::atomic<int64_t> next{0};
    bool done = false;
    std::barrier start(options.threads + 1), end(options.threads + 1);
    // Each thread times itself: on a loaded machine the main thread may sleep through a whole round.
    std::vector<double> began_s(static_cast<size_t>(options.threads)), ended_s(began_s);
    const auto work = [&](size_t self) {
        for (;;) {
            start.arrive_and_wait();
            if (done) return;
            began_s[self] = now_s();
            for (int64_t t; (t = next.fetch_add(task_tiles)) < tiles;)
                kernel.product(tiles_at(c.format, reinterpret_cast<const uint8_t*>(weight.get()), tiles, c.k, t),
                               std::min(task_tiles, tiles - t), c.k, act.get(), c.m, out.get() + t * tile_channels,
                               tiles * tile_channels);
            ended_s[self] = now_s();
            end.arrive_and_wait();
        }
    };
    std::vector<std::thread> threads;
    for (size_t i = 0; i < began_s.size(); ++i) threads.emplace_back(work, i);
    double best_s = 1e9;
    const double stop_s = now_s() + options.seconds;
    for (int round = 0; round < 5 || now_s() < stop_s; ++round) {
        next = 0;
        start.arrive_and_wait();
        end.arrive_and_wait();
        const auto first = std::min_element(began_s.begin(), began_s.end());
        const auto last = std::max_element(ended_s.begin(), ended_s.end());
        best_s = std::min(best_s, *last - *first);
    }
    done = true;
    start.arrive_and_wait();
    for (std::thread& thread : threads) thread.join();
    const double ops = 2.0 * static_cast<double>(c.m) * static_cast<double>(c.k) * static_cast<double>(c.n);
    return {best_s, ops / best_s * 1e-9, static_cast<double>(tiles * bytes_a_tile) / best_s * 1e-9};
}

std::vector<Case> cases(const Options& options) {
    constexpr int64_t streamed_bytes = int64_t{128} << 20;
    const int64_t shapes[][2] = {{576, 1536}, {1536, 576}, {2048, 8192}, {8192, 2048}};
    std::vector<Case> all;
    for (int f = format_count - 1; f >= 0; --f) {
        const Format format = static_cast<Format>(f);
        if (!options.format.empty() && options.format != format_traits[f].name) continue;
        const int64_t streamed_n = streamed_bytes / tile_bytes(format, 576) * tile_channels;
        for (const int64_t m : {1, 4, 16}) all.push_back({"memory", format, m, 576, streamed_n});
        for (const auto& [k, n] : shapes)
            for (const int64_t m : {1, 2, 4, 8, 16, 128, 512})
                if (f >= static_cast<int>(Format::int8) || (m * k * n <= int64_t{128} * 576 * 1536))
                    all.push_back({"arithmetic", format, m, k, n});
    }
    return all;
}

// Limits are best of several, like the cases: other processes only ever make a figure smaller.
template <typename Measure>
double best_of(int times, Measure measure) {
    double best = 0;
    for (int i = 0; i < times; ++i) best = std::max(best, measure());
    return best;
}

// Operations a second of the widest instruction for the format; of f32 where this CPU has no bf16.
double arithmetic_limit(Format format, int threads) {
    return best_of(60, [&] {
        std::optional<double> rate;
        if (format == Format::bf16) rate = limits::bf16_rate(threads, 0.002);
        if (format >= Format::int8) rate = limits::int8_rate(threads, 0.002);
        if (!rate) rate = limits::f32_rate(threads, 0.002);
        return rate.value_or(0);
    });
}

double memory_limit(int threads) {
    return best_of(4, [&] { return limits::read_bandwidth(threads, int64_t{128} << 20, 0.05); });
}

Options parse(int argc, char** argv) {
    Options options;
    for (int i = 1; i + 1 < argc; i += 2) {
        const std::string key = argv[i];
        if (key == "--isa") options.table = table_by_name(argv[i + 1]);
        if (key == "--threads") options.threads = std::atoi(argv[i + 1]);
        if (key == "--seconds") options.seconds = std::atof(argv[i + 1]);
        if (key == "--format") options.format = argv[i + 1];
    }
    if (options.table == nullptr || options.threads < 1 || argc % 2 == 0) {
        std::fprintf(stderr,
                     "use: [--isa NAME] [--threads N] [--seconds S] [--format f32|bf16|int8|int4|int8_split]\n");
        std::exit(2);
    }
    return options;
}

}  // namespace

int main(int argc, char** argv) {
    const Options options = parse(argc, argv);
    std::string json = "{\"isa\": \"" + std::string(options.table->name) +
                       "\", \"threads\": " + std::to_string(options.threads) + ", \"cases\": [";
    std::printf("%s, %d threads\n%-10s %-5s %4s %5s %7s %10s %9s %9s %8s\n", options.table->name, options.threads,
                "limit", "fmt", "m", "k", "n", "us", "Gop/s", "GB/s", "of limit");
    const char* separator = "";
    double arithmetic = 0;
    int last_format = -1;
    for (const Case& c : cases(options)) {
        const bool reads = std::strcmp(c.kind, "memory") == 0;
        if (static_cast<int>(c.format) != last_format) arithmetic = arithmetic_limit(c.format, options.threads);
        last_format = static_cast<int>(c.format);
        const double bandwidth = reads ? memory_limit(options.threads) : 0;
        const Result r = measure(c, options);
        const double of_limit = reads ? r.gbyte_s * 1e9 / bandwidth : r.gop_s * 1e9 / arithmetic;
        const char* name = format_traits[static_cast<int>(c.format)].name;
        std::printf("%-10s %-5s %4ld %5ld %7ld %10.1f %9.1f %9.1f %7.0f%%\n", c.kind, name, static_cast<long>(c.m),
                    static_cast<long>(c.k), static_cast<long>(c.n), r.seconds * 1e6, r.gop_s, r.gbyte_s,
                    100 * of_limit);
        char line[400];
        std::snprintf(
            line, sizeof line,
            "%s{\"limit\": \"%s\", \"limit_value\": %.4g, \"format\": \"%s\", \"m\": %ld, \"k\": %ld, \"n\": %ld, "
            "\"seconds\": %.4g, \"gop_s\": %.1f, \"gbyte_s\": %.1f}",
            separator, c.kind, reads ? bandwidth : arithmetic, name, static_cast<long>(c.m), static_cast<long>(c.k),
            static_cast<long>(c.n), r.seconds, r.gop_s, r.gbyte_s);
        json += line;
        separator = ", ";
    }
    std::printf("%s]}\n", json.c_str());
    return 0;
}
