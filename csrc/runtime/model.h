// A model that runs: described op by op, checked and laid out by finish(), then executed plan by plan.
//
// Owns: the arena, the KV pools, the stages, the threads. Knows nothing of Python, of files beyond mapped weights, or
// of requests. After finish() nothing is allocated by a run (samplers with penalties or logprobs excepted).
#pragma once
#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "compile.h"
#include "plan.h"
#include "threads.h"

namespace subsecond {

struct ModelOptions {
    std::string isa;
    int64_t threads, max_tokens, max_sequences, max_rows;
};

class Model final : private Job {
  public:
    explicit Model(const ModelOptions& options);  // throws ModelFault

    // The description, until finish(). All throw ModelFault.
    void add_tensor(const std::string& name, const std::string& format, int64_t n, int64_t k,
                    std::shared_ptr<const Weights> weights, int64_t offset, int64_t size);
    void add_vector(const std::string& name, int64_t n, std::shared_ptr<const Weights> weights, int64_t offset,
                    int64_t size);
    void add_group(const std::string& kind, int64_t window, std::vector<CacheLayer> layers);
    void add_value(int64_t width, const std::string& rows, int64_t offset);
    void add_op(OpCall op);
    void finish(int64_t output, const std::string& kv, int64_t pages);

    // Throw PlanFault; one call at a time.
    int64_t run(Plan& plan, const PlanSizes& sizes);
    void logits(float* out, int64_t size);  // rows of the last step, [rows, vocab]; computes what it has left out
    void copy_page(int64_t group, int64_t from, int64_t to);

    PlanLimits limits() const;
    int64_t page_bytes(int64_t group);
    int64_t vocab() const;
    const KernelTable& kernels() const { return kernels_; }
    int64_t rows() const { return step_.rows; }
    // Whether the last step's tokens were chosen from a part of its logits, which nobody has asked for since.
    bool screened() const { return screening_.done; }
    int64_t value_size(int64_t index) const;  // f32 values that the last step made
    void copy_value(int64_t index, float* out);

  private:
    Extent advance() noexcept override;
    void work(int64_t begin, int64_t end, int worker) noexcept override;

    void need_open() const;      // not finished yet
    void need_finished() const;  // throws PlanFault
    CacheGroup& group(int64_t index);
    void allocate_values();
    void allocate_scratch();
    void begin_call();
    void lay_out_step();
    bool end_step() noexcept;          // true: one more step follows
    void complete_logits();            // after a step that has chosen its tokens without all of them
    size_t result(int64_t row) const;  // where this step's result for a row belongs in the plan

    const KernelTable& kernels_;
    const int64_t max_tokens_, max_sequences_, max_rows_;
    bool finished_ = false;
    std::atomic<bool> running_{false};

    std::vector<std::shared_ptr<const Weights>> weights_;  // keeps mappings alive
    std::map<std::string, Tensor> tensors_;
    std::vector<CacheGroup> groups_;
    std::vector<Value> values_;
    std::vector<OpCall> ops_;
    int64_t output_ = 0, token_limit_ = 0, position_limit_ = 0;

    platform::LazyMemory arena_, scratch_;
    Shared panel_;
    std::vector<std::unique_ptr<RopeTable>> ropes_;
    std::vector<std::unique_ptr<Stage>> stages_;
    Screening screening_;
    std::vector<Worker> workers_;
    Pool pool_;

    // The call in progress.
    class Sampling;
    class Completion;
    Plan* plan_ = nullptr;
    Step step_;
    PlanSizes sizes_{};
    size_t next_stage_ = 0;
    Stage* stage_ = nullptr;
    int64_t steps_done_ = 0;
    // The step's own arrays. `origin`: the plan's number of each sequence and row of this step, which are as many after
    // the first step; in the first step the numbers are the plan's.
    std::vector<int32_t> token_, start_, token_position_, token_sequence_, row_, origin_;
};

}  // namespace subsecond
