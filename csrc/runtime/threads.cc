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

constexpr int64_t patience_ns = 10'000;  // how long a thread that works takes for the units that are left to it
constexpr int64_t most_quanta = 0xffff;

constexpr uint32_t serial_of(uint64_t state) { return static_cast<uint32_t>(state >> 32); }
constexpr uint32_t end_of(uint64_t state) { return static_cast<uint32_t>(state >> 16) & 0xffff; }
constexpr uint32_t next_of(uint64_t state) { return static_cast<uint32_t>(state) & 0xffff; }

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
    publish(serial_seen_by(0) + 1, {});
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

uint32_t Pool::bound(int range, uint32_t quanta) const {
    return static_cast<uint32_t>(static_cast<uint64_t>(quanta) * static_cast<uint64_t>(range) /
                                 static_cast<uint64_t>(threads_));
}

void Pool::work(const View& stage, uint32_t begin, uint32_t end, int worker) {
    job_->work(begin * stage.quantum, std::min(end * stage.quantum, stage.units), worker);
}

// Claims and does quanta of the thread's own range until none is left; the number of quanta done.
uint32_t Pool::claim_own(const View& stage, int worker) {
    std::atomic<uint64_t>& word = ranges_[static_cast<size_t>(worker)].state;
    uint32_t done = 0;
    uint64_t state = word.load(std::memory_order_acquire);
    while (serial_of(state) == stage.serial && next_of(state) < end_of(state)) {
        const uint32_t next = next_of(state), left = end_of(state) - next;
        const uint32_t take = std::min(left, std::max(left / claims_a_range, stage.least));
        if (!word.compare_exchange_weak(state, state + take, std::memory_order_acq_rel, std::memory_order_acquire))
            continue;
        work(stage, next, next + take, worker);
        done += take;
        state = word.load(std::memory_order_acquire);
    }
    return done;
}

// The same with another thread's range; `all`: what is usually left to the owner too.
uint32_t Pool::steal(const View& stage, int range, int worker, bool all) {
    std::atomic<uint64_t>& word = ranges_[static_cast<size_t>(range)].state;
    const uint32_t kept = all ? 0 : stage.kept;
    uint32_t done = 0;
    uint64_t state = word.load(std::memory_order_acquire);
    while (serial_of(state) == stage.serial && next_of(state) + kept < end_of(state)) {
        const uint32_t end = end_of(state), left = end - next_of(state);
        const uint32_t take = std::min(left, std::max((left + 1) / 2, stage.least));
        if (!word.compare_exchange_weak(state, state - (uint64_t{take} << 16), std::memory_order_acq_rel,
                                        std::memory_order_acquire))
            continue;
        work(stage, end - take, end, worker);
        done += take;
        state = word.load(std::memory_order_acquire);
    }
    return done;
}

uint32_t Pool::claim(const View& stage, int worker, bool all) {
    uint32_t done = claim_own(stage, worker);
    for (int i = 1; i < threads_; ++i) done += steal(stage, (worker + i) % threads_, worker, all);
    return done;
}

void Pool::participate(int worker) {
    bool patient = true;  // leaves to others what they keep for themselves
    for (;;) {
        const uint32_t serial = serial_seen_by(worker);
        const Shape& shape = shapes_[serial % 4];
        const uint64_t serial_and_quanta = shape.quanta.load(std::memory_order_acquire);
        // Another serial: the stage has long ended, and the wait returns at once.
        const bool current = serial_of(serial_and_quanta) == serial;
        const uint32_t quanta = static_cast<uint32_t>(serial_and_quanta);
        if (current && quanta != 0) {
            // Where the slot is being overwritten, this stage has ended, and no claim will succeed.
            const View stage{serial,
                             quanta,
                             shape.least.load(std::memory_order_relaxed),
                             shape.kept.load(std::memory_order_relaxed),
                             shape.quantum.load(std::memory_order_relaxed),
                             shape.units.load(std::memory_order_relaxed)};
            const uint32_t done = claim(stage, worker, !patient);
            // Until these units are reported the stage cannot end.
            if (done != 0 && done_.fetch_add(done, std::memory_order_acq_rel) + done == quanta) {
                open_next(serial, worker);
                patient = true;
                continue;
            }
        } else if (current && (worker == 0 || stopping_.load(std::memory_order_relaxed))) {
            return;
        }
        const bool in_job = !current || quanta != 0;
        if (in_job && patient) {
            patient = spin_beyond(serial, worker, patience_ns);
            continue;
        }
        if (!spin_beyond(serial, worker, spin_ns)) sleep_beyond(serial, worker, in_job);
        patient = true;
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
        publish(serial + 1, extent);
        return;
    }
}

