// `subsecond._native.attention`: raw attention kernels and sampling reductions, for tests.
//
// Owns: the checks that keep a test from reading past its arrays. Not a public interface, and not used when a model
// runs.
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>

#include <stdexcept>
#include <string>
#include <utility>

#include "bindings.h"

namespace nb = nanobind;

namespace {

using bindings::Bytes;
using bindings::BytesOut;
using bindings::Floats;
using bindings::FloatsOut;
using bindings::Ints;
using bindings::require;
using bindings::size_of;
using bindings::table_of;
using subsecond::kv_block;
using subsecond::KvFormat;
using subsecond::KvKernel;

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
    table_of(isa).attend_merge(m.data(), l.data(), acc.data(), m2.data(), l2.data(), acc2.data(), rows, padded);
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
    bind_probe(m);
}
