// `subsecond._native`: the only file of the runtime that knows Python.
//
// Owns: conversion, lifetimes and the interpreter lock. Errors of the runtime become those of subsecond.errors.
#include "bindings.h"

#include <nanobind/stl/map.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/variant.h>
#include <nanobind/stl/vector.h>

#include <cmath>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "runtime/fault.h"
#include "runtime/model.h"
#include "runtime/platform.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using bindings::FloatsOut;
using bindings::SamplerObject;
using subsecond::Model;
using subsecond::Plan;
using subsecond::Sampler;
using subsecond::Weights;

using View = nb::ndarray<int32_t, nb::ndim<1>, nb::c_contig, nb::memview>;

// A plan with what it must keep alive: its model, and the samplers of its rows.
struct PlanObject {
    nb::object model;
    Plan plan;
    std::vector<nb::object> samplers;

    PlanObject(nb::object owner, int64_t max_pages, int64_t max_steps)
        : model(std::move(owner)),
          plan(nb::cast<Model&>(model).limits(), max_pages, max_steps),
          samplers(plan.samplers.size()) {}

    void set_sampler(int64_t row, nb::object sampler) {
        if (row < 0 || row >= static_cast<int64_t>(samplers.size()))
            throw subsecond::PlanFault("row " + std::to_string(row) + " is outside 0.." +
                                       std::to_string(samplers.size() - 1));
        Sampler* native = sampler.is_none() ? nullptr : &nb::cast<SamplerObject&>(sampler).native;
        if (native != nullptr) native->set_kernels(&nb::cast<Model&>(model).kernels());
        plan.samplers[static_cast<size_t>(row)] = native;
        samplers[static_cast<size_t>(row)] = std::move(sampler);
    }

    void publish_results(int64_t rows, int64_t steps) {
        for (int64_t r = 0; r < rows; ++r) {
            const size_t row = static_cast<size_t>(r);
            if (plan.samplers[row] == nullptr || plan.samplers[row]->options().logprobs < 0) continue;
            std::vector<subsecond::Outcome>& results = nb::cast<SamplerObject&>(samplers[row]).results;
            if (!plan.is_drafted(r)) results.clear();
            for (int64_t step = 0; step < steps; ++step)
                if (plan.sampled[static_cast<size_t>(step * rows + r)] >= 0)
                    results.push_back(plan.outcomes[static_cast<size_t>(step * rows + r)]);
        }
    }
};

View view(std::vector<int32_t>& values, nb::handle owner) { return View(values.data(), {values.size()}, owner); }

template <std::vector<int32_t> Plan::* field>
View plan_view(nb::handle_t<PlanObject> self) {
    return view(nb::cast<PlanObject&>(self).plan.*field, self);
}

View page_table(nb::handle_t<PlanObject> self, int64_t group) {
    std::vector<std::vector<int32_t>>& tables = nb::cast<PlanObject&>(self).plan.page_table;
    if (group < 0 || group >= static_cast<int64_t>(tables.size()))
        throw subsecond::PlanFault("cache group " + std::to_string(group) + " does not exist");
    return view(tables[static_cast<size_t>(group)], self);
}

int64_t run(nb::handle_t<Model> self, PlanObject& plan, int64_t tokens, int64_t sequences, int64_t rows,
            int64_t max_steps) {
    if (!plan.model.is(self)) throw subsecond::PlanFault("the plan was made for another model");
    Model& model = nb::cast<Model&>(self);
    int64_t steps = 0;
    {
        const nb::gil_scoped_release release;
        steps = model.run(plan.plan, {tokens, sequences, rows, max_steps});
    }
    plan.publish_results(rows, steps);
    return steps;
}

// Copies the last step's logits; the first row that holds a NaN, +inf or nothing but -inf, else -1.
int64_t logits(Model& model, const FloatsOut& out) {
    const nb::gil_scoped_release release;
    model.logits(out.data(), bindings::size_of(out));
    const int64_t vocab = model.vocab();
    for (int64_t row = 0; row < model.rows(); ++row) {
        float largest;
        int64_t index;
        model.kernels().argmax(out.data() + row * vocab, vocab, &largest, &index);
        if (!std::isfinite(largest)) return row;
    }
    return -1;
}

// The object is never freed: in a forked child its threads don't exist, and freeing it would wait for them.
void leak(nb::handle_t<Model> self) {
    nb::set_leak_warnings(false);
    self.inc_ref();
}

nb::bytes value(Model& model, int64_t index) {
    std::vector<float> values(static_cast<size_t>(model.value_size(index)));
    model.copy_value(index, values.data());
    return nb::bytes(values.data(), values.size() * sizeof(float));
}

int weights_buffer(PyObject* self, Py_buffer* buffer, int flags) {
    const Weights& weights = *nb::cast<std::shared_ptr<const Weights>>(nb::handle(self));
    static const uint8_t none = 0;
    void* data = const_cast<uint8_t*>(weights.data() == nullptr ? &none : weights.data());
    return PyBuffer_FillInfo(buffer, self, data, static_cast<Py_ssize_t>(weights.size()), 1, flags);
}

PyType_Slot weights_slots[] = {{Py_bf_getbuffer, reinterpret_cast<void*>(weights_buffer)}, {0, nullptr}};

