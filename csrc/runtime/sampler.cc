#include "sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>

#include "../kernels/exp2.h"
#include "sampler_pool.h"

namespace subsecond {
namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr int64_t sum_chunk = 1024;  // values a partial sum of the distribution
constexpr int32_t max_logprobs = 20;

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument(what); }

void check(const SamplerOptions& o) {
    if (!(o.temperature >= 0.0f && o.temperature < infinity)) refuse("temperature must be a finite number >= 0");
    if (o.top_k < 0) refuse("top_k must be >= 0 (0 turns it off)");
    if (!(o.top_p > 0.0f && o.top_p <= 1.0f)) refuse("top_p must be in (0, 1]");
    if (!(o.min_p >= 0.0f && o.min_p <= 1.0f)) refuse("min_p must be in [0, 1]");
    if (!(o.repetition_penalty > 0.0f && o.repetition_penalty < infinity))
        refuse("repetition_penalty must be a finite number > 0");
    if (!std::isfinite(o.presence_penalty)) refuse("presence_penalty must be finite");
    if (!std::isfinite(o.frequency_penalty)) refuse("frequency_penalty must be finite");
    if (o.min_tokens < 0) refuse("min_tokens must be >= 0");
    if (o.logprobs < -1 || o.logprobs > max_logprobs)
        refuse("logprobs must be between -1 (none) and " + std::to_string(max_logprobs));
    for (const auto& [token, bias] : o.logit_bias) {
        if (token < 0) refuse("logit_bias has the negative token id " + std::to_string(token));
        if (std::isnan(bias) || bias == infinity)
            refuse("logit_bias of token " + std::to_string(token) + " must be a number below infinity");
    }
}

float inverse_temperature(float temperature) { return std::min(1.0f / temperature, 1e30f); }

// The weight of a logit in the tempered distribution, 1 for the largest.
float relative_weight(float value, float largest, float inv_temperature) {
    return exp2_same_bits((value - largest) * (inv_temperature * log2_e));
}

// The sum of exp((x - largest) * inv_temperature), chunk by chunk in index order.
double total_weight(const KernelTable& kernels, const float* x, int64_t n, float largest, float inv_temperature) {
    double sum = 0.0;
    for (int64_t i = 0; i < n; i += sum_chunk)
        sum += kernels.exp_sum(x + i, std::min(sum_chunk, n - i), largest, inv_temperature);
    return sum;
}

}  // namespace

uint64_t philox(uint64_t seed, uint32_t choice, uint64_t position) {
    uint32_t key[2] = {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
    uint32_t c[4] = {static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32), choice, 0};
    for (int round = 0; round < 10; ++round) {
        const uint64_t p0 = 0xD2511F53ull * c[0], p1 = 0xCD9E8D57ull * c[2];
        const uint32_t n0 = static_cast<uint32_t>(p1 >> 32) ^ c[1] ^ key[0];
        const uint32_t n2 = static_cast<uint32_t>(p0 >> 32) ^ c[3] ^ key[1];
        c[1] = static_cast<uint32_t>(p1);
        c[3] = static_cast<uint32_t>(p0);
        c[0] = n0;
        c[2] = n2;
        key[0] += 0x9E3779B9u;
        key[1] += 0xBB67AE85u;
    }
    return (static_cast<uint64_t>(c[1]) << 32) | c[0];
}

Sampler::Sampler(SamplerOptions options, const KernelTable* kernels) : options_(std::move(options)), kernels_(kernels) {
    check(options_);
    std::sort(options_.stop_ids.begin(), options_.stop_ids.end());
    counting_ =
        options_.repetition_penalty != 1.0f || options_.presence_penalty != 0.0f || options_.frequency_penalty != 0.0f;
}

void Sampler::observe_prompt(const int32_t* tokens, int64_t count) {
    if (options_.repetition_penalty == 1.0f) return;
    for (int64_t i = 0; i < count; ++i) seen_.try_emplace(tokens[i], 0);
}

void Sampler::accept(int32_t token) {
    ++accepted_;
    if (counting_) ++seen_[token];
}

bool Sampler::is_stop(int32_t token) const {
    return std::binary_search(options_.stop_ids.begin(), options_.stop_ids.end(), token);
}

