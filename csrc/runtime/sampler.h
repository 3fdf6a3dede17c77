// Choosing the next token from a row of logits.
//
// Owns: one request's (and choice's) sampling parameters, its penalty counts and its random numbers. Knows nothing of
// batches, threads, stop strings or text. One object is used by one thread at a time.
//
// Order of operations: logit bias, repetition, frequency and presence penalties, forbidden tokens (mask, stop ids
// before min_tokens), temperature, then top_k, top_p and min_p on the tempered distribution. The draw depends on the
// logits, the parameters and (seed, choice, position) alone, and is the same on every instruction set.
#pragma once
#include <cstdint>
#include <unordered_map>
#include <utility>
#include <vector>

#include "../kernels/ops.h"

namespace subsecond {

struct SamplerOptions {
    float temperature = 0.0f;         // 0: greedy, the first index wins ties
    int32_t top_k = 0;                // 0: off
    float top_p = 1.0f;               // in (0, 1]; 1: off
    float min_p = 0.0f;               // in [0, 1]; 0: off; relative to the most probable token
    float repetition_penalty = 1.0f;  // over prompt and output; 1: off (Keskar et al. 2019, CTRL, section 4.1)
    float presence_penalty = 0.0f;    // over output: subtracted once
    float frequency_penalty = 0.0f;   // over output: subtracted once an occurrence
    uint64_t seed = 0;
    uint32_t choice = 0;  // which of the n completions of the request
    std::vector<std::pair<int32_t, float>> logit_bias{};
    std::vector<int32_t> stop_ids{};
    int32_t min_tokens = 0;  // stop ids are forbidden before this many tokens were accepted
    int32_t logprobs = -1;   // -1: none; n >= 0: the chosen token's own and the n most probable ones (at most 20)
};

enum class SampleStatus : uint8_t {
    ok = 0,
    non_finite = 1,    // a logit is NaN or +inf, or every logit is -inf: the model's output is broken
    none_allowed = 2,  // mask, bias and min_tokens together forbid every token
    unreached = 3,     // of a draft's row whose token was not chosen; never of sample()
};

struct TokenLogprob {
    int32_t token;
    float logprob;  // nat, of the model's own distribution (logits before any change)
};

struct Outcome {
    SampleStatus status = SampleStatus::ok;
    int32_t token = -1;               // -1 unless ok
    bool stop = false;                // the token is one of the stop ids
    float logprob = 0.0f;             // of the chosen token; 0 unless logprobs >= 0
    std::vector<TokenLogprob> top{};  // the n most probable tokens, best first, ties by lower id
};

// 64 random bits for (seed, choice, position): Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as
// 1, 2, 3", SC 2011), keyed by the seed.
uint64_t philox(uint64_t seed, uint32_t choice, uint64_t position);

class Sampler {
  public:
    // Throws std::invalid_argument, naming the parameter, for values outside the ranges above.
    explicit Sampler(SamplerOptions options, const KernelTable* kernels = table_generic());

    // Prompt tokens, for the repetition penalty. May be called several times (pieces of a prompt).
    void observe_prompt(const int32_t* tokens, int64_t count);

    // Forbids, from the next choice on, every token whose bit (i % 32 of word i / 32) is not set, and those beyond
    // the last word. No words: all tokens are allowed.
    void allow(std::vector<uint32_t> words) { allowed_ = std::move(words); }

    // From now on chooses this token, whatever the logits: only its log probability is wanted.
    void force(int32_t token) { forced_ = token; }

    // Chooses a token; `logits` [vocab] may be changed. `allowed`: [ceil(vocab / 32)] words as in `allow`, or nullptr
    // for what `allow` was given last.
    // Ids outside [0, vocab) in the bias and stop lists are ignored here: the caller knows the vocabulary and checks.
    Outcome sample(float* logits, int64_t vocab, int64_t position, const uint32_t* allowed = nullptr) const;

    // Whether sample() would take the index of the largest logit and look at nothing else.
    bool takes_largest() const;
    // sample() for that case, where the largest logits (ties included) are known to lie in these tiles of 16, which
    // ascend; the others hold anything.
    Outcome sample_tiles(const float* logits, int64_t vocab, const int32_t* tiles, size_t count) const;

    // Counts a token of the output.
    void accept(int32_t token);

    bool is_stop(int32_t token) const;
    int64_t accepted() const { return accepted_; }
    const SamplerOptions& options() const { return options_; }
    void set_kernels(const KernelTable* kernels) { kernels_ = kernels; }

  private:
    void adjust(float* logits, int64_t vocab, const uint32_t* allowed, int64_t words) const;
    double describe(const float* logits, int64_t vocab, float largest, std::vector<TokenLogprob>* top) const;
    int32_t draw(const float* logits, int64_t vocab, float largest, uint64_t random) const;
    int32_t draw_all(const float* logits, int64_t vocab, float largest, uint64_t random) const;

    SamplerOptions options_;
    const KernelTable* kernels_;
    bool counting_;                              // some penalty is on
    std::unordered_map<int32_t, int32_t> seen_;  // token -> times in the output (0: in the prompt only)
    int64_t accepted_ = 0;
    std::vector<uint32_t> allowed_;  // empty: all
    int32_t forced_ = -1;            // -1: none
};

}  // namespace subsecond