nb::dict host() {
    nb::list isas;
    for (const char* name : bindings::isa_names()) isas.append(name);
    nb::dict result;
    result["isas"] = isas;
    result["best"] = subsecond::table_best()->name;
    result["cpus"] = subsecond::platform::cpu_count();
    return result;
}

// The errors of the runtime as those of subsecond.errors. The classes live as long as the interpreter.
void translate_errors() {
    static PyObject* const model_error = nb::module_::import_("subsecond.errors").attr("ModelError").inc_ref().ptr();
    static PyObject* const request_error =
        nb::module_::import_("subsecond.errors").attr("RequestError").inc_ref().ptr();
    nb::register_exception_translator([](const std::exception_ptr& thrown, void*) {
        try {
            std::rethrow_exception(thrown);
        } catch (const subsecond::ModelFault& fault) {
            PyErr_SetString(model_error, fault.what());
        } catch (const subsecond::PlanFault& fault) {
            PyErr_SetString(request_error, fault.what());
        }
    });
}

void bind_model(nb::module_& m) {
    nb::class_<Weights>(m, "Weights", nb::type_slots(weights_slots), "A file mapped read-only; memoryview(self).")
        .def(nb::new_([](const std::string& path) { return std::make_shared<const Weights>(path); }), "path"_a)
        .def_prop_ro("size", &Weights::size);
    nb::class_<Model>(m, "Model")
        .def(
            "__init__",
            [](Model* self, const std::string& isa, int64_t threads, int64_t max_tokens, int64_t max_sequences,
               int64_t max_rows) { new (self) Model({isa, threads, max_tokens, max_sequences, max_rows}); },
            "isa"_a, "threads"_a, "max_tokens"_a, "max_sequences"_a, "max_rows"_a)
        .def("add_tensor", &Model::add_tensor, "name"_a, "format"_a, "n"_a, "k"_a, "weights"_a, "offset"_a, "size"_a)
        .def("add_vector", &Model::add_vector, "name"_a, "n"_a, "weights"_a, "offset"_a, "size"_a)
        .def(
            "add_group",
            [](Model& self, const std::string& kind, int64_t window,
               const std::vector<std::pair<int64_t, int64_t>>& layers) {
                std::vector<subsecond::CacheLayer> native;
                for (const auto& [kv_heads, head_dim] : layers) native.push_back({kv_heads, head_dim});
                self.add_group(kind, window, std::move(native));
            },
            "kind"_a, "window"_a, "layers"_a)
        .def("add_value", &Model::add_value, "width"_a, "rows"_a, "offset"_a)
        .def(
            "add_op",
            [](Model& self, std::string kind, std::vector<int64_t> inputs, int64_t output,
               std::vector<std::string> weights, std::map<std::string, subsecond::Attribute> attributes) {
                self.add_op({std::move(kind), std::move(inputs), output, std::move(weights), std::move(attributes)});
            },
            "kind"_a, "inputs"_a, "output"_a, "weights"_a, "attributes"_a)
        .def("finish", &Model::finish, "output"_a, "kv"_a, "pages"_a)
        .def("kv_page_bytes", &Model::page_bytes, "group"_a)
        .def("copy_page", &Model::copy_page, "group"_a, "source"_a, "target"_a)
        .def_prop_ro("vocab", &Model::vocab)
        .def("run", run, "plan"_a, "n_tokens"_a, "n_sequences"_a, "n_rows"_a, "max_steps"_a = 1)
        .def("logits", logits, "out"_a)
        .def_prop_ro("screened", &Model::screened)
        .def("leak", leak)
        .def("value", value, "index"_a);
}

void bind_plan(nb::module_& m) {
    nb::class_<PlanObject>(m, "Plan", "The arrays of one call, preallocated; the views are writable.")
        .def(
            "__init__",
            [](PlanObject* self, nb::handle_t<Model> model, int64_t max_pages, int64_t max_steps) {
                new (self) PlanObject(nb::borrow(model), max_pages, max_steps);
            },
            "model"_a, "max_pages_per_sequence"_a, "max_steps"_a)
        .def_prop_ro("tokens", plan_view<&Plan::tokens>)
        .def_prop_ro("sequence_start", plan_view<&Plan::sequence_start>)
        .def_prop_ro("position", plan_view<&Plan::position>)
        .def_prop_ro("row", plan_view<&Plan::row>)
        .def_prop_ro("sampled", plan_view<&Plan::sampled>)
        .def_prop_ro("finish", plan_view<&Plan::finish>)
        .def("page_table", page_table, "group"_a)
        .def("set_sampler", &PlanObject::set_sampler, "row"_a, "sampler"_a.none())
        .def("stop", [](PlanObject& self) { self.plan.stop.store(true); });
}

}  // namespace

NB_MODULE(_native, m) {
    m.doc() = "Subsecond's runtime and kernels; subsecond.runtime.native is the typed face.";
    translate_errors();
    m.def("host", host);
    m.def("op_table", [] { return subsecond::op_table(); });
    bind_model(m);
    bind_sampler(m);
    bind_plan(m);
    bind_kernels(m);
    bind_attention(m);
    bind_limits(m);
}