// Bias, penalties and forbidden tokens, in place. A NaN stays a NaN, so that broken logits are noticed.
void Sampler::adjust(float* logits, int64_t vocab, const uint32_t* allowed, int64_t words) const {
    for (const auto& [token, bias] : options_.logit_bias)
        if (token < vocab) logits[token] += bias;
    if (counting_) {
        for (const auto& [token, count] : seen_) {
            if (token < 0 || token >= vocab) continue;
            float& x = logits[token];
            x = x < 0.0f ? x * options_.repetition_penalty : x / options_.repetition_penalty;
            if (count > 0) x -= options_.frequency_penalty * static_cast<float>(count) + options_.presence_penalty;
        }
    }
    const auto forbid = [logits](int64_t token) {
        if (logits[token] == logits[token]) logits[token] = -infinity;
    };
    if (allowed != nullptr) {
        for (int64_t word = 0; word < ceil_div(vocab, 32); ++word) {
            const uint32_t bits = word < words ? allowed[word] : 0u;
            if (bits == 0xffffffffu) continue;
            const int64_t last = std::min<int64_t>(32, vocab - word * 32);
            for (int64_t bit = 0; bit < last; ++bit)
                if (((bits >> bit) & 1u) == 0) forbid(word * 32 + bit);
        }
    }
    if (accepted_ < options_.min_tokens) {
        for (const int32_t token : options_.stop_ids)
            if (token >= 0 && token < vocab) forbid(token);
    }
}

// The model's own distribution: the n most probable tokens, and log(sum exp(logit)).
double Sampler::describe(const float* logits, int64_t vocab, float largest, std::vector<TokenLogprob>* top) const {
    static thread_local std::vector<float> maxima;
    const double log_sum = largest + std::log(total_weight(*kernels_, logits, vocab, largest, 1.0f));
    const int64_t n = std::min<int64_t>(options_.logprobs, vocab);
    if (n == 0) return log_sum;
    sampling::group_maxima(logits, vocab, &maxima);
    const sampling::Pool pool{logits, nullptr, vocab, -std::numeric_limits<float>::max()};
    for (const sampling::Candidate& c : sampling::best_of(maxima, n, pool))
        top->push_back({c.token, static_cast<float>(c.value - log_sum)});
    return log_sum;
}

// A draw from the whole distribution: the chunk first, then the token in it.
int32_t Sampler::draw_all(const float* logits, int64_t vocab, float largest, uint64_t random) const {
    const float inv = inverse_temperature(options_.temperature);
    static thread_local std::vector<double> sums;
    sums.clear();
    double total = 0.0;
    for (int64_t i = 0; i < vocab; i += sum_chunk) {
        sums.push_back(kernels_->exp_sum(logits + i, std::min(sum_chunk, vocab - i), largest, inv));
        total += sums.back();
    }
    double target = static_cast<double>(random >> 11) * 0x1p-53 * total;
    int64_t chunk = 0, last_chunk = static_cast<int64_t>(sums.size()) - 1;
    while (last_chunk > 0 && sums[static_cast<size_t>(last_chunk)] == 0.0) --last_chunk;
    while (chunk < last_chunk && target >= sums[static_cast<size_t>(chunk)])
        target -= sums[static_cast<size_t>(chunk++)];
    int64_t token = -1;
    for (int64_t i = chunk * sum_chunk; i < std::min(vocab, (chunk + 1) * sum_chunk); ++i) {
        const float weight = relative_weight(logits[i], largest, inv);
        if (weight == 0.0f) continue;
        token = i;  // rounding may leave a rest after the last one: then that one
        if (target < weight) break;
        target -= weight;
    }
    return static_cast<int32_t>(token);
}

int32_t Sampler::draw(const float* logits, int64_t vocab, float largest, uint64_t random) const {
    const SamplerOptions& o = options_;
    const bool limited = o.top_k > 0 && o.top_k < vocab;
    if (!limited && o.top_p >= 1.0f && o.min_p <= 0.0f) return draw_all(logits, vocab, largest, random);

    const float inv = inverse_temperature(o.temperature);
    static thread_local std::vector<float> maxima;
    static thread_local std::vector<uint32_t> weights;
    sampling::group_maxima(logits, vocab, &maxima);
    // A threshold that surely keeps every token the exact rules can keep.
    double total = 0.0, depth = infinity;  // depth: how far below the largest logit, in units of the temperature
    if (!limited && o.min_p > 0.0f) depth = -std::log(static_cast<double>(o.min_p)) + 1e-3;
    if (!limited && o.top_p < 1.0f) {
        total = total_weight(*kernels_, logits, vocab, largest, inv);
        const double rest = std::max((1.0 - static_cast<double>(o.top_p)) * total, 1e-9);
        depth = std::min(depth, std::max(std::log(static_cast<double>(vocab) / rest), 0.0) + 1e-3);
    }
    sampling::Pool pool{logits, nullptr, vocab,
                        static_cast<float>(static_cast<double>(largest) - depth / static_cast<double>(inv))};
    pool.threshold = std::clamp(pool.threshold, -std::numeric_limits<float>::max(), largest);
    if (limited) {
        pool = sampling::collect_best(maxima, o.top_k, pool);
    } else if (std::count_if(maxima.begin(), maxima.end(), [&](float x) { return x >= pool.threshold; }) * 4 <
               static_cast<int64_t>(maxima.size())) {
        pool = sampling::collect(maxima, pool);
    }
    weights.resize(static_cast<size_t>(pool.count));
    kernels_->exp_weights(pool.value, pool.count, largest, inv, weights.data());
    const uint32_t least = static_cast<uint32_t>(std::ceil(static_cast<double>(o.min_p) * weight_one));
    const sampling::Prefix prefix(pool, weights.data(), largest, least, o.top_p, total * weight_one);
    return prefix.draw(random);
}

