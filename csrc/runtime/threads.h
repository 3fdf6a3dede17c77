// A pool of threads that walk one job together, stage by stage, without a fork and a join for each stage.
//
// Owns: who does which units of a stage, and waiting. Knows nothing of models. The caller of run() is worker 0.
//
// A stage is `units` units of work, cut into one contiguous range a thread. A thread claims units of its own range from
// the front, by compare-and-swap on one word that holds (serial number of the stage, end, next unit), then steals half
// of what another has left, from the back. Contiguous and from both ends, because two cores that take turns in one
// stream of weights prefetch for each other in vain: half of the memory's speed is lost. For the same reason the last
// few units are left to their owner, unless it seems to have lost its processor. Claims start large and shrink to
// `least`, so that threads finish together. Whoever completes the last unit prepares and opens the next stage. So a
// stage ends when its units are done, not when all threads have arrived: a thread that lost its processor delays the
// others only while it holds units.
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
    int64_t kept = 0;   // so many units left of a range are not worth stealing from an owner that works on them
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
        std::atomic<uint64_t> quanta{0};  // serial << 32 | quanta
        std::atomic<uint32_t> least{1}, kept{0};
        std::atomic<int64_t> quantum{1}, units{0};
    };
    struct alignas(64) Range {
        std::atomic<uint64_t> state{0};  // serial << 32 | end << 16 | next, in quanta
    };
    // What a thread knows of the stage that it works on. A quantum is one unit, or as many as make 16 bits suffice.
    struct View {
        uint32_t serial, quanta, least, kept;
        int64_t quantum, units;
    };

    void participate(int worker);  // worker 0: until the job ends; the others: until the pool stops
    uint32_t claim(const View& stage, int worker, bool all);
    uint32_t claim_own(const View& stage, int worker);
    uint32_t steal(const View& stage, int range, int worker, bool all);
    void work(const View& stage, uint32_t begin, uint32_t end, int worker);
    uint32_t bound(int range, uint32_t quanta) const;  // where a range begins; range + 1: where it ends
    uint32_t serial_seen_by(int worker) const;
    void open_next(uint32_t serial, int worker);
    void publish(uint32_t serial, const Extent& extent);
    bool spin_beyond(uint32_t serial, int worker, int64_t limit_ns) const;
    void sleep_beyond(uint32_t serial, int worker, bool in_job);
    void stop();

    const int threads_;
    std::vector<std::thread> workers_;
    Job* job_ = nullptr;
    std::atomic<bool> stopping_{false};

    std::vector<Range> ranges_;  // one a thread; its serial never goes back
    Shape shapes_[4];            // of the stage `serial`, at serial % 4; 0 quanta: no job
    // Hot words on lines of their own.
    alignas(64) std::atomic<uint32_t> done_{0};   // completed quanta of the current stage
    alignas(64) std::atomic<uint32_t> epoch_{0};  // published stages: the word that sleepers wait on
    std::atomic<uint32_t> sleepers_{0};
    std::atomic<int64_t> last_wake_ns_{0};
};

}  // namespace subsecond
