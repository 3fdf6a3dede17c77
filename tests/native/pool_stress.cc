// Stress of the thread pool: every unit of every stage is done exactly once, and a stage sees all of the one before it.
//
// Built with -fsanitize=thread by scripts/sanitize. Ends with 0, or prints what went wrong and ends with 1.
#include <algorithm>
#include <cstdio>
#include <vector>

#include "../../csrc/runtime/threads.h"

namespace {

using subsecond::Extent;
using subsecond::Pool;

constexpr int64_t most_units = 97;

// Stage n adds 1 to each cell from its left neighbour's value of stage n - 1, so a unit that ran early is noticed.
class Wave final : public subsecond::Job {
  public:
    explicit Wave(int stages) : stages_(stages), now_(most_units, 0), before_(most_units, 0) {}

    Extent advance() noexcept override {
        for (int64_t i = 0; i < units_; ++i)
            if (now_[static_cast<size_t>(i)] != stage_) ++wrong_;
        if (stage_ == stages_) return {};
        ++stage_;
        before_ = now_;
        units_ = 1 + (stage_ * 31) % most_units;
        for (int64_t i = 0; i < most_units; ++i) before_[static_cast<size_t>(i)] = stage_ - 1;
        return {units_, 1 + stage_ % 3, stage_ % 5};
    }

    void work(int64_t begin, int64_t end, int) noexcept override {
        for (int64_t i = begin; i < end; ++i)
            now_[static_cast<size_t>(i)] = before_[static_cast<size_t>((i + 1) % most_units)] + 1;
    }

    int wrong() const { return wrong_; }

  private:
    const int stages_;
    int stage_ = 0;
    int wrong_ = 0;
    int64_t units_ = 0;
    std::vector<int> now_, before_;
};

// More units than a range counts one by one.
class Wide final : public subsecond::Job {
  public:
    Extent advance() noexcept override {
        if (opened_) return {};
        opened_ = true;
        return {static_cast<int64_t>(times_.size()), 3, 7};
    }
    void work(int64_t begin, int64_t end, int) noexcept override {
        for (int64_t i = begin; i < end; ++i) ++times_[static_cast<size_t>(i)];
    }
    bool each_once() const {
        return std::all_of(times_.begin(), times_.end(), [](int times) { return times == 1; });
    }

  private:
    bool opened_ = false;
    std::vector<int> times_ = std::vector<int>(200'003, 0);
};

}  // namespace

int main() {
    for (const int threads : {1, 2, 3, 5}) {
        Pool pool(threads);
        for (int run = 0; run < 40; ++run) {
            Wave wave(200);
            pool.run(wave);
            if (wave.wrong() != 0) {
                std::printf("%d threads, run %d: %d units missing or early\n", threads, run, wave.wrong());
                return 1;
            }
        }
        Wide wide;
        pool.run(wide);
        if (!wide.each_once()) {
            std::printf("%d threads: a unit of many was left out or done twice\n", threads);
            return 1;
        }
    }
    std::puts("pool: every unit once, in order");
    return 0;
}