bool Sampler::takes_largest() const {
    return options_.temperature == 0.0f && options_.logprobs < 0 && options_.logit_bias.empty() && !counting_ &&
           allowed_.empty() && forced_ < 0 && accepted_ >= options_.min_tokens;
}

Outcome Sampler::sample_tiles(const float* logits, int64_t vocab, const int32_t* tiles, size_t count) const {
    Outcome outcome;
    float largest = -infinity;
    int64_t first = -1;
    for (size_t i = 0; i < count; ++i) {
        const int64_t start = int64_t{tiles[i]} * tile_channels;
        float value = 0.0f;
        int64_t index = -1;
        kernels_->argmax(logits + start, std::min(tile_channels, vocab - start), &value, &index);
        if (index < 0) {  // a NaN
            outcome.status = SampleStatus::non_finite;
            return outcome;
        }
        if (value > largest) {
            largest = value;
            first = start + index;
        }
    }
    if (first < 0 || !std::isfinite(largest)) {
        outcome.status = SampleStatus::non_finite;
        return outcome;
    }
    outcome.token = static_cast<int32_t>(first);
    outcome.stop = is_stop(outcome.token);
    return outcome;
}

Outcome Sampler::sample(float* logits, int64_t vocab, int64_t position, const uint32_t* allowed) const {
    Outcome outcome;
    int64_t words = ceil_div(vocab, 32);
    if (allowed == nullptr && !allowed_.empty()) {
        allowed = allowed_.data();
        words = static_cast<int64_t>(allowed_.size());
    }
    float largest = 0.0f;
    int64_t first = -1;
    const bool restricted = allowed != nullptr || !options_.logit_bias.empty() || accepted_ < options_.min_tokens;
    const bool describing = options_.logprobs >= 0;
    double log_sum = 0.0;
    static thread_local std::vector<std::pair<int32_t, float>> originals;  // of the ids that adjust() changes in value
    originals.clear();
    if (describing || restricted || counting_) {
        kernels_->argmax(logits, vocab, &largest, &first);
        if (first < 0 || !std::isfinite(largest)) {
            outcome.status = SampleStatus::non_finite;
            return outcome;
        }
    }
    if (describing) {
        log_sum = describe(logits, vocab, largest, &outcome.top);
        for (const auto& [token, bias] : options_.logit_bias)
            if (token < vocab) originals.emplace_back(token, logits[token]);
        for (const auto& [token, count] : seen_)
            if (token >= 0 && token < vocab) originals.emplace_back(token, logits[token]);
    }
    if (forced_ >= 0 && forced_ < vocab) {
        outcome.token = forced_;
        if (describing) outcome.logprob = static_cast<float>(logits[forced_] - log_sum);
        return outcome;
    }
    if (restricted || counting_) adjust(logits, vocab, allowed, words);
    if (restricted || counting_ || first < 0) kernels_->argmax(logits, vocab, &largest, &first);
    if (first < 0 || !std::isfinite(largest)) {
        const bool forbidden = restricted && first >= 0 && largest == -infinity;
        outcome.status = forbidden ? SampleStatus::none_allowed : SampleStatus::non_finite;
        return outcome;
    }
    outcome.token =
        options_.temperature == 0.0f
            ? static_cast<int32_t>(first)
            : draw(logits, vocab, largest, philox(options_.seed, options_.choice, static_cast<uint64_t>(position)));
    outcome.stop = is_stop(outcome.token);
    if (describing) {
        float value = logits[outcome.token];
        for (const auto& [token, original] : originals)
            if (token == outcome.token) value = original;
        outcome.logprob = static_cast<float>(value - log_sum);
    }
    return outcome;
}

}  // namespace subsecond
