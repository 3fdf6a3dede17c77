// What the binding files share: array types, checks of arguments, and who binds what.
#pragma once
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/ops.h"
#include "runtime/sampler.h"

void bind_sampler(nanobind::module_& m);
void bind_probe(nanobind::module_& m);  // into the submodule `attention`
// Submodules for tests and measurements.
void bind_kernels(nanobind::module_& m);
void bind_attention(nanobind::module_& m);
void bind_limits(nanobind::module_& m);

namespace bindings {

// `Out`: writable.
template <typename T>
using Array = nanobind::ndarray<T, nanobind::c_contig, nanobind::device::cpu>;
using Floats = Array<const float>;
using FloatsOut = Array<float>;
using Ints = Array<const int32_t>;
using Words = Array<const uint32_t>;
using Bytes = Array<const uint8_t>;
using BytesOut = Array<uint8_t>;

template <typename T>
int64_t size_of(const T& array) {
    return static_cast<int64_t>(array.size());
}

inline void require(bool holds, const char* what) {
    if (!holds) throw std::invalid_argument(what);
}

inline const subsecond::KernelTable& table_of(const std::string& isa) {
    const subsecond::KernelTable* table = subsecond::table_by_name(isa.c_str());
    if (table == nullptr) throw std::invalid_argument("isa '" + isa + "' is not built or not supported by this CPU");
    return *table;
}

// The instruction sets that this build has and this CPU runs.
inline std::vector<const char*> isa_names() {
    std::vector<const char*> names;
    for (const char* name : {"generic", "avx2", "avx512_vnni", "avx512", "neon"})
        if (subsecond::table_by_name(name) != nullptr) names.push_back(name);
    return names;
}

// `subsecond._native.Sampler`: a sampler with what it chose in the last run.
struct SamplerObject {
    subsecond::Sampler native;
    std::vector<subsecond::Outcome> results;
};

}  // namespace bindings
