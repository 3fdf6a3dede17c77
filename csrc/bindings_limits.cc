// Python's view of runtime/limits.h: the submodule subsecond._native.limits.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>

#include "runtime/limits.h"

namespace nb = nanobind;

namespace {

void check(int threads, double seconds) {
    if (threads < 1 || threads > 1024) throw nb::value_error("threads must be in 1..1024");
    if (!(seconds > 0 && seconds <= 60)) throw nb::value_error("seconds must be above 0 and at most 60");
}

double read_bandwidth(int threads, int64_t bytes, double seconds) {
    check(threads, seconds);
    if (bytes < 1 || bytes > (int64_t{1} << 36)) throw nb::value_error("bytes must be in 1..2**36");
    const nb::gil_scoped_release release;
    return subsecond::limits::read_bandwidth(threads, bytes, seconds);
}

template <std::optional<double> (*measure)(int, double)>
std::optional<double> rate(int threads, double seconds) {
    check(threads, seconds);
    const nb::gil_scoped_release release;
    return measure(threads, seconds);
}

}  // namespace

void bind_limits(nb::module_& m) {
    using namespace nb::literals;
    nb::module_ limits = m.def_submodule("limits", "What this machine's memory and processor can do at most.");
    limits.def("read_bandwidth", read_bandwidth, "threads"_a, "bytes"_a = int64_t{512} << 20, "seconds"_a = 0.3,
               "Bytes a second read from memory.");
    limits.def("int8_rate", rate<subsecond::limits::int8_rate>, "threads"_a, "seconds"_a = 0.2,
               "int8 multiply and add operations a second, or None.");
    limits.def("bf16_rate", rate<subsecond::limits::bf16_rate>, "threads"_a, "seconds"_a = 0.2,
               "bfloat16 multiply and add operations a second, or None.");
    limits.def("f32_rate", rate<subsecond::limits::f32_rate>, "threads"_a, "seconds"_a = 0.2,
               "float32 multiply and add operations a second, or None.");
}
