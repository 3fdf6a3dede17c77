#include "threads.h"

#include <algorithm>
#include <utility>

#include "platform.h"

namespace subsecond {
namespace {

// Longer than a stage of a small model, shorter than what a sleeping core costs to wake.
constexpr int64_t spin_ns = 50'000;
constexpr int relaxes_a_look_at_the_clock = 16;
constexpr int64_t nap_ns = 500'000;           // the age at which Linux no longer calls a preempted thread cache-hot
constexpr int64_t between_wakes_ns = 250'000;  // within a job

constexpr uint32_t serial_of(uint64_t state) { return static_cast<uint32_t>(state >> 32); }

}  // namespace

Pool::Pool(int threads) : threads_(std::max(threads, 1)) {
    try {
        for (int worker = 1; worker < threads_; ++worker) workers_.emplace_back([this, worker] { participate(worker); });
    } catch (...) {
        stop();
        throw;
    }
}

Pool::~Pool() { stop(); }

void Pool::stop() {
    stopping_.store(true, std::memory_order_relaxed);
    publish(serial_of(state_.load(std::memory_order_relaxed)) + 1, 0, 1);
    for (std::thread& worker : workers_) worker.join();
    workers_.clear();
}

void Pool::run(Job& job) {
    job_ = &job;
    open_next(serial_of(state_.load(std::memory_order_relaxed)), 0);
    participate(0);
}

void Pool::participate(int worker) {
    uint32_t completed = 0;  // units of the current stage that this thread did and has not reported
    for (;;) {
        uint64_t state = state_.load(std::memory_order_acquire);
        const uint32_t serial = serial_of(state), next = static_cast<uint32_t>(state);
        const Shape& shape = shapes_[serial % 4];
        // The shape may already be that of a later stage; then the state has moved on, and the checks below notice.
        const uint32_t units = shape.units.load(std::memory_order_acquire);
        if (next < units) {
            const uint32_t left = units - next;
            const uint32_t share = left / (2 * static_cast<uint32_t>(threads_));
            const uint32_t take = std::min(left, std::max(share, shape.least.load(std::memory_order_relaxed)));
            if (!state_.compare_exchange_weak(state, state + take, std::memory_order_acq_rel,
                                              std::memory_order_relaxed))
                continue;
            job_->work(next, static_cast<int64_t>(next) + take, worker);
            completed += take;
            continue;
        }
        if (completed != 0) {  // the stage cannot have ended without these, so serial and units are its own
            const uint32_t reported = std::exchange(completed, 0);
            if (done_.fetch_add(reported, std::memory_order_acq_rel) + reported == units) {
                open_next(serial, worker);
                continue;
            }
        } else if (units == 0 && state_.load(std::memory_order_acquire) == state) {
            if (worker == 0 || stopping_.load(std::memory_order_relaxed)) return;
        }
        wait_beyond(serial, units != 0);
    }
}

void Pool::open_next(uint32_t serial, int worker) {
    for (;;) {
        const Extent extent = job_->advance();
        // What one claim would take is not worth a hand-over.
        if (extent.units > 0 && (extent.units <= extent.least || threads_ == 1)) {
            job_->work(0, extent.units, worker);
            continue;
        }
        publish(serial + 1, static_cast<uint32_t>(extent.units), static_cast<uint32_t>(extent.least));
        return;
    }
}

void Pool::publish(uint32_t serial, uint32_t units, uint32_t least) {
    done_.store(0, std::memory_order_relaxed);
    shapes_[serial % 4].units.store(units, std::memory_order_relaxed);
    shapes_[serial % 4].least.store(least, std::memory_order_relaxed);
    state_.store(static_cast<uint64_t>(serial) << 32, std::memory_order_release);
    // Sequentially consistent against wait_beyond: either this thread sees the sleeper, or the sleeper sees the epoch.
    // Counted, not stored: a thread that was held up here must not take back what later stages have announced.
    epoch_.fetch_add(1, std::memory_order_seq_cst);
    if (sleepers_.load(std::memory_order_seq_cst) == 0) return;
    const int64_t now = platform::clock_ns();
    const bool job_begins_or_ends = units == 0 || shapes_[(serial - 1) % 4].units.load(std::memory_order_relaxed) == 0;
    if (!job_begins_or_ends && now - last_wake_ns_.load(std::memory_order_relaxed) < between_wakes_ns) return;
    last_wake_ns_.store(now, std::memory_order_relaxed);
    platform::wake_all(epoch_);
}

void Pool::wait_beyond(uint32_t serial, bool in_job) {
    const int64_t start = platform::clock_ns();
    do {
        for (int i = 0; i < relaxes_a_look_at_the_clock; ++i) {
            if (serial_of(state_.load(std::memory_order_acquire)) != serial) return;
            platform::relax();
        }
    } while (platform::clock_ns() - start < spin_ns);
    sleepers_.fetch_add(1, std::memory_order_seq_cst);
    for (;;) {
        const uint32_t epoch = epoch_.load(std::memory_order_seq_cst);
        if (serial_of(state_.load(std::memory_order_acquire)) != serial) break;
        platform::wait_on(epoch_, epoch, in_job ? nap_ns : -1);
    }
    sleepers_.fetch_sub(1, std::memory_order_relaxed);
}

}  // namespace subsecond
