#include "sampler_pool.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "../kernels/formats.h"

namespace subsecond::sampling {
namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr int64_t group_size = 64;

// A thread's scratch.
struct Scratch {
    std::vector<float> values, maxima;
    std::vector<int32_t> tokens, buckets;
    std::vector<Candidate> best, boundary;
};
thread_local Scratch scratch;

// Best first: larger logit, then lower id.
bool before(const Candidate& a, const Candidate& b) {
    return a.value > b.value || (a.value == b.value && a.token < b.token);
}

// A lower bound of the k-th largest value: at least k groups hold a value that large.
float kth_bound(const std::vector<float>& maxima, int64_t k) {
    if (k > static_cast<int64_t>(maxima.size())) return -infinity;
    std::vector<float>& sorted = scratch.maxima;
    sorted = maxima;
    const auto kth = sorted.begin() + (k - 1);
    std::nth_element(sorted.begin(), kth, sorted.end(), [](float a, float b) { return a > b; });
    return *kth;
}

}  // namespace

void group_maxima(const float* x, int64_t n, std::vector<float>* out) {
    out->resize(static_cast<size_t>(ceil_div(n, group_size)));
    float* maximum = out->data();
    const int64_t whole = n / group_size;
    for (int64_t g = 0; g < whole; ++g) {
        const float* group = x + g * group_size;
        float lane[16];
        for (int i = 0; i < 16; ++i) lane[i] = group[i];
        for (int j = 16; j < group_size; j += 16)
            for (int i = 0; i < 16; ++i) lane[i] = lane[i] < group[i + j] ? group[i + j] : lane[i];
        for (int half = 8; half > 0; half /= 2)
            for (int i = 0; i < half; ++i) lane[i] = lane[i] < lane[i + half] ? lane[i + half] : lane[i];
        maximum[g] = lane[0];
    }
    for (int64_t i = whole * group_size; i < n; ++i)
        maximum[whole] = i == whole * group_size ? x[i] : std::max(maximum[whole], x[i]);
}

Pool collect(const std::vector<float>& maxima, const Pool& row) {
    std::vector<float>& values = scratch.values;
    std::vector<int32_t>& tokens = scratch.tokens;
    size_t count = 0;
    for (size_t g = 0; g < maxima.size(); ++g) {
        if (!(maxima[g] >= row.threshold)) continue;
        const int64_t first = static_cast<int64_t>(g) * group_size, last = std::min(row.count, first + group_size);
        values.resize(count + group_size);
        tokens.resize(count + group_size);
        for (int64_t i = first; i < last; ++i) {
            values[count] = row.value[i];
            tokens[count] = static_cast<int32_t>(i);
            count += row.value[i] >= row.threshold ? 1 : 0;
        }
    }
    return {values.data(), tokens.data(), static_cast<int64_t>(count), row.threshold};
}

const std::vector<Candidate>& best_of(const std::vector<float>& maxima, int64_t k, Pool pool) {
    std::vector<Candidate>& best = scratch.best;
    pool.threshold = std::max(pool.threshold, kth_bound(maxima, k));
    pool = collect(maxima, pool);
    best.resize(static_cast<size_t>(pool.count));
    for (int64_t i = 0; i < pool.count; ++i) best[static_cast<size_t>(i)] = {pool.value[i], pool.token[i], 0};
    if (pool.count > k) {
        std::nth_element(best.begin(), best.begin() + (k - 1), best.end(), before);
        best.resize(static_cast<size_t>(k));
    }
    std::sort(best.begin(), best.end(), before);
    return best;
}

Pool collect_best(const std::vector<float>& maxima, int64_t k, const Pool& row) {
    std::vector<float>& values = scratch.values;
    std::vector<int32_t>& tokens = scratch.tokens;
    const std::vector<Candidate>& best = best_of(maxima, k, row);
    values.clear();
    tokens.clear();
    for (const Candidate& c : best) {
        values.push_back(c.value);
        tokens.push_back(c.token);
    }
    return {values.data(), tokens.data(), static_cast<int64_t>(values.size()), values.back()};
}

