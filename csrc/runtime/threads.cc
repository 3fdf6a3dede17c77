#include "threads.h"

#include <algorithm>
#include <utility>

#include "platform.h"

namespace subsecond {
namespace {

// Longer than a stage of a small model, shorter than what a sleeping core costs to wake.
constexpr int64_t spin_ns = 50'000;
constexpr int relaxes_a_look_at_the_clock = 16;
constexpr uint32_t claims_a_range = 4;         // a claim takes this part of what is left of a range
constexpr int64_t nap_ns = 500'000;            // the age at which Linux no longer calls a preempted thread cache-hot
constexpr int64_t between_wakes_ns = 250'000;  // within a job

constexpr uint32_t serial_of(uint64_t state) { return static_cast<uint32_t>(state >> 32); }

}  // namespace

Pool::Pool(int threads) : threads_(std::max(threads, 1)), ranges_(static_cast<size_t>(threads_)) {
    try {
        for (int worker = 1; worker < threads_; ++worker)
            workers_.emplace_back([this, worker] { participate(worker); });
    } catch (...) {
        stop();
        throw;
    }
}

Pool::~Pool() { stop(); }

void Pool::stop() {
    stopping_.store(true, std::memory_order_relaxed);
    publish(serial_seen_by(0) + 1, 0, 1);
    for (std::thread& worker : workers_) worker.join();
    workers_.clear();
}

void Pool::run(Job& job) {
    job_ = &job;
    open_next(serial_seen_by(0), 0);
    participate(0);
}

uint32_t Pool::serial_seen_by(int worker) const {
    return serial_of(ranges_[static_cast<size_t>(worker)].state.load(std::memory_order_acquire));
}

uint32_t Pool::bound(int range, uint32_t units) const {
    return static_cast<uint32_t>(static_cast<uint64_t>(units) * static_cast<uint64_t>(range) /
                                 static_cast<uint64_t>(threads_));
}

// Claims and does units of one range until none is left; the number of units done.
uint32_t Pool::claim_from(int range, uint32_t serial, uint32_t units, uint32_t least, int worker) {
    std::atomic<uint64_t>& word = ranges_[static_cast<size_t>(range)].state;
    const uint32_t end = bound(range + 1, units);
    uint32_t done = 0;
    uint64_t state = word.load(std::memory_order_acquire);
    while (serial_of(state) == serial && static_cast<uint32_t>(state) < end) {
        const uint32_t next = static_cast<uint32_t>(state), left = end - next;
        const uint32_t take = std::min(left, std::max(left / claims_a_range, least));
        if (!word.compare_exchange_weak(state, state + take, std::memory_order_acq_rel, std::memory_order_acquire))
            continue;
        job_->work(next, static_cast<int64_t>(next) + take, worker);
        done += take;
        state = word.load(std::memory_order_acquire);
    }
    return done;
}

uint32_t Pool::claim(uint32_t serial, uint32_t units, uint32_t least, int worker) {
    uint32_t done = 0;
    for (int i = 0; i < threads_; ++i) done += claim_from((worker + i) % threads_, serial, units, least, worker);
    return done;
}

void Pool::participate(int worker) {
    for (;;) {
        const uint32_t serial = serial_seen_by(worker);
        const Shape& shape = shapes_[serial % 4];
        const uint64_t serial_and_units = shape.units.load(std::memory_order_acquire);
        // Another serial: the stage has long ended, and the wait returns at once.
        const bool current = serial_of(serial_and_units) == serial;
        const uint32_t units = static_cast<uint32_t>(serial_and_units);
        if (current && units != 0) {
            const uint32_t done = claim(serial, units, shape.least.load(std::memory_order_relaxed), worker);
            // Until these units are reported the stage cannot end.
            if (done != 0 && done_.fetch_add(done, std::memory_order_acq_rel) + done == units) {
                open_next(serial, worker);
                continue;
            }
        } else if (current && (worker == 0 || stopping_.load(std::memory_order_relaxed))) {
            return;
        }
        wait_beyond(serial, worker, !current || units != 0);
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
    shapes_[serial % 4].least.store(least, std::memory_order_relaxed);
    shapes_[serial % 4].units.store(static_cast<uint64_t>(serial) << 32 | units, std::memory_order_release);
    for (int range = 0; range < threads_; ++range) {
        std::atomic<uint64_t>& word = ranges_[static_cast<size_t>(range)].state;
        const uint64_t first = static_cast<uint64_t>(serial) << 32 | bound(range, units);
        uint64_t state = word.load(std::memory_order_relaxed);
        // Other threads may end this stage and open later ones before this loop ends: a serial never goes back.
        while (static_cast<int32_t>(serial - serial_of(state)) > 0 &&
               !word.compare_exchange_weak(state, first, std::memory_order_release, std::memory_order_relaxed)) {
        }
    }
    // Sequentially consistent against wait_beyond: either this thread sees the sleeper, or the sleeper sees the epoch.
    // Counted, not stored: a thread that was held up here must not take back what later stages have announced.
    epoch_.fetch_add(1, std::memory_order_seq_cst);
    if (sleepers_.load(std::memory_order_seq_cst) == 0) return;
    const int64_t now = platform::clock_ns();
    const uint64_t before = shapes_[(serial - 1) % 4].units.load(std::memory_order_relaxed);
    const bool job_begins_or_ends = units == 0 || static_cast<uint32_t>(before) == 0;
    if (!job_begins_or_ends && now - last_wake_ns_.load(std::memory_order_relaxed) < between_wakes_ns) return;
    last_wake_ns_.store(now, std::memory_order_relaxed);
    platform::wake_all(epoch_);
}

void Pool::wait_beyond(uint32_t serial, int worker, bool in_job) {
    const int64_t start = platform::clock_ns();
    do {
        for (int i = 0; i < relaxes_a_look_at_the_clock; ++i) {
            if (serial_seen_by(worker) != serial) return;
            platform::relax();
        }
    } while (platform::clock_ns() - start < spin_ns);
    sleepers_.fetch_add(1, std::memory_order_seq_cst);
    for (;;) {
        const uint32_t epoch = epoch_.load(std::memory_order_seq_cst);
        if (serial_seen_by(worker) != serial) break;
        platform::wait_on(epoch_, epoch, in_job ? nap_ns : -1);
    }
    sleepers_.fetch_sub(1, std::memory_order_relaxed);
}

}  // namespace subsecond
