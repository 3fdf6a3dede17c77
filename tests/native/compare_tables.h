// What the parts of compare_tables share: inputs that are the same on every machine, and the line that is printed for a
// kernel.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "ops.h"

namespace compare {

using namespace subsecond;

constexpr float infinity = HUGE_VALF;
constexpr float guard = 7.5f;  // what lies behind an output and must stay there

// splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
class Random {
  public:
    explicit Random(uint64_t seed) : state_(seed) {}
    uint64_t next() {
        uint64_t z = state_ += 0x9e3779b97f4a7c15u;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        return z ^ (z >> 31);
    }
    int64_t below(int64_t n) { return static_cast<int64_t>(next() % static_cast<uint64_t>(n)); }
    float uniform() { return static_cast<float>(below(1 << 24) - (1 << 23)) / (1 << 23); }  // [-1, 1)

  private:
    uint64_t state_;
};

// `count` values at a 64-byte boundary, all of the byte `fill`.
template <typename T>
class Aligned {
  public:
    explicit Aligned(int64_t count, int fill = 0) : count_(count) {
        const size_t bytes =
            static_cast<size_t>(ceil_div(std::max<int64_t>(count, 1) * static_cast<int64_t>(sizeof(T)), 64) * 64);
        memory_.reset(static_cast<T*>(std::aligned_alloc(64, bytes)));
        if (memory_ == nullptr) std::abort();
        std::memset(static_cast<void*>(memory_.get()), fill, bytes);
    }
    T* data() { return memory_.get(); }
    const T* data() const { return memory_.get(); }
    T& operator[](int64_t i) { return memory_.get()[i]; }
    int64_t bytes() const { return count_ * static_cast<int64_t>(sizeof(T)); }

  private:
    struct Free {
        void operator()(T* p) const { std::free(p); }
    };
    int64_t count_;
    std::unique_ptr<T, Free> memory_;
};

// n floats in [-spread, spread); one float off the 64-byte boundary, where kernels may not ask for alignment.
struct Floats {
    explicit Floats(int64_t n, uint64_t seed = 1, float spread = 3.0f) : memory(n + 1 + 16) {
        Random random(seed + 1000 * static_cast<uint64_t>(n));
        for (int64_t i = 0; i < n; ++i) data()[i] = spread * random.uniform();
        for (int64_t i = n; i < n + 16; ++i) data()[i] = guard;
    }
    float* data() { return memory.data() + 1; }
    float& operator[](int64_t i) { return data()[i]; }
    Aligned<float> memory;
};

inline uint32_t bits_of(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return x != x ? 0x7fc00000u : bits;
}

// One printed line: what was compared of one kernel.
class Line {
  public:
    Line(const KernelTable& table, const char* kernel) : table_(table.name), kernel_(kernel) {}

    void expect(bool right, const char* format, ...) __attribute__((format(printf, 3, 4))) {
        ++checks_;
        if (right || ++wrong_ > 3) return;
        va_list arguments;
        va_start(arguments, format);
        std::printf("  %s %s: ", table_, kernel_);
        std::vprintf(format, arguments);
        std::printf("\n");
        va_end(arguments);
    }
    // The same bits in every table.
    void same(const float* got, const float* want, int64_t n, int64_t a = 0, int64_t b = 0) {
        for (int64_t i = 0; i < n; ++i) {
            add_to_hash(bits_of(got[i]));
            expect(bits_of(got[i]) == bits_of(want[i]), "value %lld of case %lld, %lld is %.9g, not %.9g",
                   static_cast<long long>(i), static_cast<long long>(a), static_cast<long long>(b),
                   static_cast<double>(got[i]), static_cast<double>(want[i]));
        }
    }
    void same_bytes(const void* got, const void* want, int64_t n, int64_t a = 0, int64_t b = 0) {
        for (int64_t i = 0; i < n; ++i) {
            const uint8_t g = static_cast<const uint8_t*>(got)[i], w = static_cast<const uint8_t*>(want)[i];
            add_to_hash(g);
            expect(g == w, "byte %lld of case %lld, %lld is 0x%02x, not 0x%02x", static_cast<long long>(i),
                   static_cast<long long>(a), static_cast<long long>(b), g, w);
        }
    }
    void near(float got, float want, double limit, int64_t a = 0, int64_t b = 0) {
        hash(&got, 1);
        if (bits_of(got) == bits_of(want))
            within(0.0, 0.0, 0.0, a, b);  // infinities and NaNs too
        else
            within(static_cast<double>(got), static_cast<double>(want), limit, a, b);
    }
    void within(double got, double want, double limit, int64_t a, int64_t b) {
        exact_ = false;
        const double error = std::fabs(got - want);
        if (limit > 0 && error <= limit) worst_ = std::max(worst_, error / limit);
        expect(error <= limit, "case %lld, %lld is %.9g, not %.9g +- %.2g", static_cast<long long>(a),
               static_cast<long long>(b), got, want, limit);
    }
    void hash(const float* got, int64_t n) {
        for (int64_t i = 0; i < n; ++i) add_to_hash(bits_of(got[i]));
    }
    bool finish() const {
        std::printf("%-8s %-18s %s", table_, kernel_, wrong_ == 0 ? "ok   " : "WRONG");
        if (exact_)
            std::printf("  %s", wrong_ == 0 ? "same bits          " : "not the same bits  ");
        else
            std::printf("  %5.1f %% of tolerance", 100 * worst_);
        std::printf("  %8lld checks  %016llx\n", static_cast<long long>(checks_),
                    static_cast<unsigned long long>(hash_));
        if (wrong_ > 0) std::printf("  %lld of them failed\n", static_cast<long long>(wrong_));
        return wrong_ == 0;
    }

  private:
    void add_to_hash(uint32_t value) { hash_ = (hash_ ^ value) * 0x100000001b3u; }  // FNV-1a, by words

    const char* table_;
    const char* kernel_;
    int64_t checks_ = 0, wrong_ = 0;
    double worst_ = 0;
    bool exact_ = true;
    uint64_t hash_ = 0xcbf29ce484222325u;
};

inline const KernelTable& generic() { return *table_generic(); }

// Each compares all of its kernels, prints a line a kernel, and returns whether all agree.
bool all_linear(const KernelTable& table);
bool all_attention(const KernelTable& table);
bool all_rows(const KernelTable& table);

}  // namespace compare
