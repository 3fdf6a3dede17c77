// A pool of threads that walk one job together, stage by stage, without a fork and a join for each stage.
//
// Owns: who does which units of a stage, and waiting. Knows nothing of models. The caller of run() is worker 0.
//
// A stage is `units` units of work, cut into one contiguous range a thread. A thread claims units of its own range by
// compare-and-swap on one word that holds (serial number of the stage, next unit), then those that others have left.
// Contiguous, because two cores that take turns in one stream of weights prefetch for each other in vain: half of the
// memory's speed is lost. Claims start large and shrink to `least`, so that threads finish together. Whoever completes
// the last unit prepares and opens the next stage. So a stage ends when its units are done, not when all threads have
// arrived: a thread that lost its processor delays the others only while it holds units.
//
// Waiting threads spin for a short while, then sleep: an idle pool uses no processor time. Within a job they sleep in
// naps, and wakes are rationed. Both are for the case that somebody else wants a processor: the scheduler moves a
// thread that was preempted to a core that becomes idle, but not in its first half millisecond, so a core must become
// idle again; and where two of our threads share a core, a wake at each stage would have them interrupt each other.
#pragma once
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace subsecond {

struct Extent {
    int64_t units = 0;  // 0: nothing (more) to do
    int64_t least = 1;  // units of the smallest claim worth its cost
};

class Job {
  public:
    virtual ~Job() = default;
    // Prepares the next stage; units == 0 ends the job. Called by one thread at a time, when all units of the stage
    // before are complete and visible.
    virtual Extent advance() noexcept = 0;
    // Does the units [begin, end) of the current stage. `worker` in 0..threads-1 names the calling thread.
    virtual void work(int64_t begin, int64_t end, int worker) noexcept = 0;
};

class Pool {
  public:
    explicit Pool(int threads);  // throws std::system_error when a thread cannot be made
    ~Pool();
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    int threads() const { return threads_; }
    // Runs `job` to its end. One call at a time; must not be called from a job.
    void run(Job& job);

  private:
    struct Shape {
        std::atomic<uint64_t> units{0};  // serial << 32 | units
        std::atomic<uint32_t> least{1};
    };
    struct alignas(64) Range {
        std::atomic<uint64_t> state{0};  // serial << 32 | next unit
    };

    void participate(int worker);  // worker 0: until the job ends; the others: until the pool stops
    uint32_t claim(uint32_t serial, uint32_t units, uint32_t least, int worker);
    uint32_t claim_from(int range, uint32_t serial, uint32_t units, uint32_t least, int worker);
    uint32_t bound(int range, uint32_t units) const;  // where a range begins; range + 1: where it ends
    uint32_t serial_seen_by(int worker) const;
    void open_next(uint32_t serial, int worker);
    void publish(uint32_t serial, uint32_t units, uint32_t least);
    void wait_beyond(uint32_t serial, int worker, bool in_job);
    void stop();

    const int threads_;
    std::vector<std::thread> workers_;
    Job* job_ = nullptr;
    std::atomic<bool> stopping_{false};

    std::vector<Range> ranges_;  // one a thread; its serial never goes back
    Shape shapes_[4];            // of the stage `serial`, at serial % 4; 0 units: no job
    // Hot words on lines of their own.
    alignas(64) std::atomic<uint32_t> done_{0};   // completed units of the current stage
    alignas(64) std::atomic<uint32_t> epoch_{0};  // published stages: the word that sleepers wait on
    std::atomic<uint32_t> sleepers_{0};
    std::atomic<int64_t> last_wake_ns_{0};
};

}  // namespace subsecond
