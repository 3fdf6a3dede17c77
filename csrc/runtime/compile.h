// From op calls to stages: what every op's compilation may look at and add to.
//
// Owns: the description of values, and the checks of what ops refer to. The stages of an op are in stages_*.cc.
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "../kernels/ops.h"
#include "kv.h"
#include "op.h"
#include "platform.h"
#include "step.h"
#include "weights.h"

namespace subsecond {

// f32 [rows, width]; rows lie `stride` floats apart, a multiple of 16: whole tiles may be written.
struct Value {
    int64_t width = 0;
    char rows = 'T';  // 'T', 'R' or 'S'
    int64_t offset = 0;
    int64_t stride = 0;
    bool made = false;  // by an op compiled so far
    float* data = nullptr;

    float* row(int64_t index) const { return data + index * stride; }
};

// cos and sin of the step's positions for one rope; filled by the first stage of each step.
struct RopeTable {
    const float* inv_freq = nullptr;  // [half]
    int64_t half = 0;
    float factor = 1;
    platform::LazyMemory memory;  // [max_tokens][2][half]

    const float* cosine(int64_t token) const {
        return reinterpret_cast<const float*>(memory.data()) + token * 2 * half;
    }
    const float* sine(int64_t token) const { return cosine(token) + half; }
};

// Memory shared by stages that never run at the same time; known in full only after all ops are compiled.
struct Shared {
    platform::LazyMemory memory;
    int64_t wanted = 0;

    void want(int64_t bytes) { wanted = bytes > wanted ? bytes : wanted; }
};

// The greedy choice of a step from bounds of its logits: stages_screen.cc decides, the sampling stage reads.
struct Screening {
    bool done = false;           // only `tiles` of this step's logits were computed; the largest ones are among them
    std::vector<int32_t> tiles;  // ascending; the first `count`
    size_t count = 0;
    size_t first_stage = 0;  // from here on, two stages compute all logits
};

struct Compiler {
    const KernelTable& kernels;
    KvFormat kv;
    int64_t threads;
    int64_t max_tokens, max_sequences, max_rows;
    std::vector<Value>& values;
    const std::map<std::string, Tensor>& tensors;
    std::vector<CacheGroup>& groups;
    std::vector<std::unique_ptr<RopeTable>>& ropes;
    Shared& panel;  // prepared activations of one linear, or partial results of one attention
    std::vector<std::unique_ptr<Stage>>& stages;
    Screening& screening;
    int64_t output_value;                // whose rows are the logits, if the last op makes it, else -1
    int64_t token_limit = INT32_MAX;     // rows of the smallest embedding table
    int64_t position_limit = INT32_MAX;  // rows of the smallest table of positions

    int64_t capacity(char rows) const { return rows == 'T' ? max_tokens : rows == 'R' ? max_rows : max_sequences; }
    const Value& input(const OpCall& op, size_t index) const;
    // Checks that the op makes exactly this shape, outside the memory of its inputs or (`in_place`) exactly on one.
    const Value& output(const OpCall& op, int64_t width, char rows, bool in_place = false);
    const Tensor& matrix(const OpCall& op, size_t place) const;
    const float* vector(const OpCall& op, size_t place, int64_t n) const;           // throws when absent
    const float* optional_vector(const OpCall& op, size_t place, int64_t n) const;  // nullptr when absent
    const RopeTable* rope(const float* inv_freq, int64_t half, float factor);
    void add(std::unique_ptr<Stage> stage) { stages.push_back(std::move(stage)); }
};

void compile(Compiler& compiler, const OpCall& op);

void compile_linear(Compiler& compiler, const OpCall& op);     // stages_linear.cc
void compile_attention(Compiler& compiler, const OpCall& op);  // stages_attention.cc
void compile_rows(Compiler& compiler, const OpCall& op);       // stages_rows.cc: every other op
std::unique_ptr<Stage> rope_stage(const std::vector<std::unique_ptr<RopeTable>>& ropes);

constexpr int64_t round_up(int64_t value, int64_t multiple) { return ceil_div(value, multiple) * multiple; }

}  // namespace subsecond
