// The tokens that a draw may take, cut down without sorting the vocabulary.
//
// Owns: finding the k best of a row, and the draw from the best-first prefix that top_p and min_p leave. Knows nothing
// of requests, penalties or random number generators. Scratch memory is the thread's, reused from call to call.
#pragma once
#include <cstdint>
#include <vector>

namespace subsecond::sampling {

struct Candidate {
    float value;
    int32_t token;
    uint32_t weight;
};

// Tokens to draw from, in index order. Weights are integers (exp_weights), so that sums do not depend on the order of
// adding, and a draw is exact. The arrays are a thread's scratch.
struct Pool {
    const float* value = nullptr;
    const int32_t* token = nullptr;  // nullptr: value[i] is token i's
    int64_t count = 0;
    float threshold = 0.0f;  // what lies below is out

    int32_t token_at(int64_t i) const { return token == nullptr ? static_cast<int32_t>(i) : token[i]; }
};

// Largest value of each group of 64 neighbours, to skip most of a row later.
void group_maxima(const float* x, int64_t n, std::vector<float>* out);

// The k best of a pool over the whole row, best first (ties by lower id); fewer when fewer are above the threshold.
// The vector is the thread's, valid until the next call.
const std::vector<Candidate>& best_of(const std::vector<float>& maxima, int64_t k, Pool pool);

// Pools over scratch arrays, in place of one over the whole row: all above the threshold, in index order; the k best.
Pool collect(const std::vector<float>& maxima, const Pool& row);
Pool collect_best(const std::vector<float>& maxima, int64_t k, const Pool& row);

// A draw from the most probable tokens of a pool: the fewest whose weights reach top_p of the total (the nucleus,
// Holtzman et al. 2020), and of these the ones with a weight of at least `least`. Both cut the order "best first" at
// one place, which buckets by value find without a sort; only the bucket that holds the cut is sorted.
class Prefix {
  public:
    // `weight`: exp_weights of the pool's values relative to `largest`. `total` is the weight of the whole distribution
    // in the same unit; 0: the pool's own.
    Prefix(const Pool& pool, const uint32_t* weight, float largest, uint32_t least, float top_p, double total);

    int32_t draw(uint64_t random) const;

  private:
    static constexpr int32_t bucket_count = 1024, out_buckets = 8;

    void fill(float largest, uint32_t least);
    void cut(uint64_t target);
    template <typename Visit>
    void each(int32_t bucket, Visit visit) const;

    const Pool& pool_;
    const uint32_t* weight_;
    uint64_t mass_[bucket_count + out_buckets] = {};
    uint64_t kept_ = 0, pool_weight_ = 0;
    int32_t cut_ = -1;  // the bucket that is kept in part: boundary()
};

}  // namespace subsecond::sampling
