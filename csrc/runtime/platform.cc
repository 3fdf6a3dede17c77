#include "platform.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <fstream>
#include <new>
#include <utility>

#include "fault.h"

namespace subsecond::platform {
namespace {

struct Descriptor {
    int value = -1;
    ~Descriptor() {
        if (value >= 0) close(value);
    }
};

[[noreturn]] void fail(const std::string& path, const char* what) {
    throw ModelFault("cannot " + std::string(what) + " '" + path + "': " + std::strerror(errno));
}

// The quota of the innermost control group that sets one, in processors; 0 when none does. Inside a container the
// root of the mounted hierarchy is the container's own group.
double quota_of(const std::string& folder) {
    std::ifstream v2(folder + "/cpu.max");
    std::string quota;
    double period = 0;
    if (v2 >> quota >> period) return quota == "max" || period <= 0 ? 0 : std::strtod(quota.c_str(), nullptr) / period;
    std::ifstream v1(folder + "/cpu.cfs_quota_us");
    std::ifstream v1_period(folder + "/cpu.cfs_period_us");
    double value = 0;
    if ((v1 >> value) && (v1_period >> period) && value > 0 && period > 0) return value / period;
    return 0;
}

double cgroup_quota() {
    double least = 0;
    const auto consider = [&least](double quota) {
        if (quota > 0 && (least == 0 || quota < least)) least = quota;
    };
    std::ifstream groups("/proc/self/cgroup");
    for (std::string line; std::getline(groups, line);) {
        const size_t first = line.find(':');
        const size_t second = first == std::string::npos ? first : line.find(':', first + 1);
        if (second == std::string::npos) continue;
        const std::string controllers = line.substr(first + 1, second - first - 1);
        std::string path = line.substr(second + 1);
        std::string root = "/sys/fs/cgroup";
        if (!controllers.empty()) {
            if (("," + controllers + ",").find(",cpu,") == std::string::npos) continue;
            root += "/cpu";
        }
        // A limit of any ancestor holds for this process too.
        for (;;) {
            consider(quota_of(root + (path == "/" ? "" : path)));
            const size_t slash = path.rfind('/');
            if (slash == std::string::npos || path.size() <= 1) break;
            path.resize(slash);
            if (path.empty()) path = "/";
        }
    }
    return least;
}

}  // namespace

MappedFile::MappedFile(const std::string& path) {
    // O_NONBLOCK: a FIFO must be refused below, not waited for.
    const Descriptor file{open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
    if (file.value < 0) fail(path, "open");
    struct stat info{};
    if (fstat(file.value, &info) != 0) fail(path, "stat");
    if (!S_ISREG(info.st_mode)) throw ModelFault("'" + path + "' is not a regular file");
    size_ = static_cast<size_t>(info.st_size);
    if (size_ == 0) return;
    void* mapped = mmap(nullptr, size_, PROT_READ, MAP_SHARED, file.value, 0);
    if (mapped == MAP_FAILED) fail(path, "map");
    data_ = static_cast<const uint8_t*>(mapped);
    madvise(mapped, size_, MADV_WILLNEED);  // a hint: failure changes nothing
}

MappedFile::~MappedFile() {
    if (data_ != nullptr) munmap(const_cast<uint8_t*>(data_), size_);
}

LazyMemory::LazyMemory(size_t bytes, bool large_pages) : size_(bytes) {
    if (bytes == 0) return;
    void* mapped = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED) throw std::bad_alloc();
    data_ = static_cast<uint8_t*>(mapped);
}

void LazyMemory::prefer_large_pages() {
#if defined(MADV_HUGEPAGE)
    if (data_ != nullptr) madvise(data_, size_, MADV_HUGEPAGE);  // it may be refused: only speed depends on it
#endif
}

LazyMemory::~LazyMemory() {
    if (data_ != nullptr) munmap(data_, size_);
}

LazyMemory::LazyMemory(LazyMemory&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

LazyMemory& LazyMemory::operator=(LazyMemory&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
}

int cpu_count() {
    cpu_set_t mask;
    CPU_ZERO(&mask);
    int count = sched_getaffinity(0, sizeof(mask), &mask) == 0 ? CPU_COUNT(&mask)
                                                               : static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN));
    const double quota = cgroup_quota();
    if (quota > 0) count = std::min(count, static_cast<int>(quota + 0.999));
    return std::max(count, 1);
}

void wait_on(const std::atomic<uint32_t>& word, uint32_t expected, int64_t timeout_ns) {
    timespec limit{timeout_ns / 1'000'000'000, timeout_ns % 1'000'000'000};
    syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, expected, timeout_ns < 0 ? nullptr : &limit, nullptr, 0);
}

void wake_all(const std::atomic<uint32_t>& word) {
    syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, 0x7fffffff, nullptr, nullptr, 0);
}

int64_t clock_ns() {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
        .count();
}

}  // namespace subsecond::platform
