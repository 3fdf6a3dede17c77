// `subsecond._native.attention`: raw attention kernels, sampling reductions and the sampler, for tests.
//
// Owns: the checks that keep a test from reading past its arrays. Not a public interface, and not used when a model
// runs.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "kernels/ops.h"
#include "runtime/sampler.h"

namespace nb = nanobind;

namespace {

using subsecond::KernelTable;
using subsecond::kv_block;
using subsecond::KvFormat;
using subsecond::KvKernel;
using subsecond::Sampler;
using subsecond::SamplerOptions;

using Floats = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;
using FloatsOut = nb::ndarray<float, nb::c_contig, nb::device::cpu>;
using Ints = nb::ndarray<const int32_t, nb::c_contig, nb::device::cpu>;
using Words = nb::ndarray<const uint32_t, nb::c_contig, nb::device::cpu>;
using Bytes = nb::ndarray<const uint8_t, nb::c_contig, nb::device::cpu>;
using BytesOut = nb::ndarray<uint8_t, nb::c_contig, nb::device::cpu>;

void require(bool holds, const char* what) {
    if (!holds) throw std::invalid_argument(what);
}

template <typename Array>
int64_t size_of(const Array& array) {
    return static_cast<int64_t>(array.size());
}

const KernelTable& table_of(const std::string& isa) {
    const KernelTable* table = subsecond::table_by_name(isa.c_str());
    if (table == nullptr) throw std::invalid_argument("isa '" + isa + "' is not built or not supported by this CPU");
    return *table;
}

KvFormat kv_format_of(const std::string& name) {
    const char* const names[] = {"f32", "bf16", "int8"};
    for (int i = 0; i < 3; ++i)
        if (name == names[i]) return static_cast<KvFormat>(i);
    throw std::invalid_argument("KV format '" + name + "' is not one of f32, bf16, int8");
}

const KvKernel& kernel_of(const std::string& isa, const std::string& format) {
    return table_of(isa).kv[static_cast<int>(kv_format_of(format))];
}

void store(const std::string& isa, const std::string& format, const Floats& k, const Floats& v, int64_t slot,
           const BytesOut& block) {
    const int64_t head_dim = size_of(k);
    require(head_dim > 0 && size_of(v) == head_dim, "v: not as long as k");
    require(slot >= 0 && slot < kv_block, "slot: outside the block");
    require(size_of(block) == subsecond::kv_block_bytes(kv_format_of(format), head_dim), "block: wrong size");
    kernel_of(isa, format).store(k.data(), v.data(), head_dim, slot, block.data());
}

void query_prepare(const std::string& isa, const std::string& format, const Floats& q, int64_t rows, float scale,
                   const BytesOut& out) {
    const KvKernel& kernel = kernel_of(isa, format);
    require(rows > 0 && size_of(q) > 0 && size_of(q) % rows == 0, "q: not that many rows");
    const int64_t head_dim = size_of(q) / rows, bytes = kernel.query_bytes(head_dim);
    require(size_of(out) == rows * bytes, "out: not rows * query_bytes");
    for (int64_t r = 0; r < rows; ++r)
        kernel.query_prepare(q.data() + r * head_dim, head_dim, scale, out.data() + r * bytes);
}

void attend(const std::string& isa, const std::string& format, const Bytes& query, const Bytes& block, int64_t head_dim,
            const Ints& lo, const Ints& hi, float softcap, const FloatsOut& m, const FloatsOut& l,
            const FloatsOut& acc) {
    const KvKernel& kernel = kernel_of(isa, format);
    const int64_t rows = size_of(lo);
    require(head_dim > 0 && size_of(query) == rows * kernel.query_bytes(head_dim), "query: not rows * query_bytes");
    require(size_of(block) == subsecond::kv_block_bytes(kv_format_of(format), head_dim), "block: wrong size");
    require(size_of(hi) == rows && size_of(m) == rows && size_of(l) == rows, "hi, m, l: not that many rows");
    require(size_of(acc) == rows * subsecond::head_dim_padded(head_dim), "acc: not rows * padded head_dim");
    for (int64_t r = 0; r < rows; ++r)
        require(0 <= lo.data()[r] && lo.data()[r] <= hi.data()[r] && hi.data()[r] <= kv_block, "lo, hi: not a range");
    kernel.attend(query.data(), rows, block.data(), nullptr, head_dim, lo.data(), hi.data(), softcap, m.data(),
                  l.data(), acc.data());
}

void merge(const std::string& isa, const FloatsOut& m, const FloatsOut& l, const FloatsOut& acc, const Floats& m2,
           const Floats& l2, const Floats& acc2) {
    const int64_t rows = size_of(m);
    require(rows > 0 && size_of(acc) % rows == 0, "acc: not that many rows");
    const int64_t padded = size_of(acc) / rows;
    require(padded % 16 == 0 && size_of(acc2) == size_of(acc), "acc, acc2: rows are not padded to 16");
    require(size_of(l) == rows && size_of(m2) == rows && size_of(l2) == rows, "l, m2, l2: not that many rows");
    for (int64_t r = 0; r < rows; ++r)
        table_of(isa).attend_merge(m.data() + r, l.data() + r, acc.data() + r * padded, m2.data() + r, l2.data() + r,
                                   acc2.data() + r * padded, padded);
}

// A sampler without a model: logits in, (status, token, stop, logprob, top) out.
class Probe {
  public:
    Probe(const std::string& isa, SamplerOptions options) : sampler_(std::move(options), &table_of(isa)) {}