Prefix::Prefix(const Pool& pool, const uint32_t* weight, float largest, uint32_t least, float top_p, double total)
    : pool_(pool), weight_(weight) {
    fill(largest, least);
    uint64_t sum = 0;
    for (int32_t b = 0; b < bucket_count; ++b) sum += mass_[b];
    kept_ = sum;
    if (top_p >= 1.0f) return;
    if (total == 0.0) total = static_cast<double>(pool_weight_);
    cut(static_cast<uint64_t>(std::ceil(total * static_cast<double>(top_p))));
}

int32_t Prefix::draw(uint64_t random) const {
    // floor(random / 2^64 * kept): an integer below kept
    uint64_t target = static_cast<uint64_t>((static_cast<unsigned __int128>(random) * kept_) >> 64);
    int32_t b = 0;
    while (target >= mass_[b]) target -= mass_[b++];
    if (b == cut_) {
        for (const Candidate& c : scratch.boundary) {
            if (target < c.weight) return c.token;
            target -= c.weight;
        }
    }
    int32_t token = -1;  // always set: a bucket's mass is the sum of its weights
    each(b, [&](int64_t i) {
        if (target >= weight_[i]) {
            target -= weight_[i];
            return false;
        }
        token = pool_.token_at(i);
        return true;
    });
    return token;
}

// Sums the weights of each bucket. What is out goes to a few buckets past the end by turns: adding to the same
// address again and again waits for the addition before.
void Prefix::fill(float largest, uint32_t least) {
    const float range = largest - pool_.threshold;
    const float scale = range > 0.0f ? static_cast<float>(bucket_count - 1) / range : 0.0f;
    constexpr float out = static_cast<float>(bucket_count);
    const int32_t count = static_cast<int32_t>(pool_.count), lowest = static_cast<int32_t>(least);
    scratch.buckets.resize(static_cast<size_t>(pool_.count));
    int32_t* const bucket = scratch.buckets.data();
    const float* const value = pool_.value;
    const uint32_t* const weight = weight_;
    // Floats that are not negative compare like their bits, and the compiler makes vectors of integers; -inf, whose
    // distance is infinite, becomes `out` by the comparison.
    for (int32_t i = 0; i < count; ++i) {
        const float distance = (largest - value[i]) * scale;
        const int32_t bits = std::min(std::bit_cast<int32_t>(distance), std::bit_cast<int32_t>(out));
        const int32_t in = static_cast<int32_t>(std::bit_cast<float>(bits));
        const int32_t b = static_cast<int32_t>(weight[i]) >= lowest ? in : bucket_count;
        bucket[i] = b >= bucket_count ? bucket_count + (i & (out_buckets - 1)) : b;
    }
    pool_weight_ = 0;
    for (int32_t i = 0; i < count; ++i) {
        mass_[bucket[i]] += weight[i];
        pool_weight_ += weight[i];
    }
}

// Calls visit(i) for the members of a bucket in index order until it returns true.
template <typename Visit>
void Prefix::each(int32_t bucket, Visit visit) const {
    constexpr int64_t stride = 32;
    const int32_t* all = scratch.buckets.data();
    for (int64_t first = 0; first < pool_.count; first += stride) {
        const int64_t last = std::min(pool_.count, first + stride);
        int32_t found = 0;
        for (int64_t i = first; i < last; ++i) found |= all[i] == bucket ? 1 : 0;
        if (found == 0) continue;
        for (int64_t i = first; i < last; ++i)
            if (all[i] == bucket && visit(i)) return;
    }
}

// Shortens what is kept to the best tokens whose weights reach `target`, at least one.
void Prefix::cut(uint64_t target) {
    if (kept_ <= target) return;
    uint64_t sum = 0;
    int32_t b = 0;
    while (sum + mass_[b] < target) sum += mass_[b++];
    scratch.boundary.clear();
    each(b, [this](int64_t i) {
        scratch.boundary.push_back({pool_.value[i], pool_.token_at(i), weight_[i]});
        return false;
    });
    std::sort(scratch.boundary.begin(), scratch.boundary.end(), before);
    cut_ = b;
    mass_[b] = 0;
    size_t count = 0;
    while (count == 0 || sum + mass_[b] < target) mass_[b] += scratch.boundary[count++].weight;
    scratch.boundary.resize(count);
    kept_ = sum + mass_[b];
    std::fill(mass_ + b + 1, mass_ + bucket_count, 0);
}

}  // namespace subsecond::sampling
