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

constexpr size_t large_page = size_t{2} << 20;

// Address space without access; from a large page's size on, where a large page may begin. nullptr: there is none.
uint8_t* reserve(size_t bytes) {
    const size_t slack = bytes < large_page ? 0 : large_page;
    if (bytes > SIZE_MAX - slack) return nullptr;
    void* mapped = mmap(nullptr, bytes + slack, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED) return nullptr;
    uint8_t* first = static_cast<uint8_t*>(mapped);
    if (slack == 0) return first;
    const size_t skip = (large_page - reinterpret_cast<uintptr_t>(first) % large_page) % large_page;
    // Mappings are whole small pages, and munmap takes them so: what is given back ends on them.
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE)), kept = (bytes + page - 1) / page * page;
    if (skip != 0) munmap(first, skip);
    if (bytes + slack > skip + kept) munmap(first + skip + kept, bytes + slack - skip - kept);
    return first + skip;
}

// It may be refused: only speed depends on it.
void large_pages([[maybe_unused]] void* data, [[maybe_unused]] size_t bytes) {
#if defined(MADV_HUGEPAGE)
    madvise(data, bytes, MADV_HUGEPAGE);
#endif
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
    uint8_t* place = reserve(size_);
    if (place == nullptr) fail(path, "map");
    if (mmap(place, size_, PROT_READ, MAP_SHARED | MAP_FIXED, file.value, 0) == MAP_FAILED) {
        const int error = errno;
        munmap(place, size_);
        errno = error;
        fail(path, "map");
    }
    data_ = place;
    // What isn't in the page cache yet is read in large pages too. (MADV_WILLNEED would read it in small ones.)
    large_pages(place, size_);
}

MappedFile::~MappedFile() {
    if (data_ != nullptr) munmap(const_cast<uint8_t*>(data_), size_);
}

LazyMemory::LazyMemory(size_t bytes) : size_(bytes) {
    if (bytes == 0) return;
    data_ = reserve(bytes);
    if (data_ == nullptr) throw std::bad_alloc();
    if (mprotect(data_, bytes, PROT_READ | PROT_WRITE) != 0) {
        munmap(data_, bytes);
        throw std::bad_alloc();
    }
}

void LazyMemory::prefer_large_pages() {
    if (data_ != nullptr) large_pages(data_, size_);
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
