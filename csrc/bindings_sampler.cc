// `subsecond._native.Sampler`, and the same sampler without a model for tests (`attention.Probe`).
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <cstring>
#include <optional>
#include <tuple>
#include <utility>

#include "bindings.h"
#include "runtime/fault.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using bindings::Floats;
using bindings::FloatsOut;
using bindings::require;
using bindings::SamplerObject;
using bindings::size_of;
using bindings::Words;
using subsecond::Sampler;
using subsecond::SamplerOptions;

using TopTokens = std::vector<std::pair<int32_t, float>>;

// `__init__` with a sampler's parameters as keywords, after `Before`; construct(self, before..., options).
template <typename T, typename... Before, typename Construct, typename... BeforeArguments>
void def_init(nb::class_<T>& type, Construct construct, const BeforeArguments&... before_arguments) {
    const std::vector<std::pair<int32_t, float>> no_bias;
    const std::vector<int32_t> no_ids;
    type.def(
        "__init__",
        [construct](T* self, Before... before, float temperature, int32_t top_k, float top_p, float min_p,
                    float repetition_penalty, float presence_penalty, float frequency_penalty, uint64_t seed,
                    uint32_t choice, std::vector<std::pair<int32_t, float>> logit_bias, std::vector<int32_t> stop_ids,
                    int32_t min_tokens, int32_t logprobs) {
            construct(self, before...,
                      SamplerOptions{.temperature = temperature,
                                     .top_k = top_k,
                                     .top_p = top_p,
                                     .min_p = min_p,
                                     .repetition_penalty = repetition_penalty,
                                     .presence_penalty = presence_penalty,
                                     .frequency_penalty = frequency_penalty,
                                     .seed = seed,
                                     .choice = choice,
                                     .logit_bias = std::move(logit_bias),
                                     .stop_ids = std::move(stop_ids),
                                     .min_tokens = min_tokens,
                                     .logprobs = logprobs});
        },
        before_arguments..., nb::kw_only(), "temperature"_a = 0.0f, "top_k"_a = 0, "top_p"_a = 1.0f, "min_p"_a = 0.0f,
        "repetition_penalty"_a = 1.0f, "presence_penalty"_a = 0.0f, "frequency_penalty"_a = 0.0f, "seed"_a = 0,
        "choice"_a = 0, "logit_bias"_a = no_bias, "stop_ids"_a = no_ids, "min_tokens"_a = 0, "logprobs"_a = -1);
}

TopTokens top_of(const subsecond::Outcome& outcome) {
    TopTokens top;
    for (const subsecond::TokenLogprob& entry : outcome.top) top.emplace_back(entry.token, entry.logprob);
    return top;
}

template <typename T>
void observe_prompt(T& self, const std::vector<int32_t>& tokens) {
    self.native.observe_prompt(tokens.data(), static_cast<int64_t>(tokens.size()));
}

// bits: one a token, little-endian words of 32.
void allow(SamplerObject& self, const nb::bytes& bits) {
    if (bits.size() % sizeof(uint32_t) != 0)
        throw subsecond::PlanFault("allow: " + std::to_string(bits.size()) + " bytes are no words of 32 bits");
    std::vector<uint32_t> words(bits.size() / sizeof(uint32_t));
    std::memcpy(words.data(), bits.data(), bits.size());
    self.native.allow(std::move(words));
}

std::pair<float, TopTokens> logprobs(const SamplerObject& self, int64_t step) {
    if (step < 0 || step >= static_cast<int64_t>(self.results.size()))
        throw subsecond::PlanFault("the last run has no log probabilities for step " + std::to_string(step));
    const subsecond::Outcome& outcome = self.results[static_cast<size_t>(step)];
    return {outcome.logprob, top_of(outcome)};
}

// A sampler without a model: logits in, (status, token, stop, logprob, top) out.
struct Probe {
    Sampler native;

    using Result = std::tuple<std::string, int32_t, bool, float, TopTokens>;
    Result sample(const FloatsOut& logits, int64_t position, const std::optional<Words>& allowed) {
        const int64_t vocab = size_of(logits);
        require(vocab > 0, "logits: empty");
        require(!allowed || size_of(*allowed) == subsecond::ceil_div(vocab, 32), "allowed: not a bit a logit");
        const subsecond::Outcome outcome =
            native.sample(logits.data(), vocab, position, allowed ? allowed->data() : nullptr);
        const char* const names[] = {"ok", "non_finite", "none_allowed"};
        return {names[static_cast<int>(outcome.status)], outcome.token, outcome.stop, outcome.logprob, top_of(outcome)};
    }
    // Tokens of one logits row at positions 0..count-1 (the row is copied each time), as counts by token.
    void histogram(const Floats& logits, int64_t count, const FloatsOut& counts) {
        require(size_of(counts) == size_of(logits), "counts: not as long as logits");
        std::vector<float> row(static_cast<size_t>(size_of(logits)));
        for (int64_t i = 0; i < count; ++i) {
            row.assign(logits.data(), logits.data() + size_of(logits));
            const int32_t token = native.sample(row.data(), size_of(logits), i).token;
            require(token >= 0, "logits: no token could be drawn");
            counts.data()[token] += 1.0f;
        }
    }
    void accept(int32_t token) { native.accept(token); }
};

}  // namespace

void bind_sampler(nb::module_& m) {
    nb::class_<SamplerObject> sampler(m, "Sampler",
                                      "One request's choice of tokens: parameters, counts of tokens, random numbers.");
    def_init(sampler, [](SamplerObject* self, SamplerOptions options) {
        try {
            new (self) SamplerObject{Sampler(std::move(options)), {}};
        } catch (const std::invalid_argument& error) {
            throw subsecond::PlanFault(error.what());
        }
    });
    sampler.def("observe_prompt", observe_prompt<SamplerObject>, "tokens"_a)
        .def("allow", allow, "bits"_a)
        .def(
            "force", [](SamplerObject& self, int32_t token) { self.native.force(token); }, "token"_a)
        .def("logprobs", logprobs, "step"_a)
        .def_prop_ro("accepted", [](const SamplerObject& self) { return self.native.accepted(); });
}

void bind_probe(nb::module_& m) {
    nb::class_<Probe> probe(m, "Probe");
    def_init<Probe, const std::string&>(
        probe,
        [](Probe* self, const std::string& isa, SamplerOptions options) {
            new (self) Probe{Sampler(std::move(options), &bindings::table_of(isa))};
        },
        "isa"_a = "generic");
    probe.def("sample", &Probe::sample, "logits"_a, "position"_a, "allowed"_a.none() = nb::none())
        .def("histogram", &Probe::histogram)
        .def("observe_prompt", observe_prompt<Probe>)
        .def("accept", &Probe::accept);
    m.def("philox", &subsecond::philox);
}
