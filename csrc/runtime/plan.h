// One call into the runtime: which tokens of which sequences, their pages, which rows need logits, and what came out.
//
// Owns: preallocated arrays that the caller fills, and the checks that must pass before a kernel sees them. Knows
// nothing of requests: sequences are numbered within the plan.
#pragma once
#include <atomic>
#include <cstdint>
#include <vector>

#include "sampler.h"

namespace subsecond {

// What a plan is checked against.
struct PlanLimits {
    int64_t max_tokens, max_sequences, max_rows;
    int64_t token_limit;     // ids are below
    int64_t position_limit;  // positions are below
    int64_t vocab;           // width of the logits; 0: the model's output is not a row of logits
    struct Group {
        int64_t window, pages;
    };
    std::vector<Group> groups;
};

struct PlanSizes {
    int64_t tokens, sequences, rows, max_steps;
};

enum class Finish : int32_t { running = 0, stop = 1, non_finite = 3, none_allowed = 4 };

class Plan {
  public:
    Plan(PlanLimits limits, int64_t max_pages, int64_t max_steps);  // throws PlanFault

    // Throws PlanFault naming the field and the value. `sizes` are the parts of the arrays that are used.
    void check(const PlanSizes& sizes);

    // Whether the row belongs to the draft that a row before it began.
    bool is_drafted(int64_t row) const {
        const size_t index = static_cast<size_t>(row);
        return row > 0 && samplers[index] != nullptr && samplers[index] == samplers[index - 1];
    }
    const int32_t* table(size_t group, int64_t sequence) const {
        return page_table[group].data() + sequence * max_pages;
    }

    const PlanLimits limits;
    const int64_t max_pages, max_steps;
    std::vector<int32_t> tokens, sequence_start, position, row;
    std::vector<std::vector<int32_t>> page_table;  // [groups][max_sequences * max_pages]
    // [max_rows], not owned. Rows that follow each other with one sampler are a draft: their places follow each other
    // in one sequence, and row r + 1 takes a token only if row r has chosen the one at row r + 1's place.
    std::vector<Sampler*> samplers;
    std::atomic<bool> stop{false};

    // Results.
    std::vector<int32_t> sampled;   // [steps * rows]
    std::vector<int32_t> finish;    // [rows]
    std::vector<Outcome> outcomes;  // [steps * rows]

  private:
    void check_shape(const PlanSizes& sizes) const;
    void check_sequence(int64_t sequence, const PlanSizes& sizes);
    void check_samplers(const PlanSizes& sizes);
    bool continues(int64_t row, const PlanSizes& sizes) const;  // the row before, in its sequence
    void check_steps(const PlanSizes& sizes) const;

    std::vector<std::vector<int64_t>> writer_;  // [groups][pages]: call * max_sequences + sequence that last wrote it
    std::vector<const Sampler*> in_use_;
    int64_t calls_ = 0;
};

}  // namespace subsecond