void Pool::publish(uint32_t serial, const Extent& extent) {
    done_.store(0, std::memory_order_relaxed);
    const int64_t quantum = std::max<int64_t>(1, (extent.units + most_quanta - 1) / most_quanta);
    const auto in_quanta = [quantum](int64_t units) { return static_cast<uint32_t>((units + quantum - 1) / quantum); };
    const uint32_t quanta = in_quanta(extent.units);
    Shape& shape = shapes_[serial % 4];
    shape.least.store(in_quanta(extent.least), std::memory_order_relaxed);
    shape.kept.store(in_quanta(extent.kept), std::memory_order_relaxed);
    shape.quantum.store(quantum, std::memory_order_relaxed);
    shape.units.store(extent.units, std::memory_order_relaxed);
    shape.quanta.store(static_cast<uint64_t>(serial) << 32 | quanta, std::memory_order_release);
    for (int range = 0; range < threads_; ++range) {
        std::atomic<uint64_t>& word = ranges_[static_cast<size_t>(range)].state;
        const uint64_t first =
            static_cast<uint64_t>(serial) << 32 | bound(range + 1, quanta) << 16 | bound(range, quanta);
        uint64_t state = word.load(std::memory_order_relaxed);
        // Other threads may end this stage and open later ones before this loop ends: a serial never goes back.
        while (static_cast<int32_t>(serial - serial_of(state)) > 0 &&
               !word.compare_exchange_weak(state, first, std::memory_order_release, std::memory_order_relaxed)) {
        }
    }
    // Sequentially consistent against sleep_beyond: either this thread sees the sleeper, or the sleeper sees the epoch.
    // Counted, not stored: a thread that was held up here must not take back what later stages have announced.
    epoch_.fetch_add(1, std::memory_order_seq_cst);
    if (sleepers_.load(std::memory_order_seq_cst) == 0) return;
    const int64_t now = platform::clock_ns();
    const uint64_t before = shapes_[(serial - 1) % 4].quanta.load(std::memory_order_relaxed);
    const bool job_begins_or_ends = quanta == 0 || static_cast<uint32_t>(before) == 0;
    if (!job_begins_or_ends && now - last_wake_ns_.load(std::memory_order_relaxed) < between_wakes_ns) return;
    last_wake_ns_.store(now, std::memory_order_relaxed);
    platform::wake_all(epoch_);
}

// Whether the stage has ended meanwhile.
bool Pool::spin_beyond(uint32_t serial, int worker, int64_t limit_ns) const {
    const int64_t start = platform::clock_ns();
    do {
        for (int i = 0; i < relaxes_a_look_at_the_clock; ++i) {
            if (serial_seen_by(worker) != serial) return true;
            platform::relax();
        }
    } while (platform::clock_ns() - start < limit_ns);
    return false;
}

void Pool::sleep_beyond(uint32_t serial, int worker, bool in_job) {
    sleepers_.fetch_add(1, std::memory_order_seq_cst);
    for (;;) {
        const uint32_t epoch = epoch_.load(std::memory_order_seq_cst);
        if (serial_seen_by(worker) != serial) break;
        platform::wait_on(epoch_, epoch, in_job ? nap_ns : -1);
    }
    sleepers_.fetch_sub(1, std::memory_order_relaxed);
}

}  // namespace subsecond
