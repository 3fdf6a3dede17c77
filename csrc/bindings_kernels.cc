// `subsecond._native.kernels`: the raw kernels of every instruction set, for tests.
//
// Owns: the checks that keep a test from reading past its arrays. Not a public interface, and not used when a model
// runs.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "bindings.h"

namespace nb = nanobind;

namespace {

using bindings::Bytes;
using bindings::BytesOut;
using bindings::Floats;
using bindings::FloatsOut;
using bindings::require;
using bindings::size_of;
using bindings::table_of;
using subsecond::Activation;
using subsecond::Format;
using subsecond::LinearKernel;

Format format_of(const std::string& name) {
    for (int f = 0; f < subsecond::format_count; ++f)
        if (name == subsecond::format_traits[f].name) return static_cast<Format>(f);
    throw std::invalid_argument("format '" + name + "' is not one of f32, bf16, int8, int4, int8_split");
}

const LinearKernel& linear_of(const std::string& isa, const std::string& format) {
    return table_of(isa).linear[static_cast<int>(format_of(format))];
}

Activation activation_of(const std::string& name) {
    const char* const names[] = {"silu", "gelu_tanh", "gelu", "relu", "tanh"};
    for (int i = 0; i < 5; ++i)
        if (name == names[i]) return static_cast<Activation>(i);
    throw std::invalid_argument("activation '" + name + "' is not one of silu, gelu_tanh, gelu, relu, tanh");
}

const float* data_or_null(const std::optional<Floats>& array, int64_t n) {
    if (!array) return nullptr;
    require(size_of(*array) == n, "weight: wrong size");
    return array->data();
}

void act_prepare(const std::string& isa, const std::string& format, const Floats& x, int64_t m, const BytesOut& out) {
    const LinearKernel& kernel = linear_of(isa, format);
    require(m > 0 && size_of(x) % m == 0 && size_of(x) > 0, "x: not m rows");
    const int64_t k = size_of(x) / m, bytes = kernel.act_bytes(k);
    require(size_of(out) == m * bytes, "out: not m * act_bytes");
    for (int64_t r = 0; r < m; ++r) kernel.act_prepare(x.data() + r * k, k, out.data() + r * bytes);
}

void product(const std::string& isa, const std::string& format, const Bytes& weight, int64_t tiles, int64_t k,
             const Bytes& act, int64_t m, const FloatsOut& out, int64_t out_stride) {
    const LinearKernel& kernel = linear_of(isa, format);
    require(tiles > 0 && k > 0 && m > 0, "tiles, k, m: must be positive");
    require(size_of(weight) >= tiles * subsecond::tile_bytes(format_of(format), k), "weight: fewer bytes than tiles");
    require(size_of(act) >= m * kernel.act_bytes(k), "act: fewer bytes than rows");
    const int64_t columns = tiles * subsecond::tile_channels;
    const subsecond::Tiles first = subsecond::tiles_at(format_of(format), weight.data(), tiles, k, 0);
    require(out_stride >= columns && size_of(out) >= (m - 1) * out_stride + columns, "out: too small");
    kernel.product(first, tiles, k, act.data(), m, out.data(), out_stride);
}

void lookup(const std::string& isa, const std::string& format, const Bytes& weight, int64_t index,
            const FloatsOut& out) {
    const int64_t k = size_of(out), tile = index / subsecond::tile_channels;
    require(index >= 0 && k > 0, "index: negative, or out is empty");
    require(size_of(weight) >= (tile + 1) * subsecond::tile_bytes(format_of(format), k), "index: past the matrix");
    const int64_t tiles = size_of(weight) / subsecond::tile_bytes(format_of(format), k);
    linear_of(isa, format)
        .lookup(subsecond::tiles_at(format_of(format), weight.data(), tiles, k, 0), index, k, out.data());
}

// `high` and `low`: [m, tiles].
void screen(const std::string& isa, const Bytes& weight, int64_t tiles, int64_t k, const Bytes& act, int64_t m,
            const FloatsOut& high, const FloatsOut& low) {
    const Format format = Format::int8_split;
    const LinearKernel& kernel = table_of(isa).linear[static_cast<int>(format)];
    require(tiles > 0 && k > 0 && (m == 1 || m == 2), "tiles, k: must be positive; m: 1 or 2");
    require(size_of(weight) == tiles * subsecond::tile_bytes(format, k), "weight: not the bytes of so many tiles");
    require(size_of(act) == m * kernel.act_bytes(k), "act: not m prepared rows");
    require(size_of(high) == m * tiles && size_of(low) == m * tiles, "high, low: wrong size");
    kernel.screen(subsecond::tiles_at(format, weight.data(), tiles, k, 0),
                  reinterpret_cast<const float*>(weight.data()), tiles, k, act.data(), m, high.data(), low.data(),
                  tiles);
}

void bind_elementwise(nb::module_& m) {
    m.def(
        "rms_norm",
        [](const std::string& isa, const Floats& x, const std::optional<Floats>& w, float eps, const FloatsOut& y) {
            const int64_t n = size_of(x);
            require(size_of(y) == n, "y: wrong size");
            table_of(isa).rms_norm(x.data(), data_or_null(w, n), n, eps, y.data());
        },
        nb::arg("isa"), nb::arg("x"), nb::arg("w").none(), nb::arg("eps"), nb::arg("y"));
    m.def(
        "layer_norm",
        [](const std::string& isa, const Floats& x, const std::optional<Floats>& w, const std::optional<Floats>& b,
           float eps, const FloatsOut& y) {
            const int64_t n = size_of(x);
            require(size_of(y) == n, "y: wrong size");
            table_of(isa).layer_norm(x.data(), data_or_null(w, n), data_or_null(b, n), n, eps, y.data());
        },
        nb::arg("isa"), nb::arg("x"), nb::arg("w").none(), nb::arg("b").none(), nb::arg("eps"), nb::arg("y"));
    m.def("activation", [](const std::string& isa, const std::string& kind, const Floats& x, const FloatsOut& y) {
        require(size_of(y) == size_of(x), "y: wrong size");
        table_of(isa).activation(activation_of(kind), x.data(), size_of(x), y.data());
    });
    m.def("gated", [](const std::string& isa, const std::string& kind, const Floats& gate, const Floats& up,
                      const FloatsOut& y) {
        require(size_of(up) == size_of(gate) && size_of(y) == size_of(gate), "up, y: wrong size");
        table_of(isa).gated(activation_of(kind), gate.data(), up.data(), size_of(gate), y.data());
    });
    m.def("add", [](const std::string& isa, const Floats& a, const Floats& b, const FloatsOut& y) {
        require(size_of(b) == size_of(a) && size_of(y) == size_of(a), "b, y: wrong size");
        table_of(isa).add(a.data(), b.data(), size_of(a), y.data());
    });
    m.def("scale", [](const std::string& isa, const Floats& x, float factor, const FloatsOut& y) {
        require(size_of(y) == size_of(x), "y: wrong size");
        table_of(isa).scale(x.data(), factor, size_of(x), y.data());
    });
    m.def("softcap", [](const std::string& isa, const Floats& x, float cap, const FloatsOut& y) {
        require(size_of(y) == size_of(x), "y: wrong size");
        table_of(isa).softcap(x.data(), cap, size_of(x), y.data());
    });
    m.def("rope",
          [](const std::string& isa, const FloatsOut& x, const Floats& cosine, const Floats& sine, bool interleaved) {
              const int64_t rotary = 2 * size_of(cosine);
              require(size_of(sine) == size_of(cosine) && size_of(x) >= rotary, "sine, x: wrong size");
              table_of(isa).rope(x.data(), cosine.data(), sine.data(), rotary, interleaved);
          });
}

}  // namespace

void bind_kernels(nb::module_& parent) {
    nb::module_ m = parent.def_submodule("kernels", "The raw kernels, for tests.");
    m.def("isas", [] {
        const std::vector<const char*> names = bindings::isa_names();
        return std::vector<std::string>(names.begin(), names.end());
    });
    m.def("act_bytes", [](const std::string& isa, const std::string& format, int64_t k) {
        require(k > 0, "k: must be positive");
        return linear_of(isa, format).act_bytes(k);
    });
    m.def("act_prepare", &act_prepare);
    m.def("product", &product);
    m.def("lookup", &lookup);
    m.def("screen", &screen);
    bind_elementwise(m);
}