    using Result = std::tuple<std::string, int32_t, bool, float, std::vector<std::pair<int32_t, float>>>;
    Result sample(const FloatsOut& logits, int64_t position, const std::optional<Words>& allowed) {
        const int64_t vocab = size_of(logits);
        require(vocab > 0, "logits: empty");
        require(!allowed || size_of(*allowed) == subsecond::ceil_div(vocab, 32), "allowed: not a bit a logit");
        const subsecond::Outcome outcome =
            sampler_.sample(logits.data(), vocab, position, allowed ? allowed->data() : nullptr);
        const char* const names[] = {"ok", "non_finite", "none_allowed"};
        std::vector<std::pair<int32_t, float>> top;
        for (const subsecond::TokenLogprob& t : outcome.top) top.emplace_back(t.token, t.logprob);
        return {names[static_cast<int>(outcome.status)], outcome.token, outcome.stop, outcome.logprob, top};
    }
    // Tokens of one logits row at positions 0..count-1 (the row is copied each time), as counts by token.
    void histogram(const Floats& logits, int64_t count, const FloatsOut& counts) {
        require(size_of(counts) == size_of(logits), "counts: not as long as logits");
        std::vector<float> row(static_cast<size_t>(size_of(logits)));
        for (int64_t i = 0; i < count; ++i) {
            row.assign(logits.data(), logits.data() + size_of(logits));
            const int32_t token = sampler_.sample(row.data(), size_of(logits), i).token;
            require(token >= 0, "logits: no token could be drawn");
            counts.data()[token] += 1.0f;
        }
    }
    void observe_prompt(const std::vector<int32_t>& tokens) {
        sampler_.observe_prompt(tokens.data(), static_cast<int64_t>(tokens.size()));
    }
    void accept(int32_t token) { sampler_.accept(token); }

  private:
    Sampler sampler_;
};

void bind_sampler(nb::module_& m) {
    nb::class_<Probe>(m, "Probe")
        .def(
            "__init__",
            [](Probe* self, const std::string& isa, float temperature, int32_t top_k, float top_p, float min_p,
               float repetition_penalty, float presence_penalty, float frequency_penalty, uint64_t seed,
               uint32_t choice, std::vector<std::pair<int32_t, float>> logit_bias, std::vector<int32_t> stop_ids,
               int32_t min_tokens, int32_t logprobs) {
                SamplerOptions options{.temperature = temperature,
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
                                       .logprobs = logprobs};
                new (self) Probe(isa, std::move(options));
            },
            nb::arg("isa") = "generic", nb::kw_only(), nb::arg("temperature") = 0.0f, nb::arg("top_k") = 0,
            nb::arg("top_p") = 1.0f, nb::arg("min_p") = 0.0f, nb::arg("repetition_penalty") = 1.0f,
            nb::arg("presence_penalty") = 0.0f, nb::arg("frequency_penalty") = 0.0f, nb::arg("seed") = 0,
            nb::arg("choice") = 0, nb::arg("logit_bias") = std::vector<std::pair<int32_t, float>>{},
            nb::arg("stop_ids") = std::vector<int32_t>{}, nb::arg("min_tokens") = 0, nb::arg("logprobs") = -1)
        .def("sample", &Probe::sample, nb::arg("logits"), nb::arg("position"), nb::arg("allowed").none() = nb::none())
        .def("histogram", &Probe::histogram)
        .def("observe_prompt", &Probe::observe_prompt)
        .def("accept", &Probe::accept);
    m.def("philox", &subsecond::philox);
}

}  // namespace

void bind_attention(nb::module_& parent) {
    nb::module_ m = parent.def_submodule("attention", "Raw attention kernels and the sampler, for tests.");
    m.def("block_bytes", [](const std::string& format, int64_t head_dim) {
        require(head_dim > 0, "head_dim: must be positive");
        return subsecond::kv_block_bytes(kv_format_of(format), head_dim);
    });
    m.def("query_bytes", [](const std::string& isa, const std::string& format, int64_t head_dim) {
        require(head_dim > 0, "head_dim: must be positive");
        return kernel_of(isa, format).query_bytes(head_dim);
    });
    m.def("store", &store);
    m.def("query_prepare", &query_prepare);
    m.def("attend", &attend);
    m.def("merge", &merge);
    m.def("argmax", [](const std::string& isa, const Floats& x) {
        float value;
        int64_t index;
        table_of(isa).argmax(x.data(), size_of(x), &value, &index);
        return std::pair(value, index);
    });
    m.def("exp_sum", [](const std::string& isa, const Floats& x, float shift, float inv_temperature) {
        return table_of(isa).exp_sum(x.data(), size_of(x), shift, inv_temperature);
    });
    bind_sampler(m);
}
