// What a stage sees: the step being computed, the thread that computes, and the interface of a stage itself.
//
// Owns: plain data. Sizes are those of this step: T tokens of S sequences, R rows that need logits.
#pragma once
#include <cstdint>
#include <vector>

#include "threads.h"

namespace subsecond {

struct Step {
    int64_t tokens = 0;     // T
    int64_t sequences = 0;  // S
    int64_t rows = 0;       // R
    bool decode = false;    // every sequence has one token
    bool greedy = false;    // every row of logits is wanted for the index of its largest value alone
    int64_t stage = 0;      // never repeats: names the stage being computed, for what workers keep within one

    const int32_t* token = nullptr;           // [T]
    const int32_t* sequence_start = nullptr;  // [S + 1]: sequence s has the tokens [start[s], start[s + 1])
    const int32_t* token_position = nullptr;  // [T]
    const int32_t* token_sequence = nullptr;  // [T]
    const int32_t* row = nullptr;             // [R]: index of a token
    std::vector<const int32_t*> tables;       // [groups * S]: page table of sequence s in group g at g * S + s

    const int32_t* table(int64_t group, int64_t sequence) const {
        return tables[static_cast<size_t>(group * sequences + sequence)];
    }
    int64_t count(char kind) const { return kind == 'T' ? tokens : kind == 'R' ? rows : sequences; }
};

// One thread's private memory.
struct Worker {
    uint8_t* scratch = nullptr;  // 64-byte aligned; as large as the largest Stage::scratch_bytes()
    int64_t prepared = -1;       // Step::stage for which scratch holds prepared activations or queries
    int64_t prepared_for = -1;   // and whose queries
};

class Stage {
  public:
    virtual ~Stage() = default;
    // Called by one thread before the work of each step; 0 units skip the stage.
    virtual Extent begin(const Step& step) noexcept = 0;
    virtual void work(const Step& step, int64_t begin, int64_t end, Worker& worker) noexcept = 0;
    virtual int64_t scratch_bytes() const { return 0; }
};

}  // namespace subsecond
