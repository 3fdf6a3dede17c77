// What the operating system offers: file and anonymous mappings, the processor count, sleeping on a word, a clock.
//
// Owns: every platform call of the runtime (platform.cc is the only source that includes system headers). Knows
// nothing of models or Python. Linux first; each function has a one-to-one counterpart on macOS (mmap, sysctl,
// os_sync_wait_on_address, mach_absolute_time).
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace subsecond::platform {

// A file mapped read-only. Pages are shared with the page cache: opening copies nothing.
class MappedFile {
  public:
    explicit MappedFile(const std::string& path);  // throws ModelFault naming the path and the system's reason
    ~MappedFile();
    MappedFile(const MappedFile&) = delete;
    MappedFile& operator=(const MappedFile&) = delete;

    const uint8_t* data() const { return data_; }
    size_t size() const { return size_; }

  private:
    const uint8_t* data_ = nullptr;
    size_t size_ = 0;
};

// Zeroed memory that costs nothing until it is touched.
class LazyMemory {
  public:
    LazyMemory() = default;
    explicit LazyMemory(size_t bytes);  // throws std::bad_alloc
    ~LazyMemory();
    LazyMemory(LazyMemory&& other) noexcept;
    LazyMemory& operator=(LazyMemory&& other) noexcept;

    uint8_t* data() const { return data_; }
    size_t size() const { return size_; }
    void prefer_large_pages();  // a hint before the first touch: fewer misses of the address cache, larger pieces

  private:
    uint8_t* data_ = nullptr;
    size_t size_ = 0;
};

// Processors this process may use: affinity mask, cut by the control group's quota (rounded up), at least 1.
int cpu_count();

// Sleeps while *word == expected, at most until a wake or for `timeout_ns` (negative: no limit); may return early.
void wait_on(const std::atomic<uint32_t>& word, uint32_t expected, int64_t timeout_ns);
void wake_all(const std::atomic<uint32_t>& word);

int64_t clock_ns();  // monotonic

// A hint to the processor that this thread spins.
inline void relax() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("isb" ::: "memory");
#endif
}

}  // namespace subsecond::platform
