#include "compile.h"

#include "fault.h"

namespace subsecond {

const Value& Compiler::input(const OpCall& op, size_t index) const {
    const int64_t value = op.inputs[index];
    op.need(value >= 0 && value < static_cast<int64_t>(values.size()) && values[static_cast<size_t>(value)].made,
            "input value " + std::to_string(value) + " is not made by an earlier op");
    return values[static_cast<size_t>(value)];
}

const Value& Compiler::output(const OpCall& op, int64_t width, char rows, bool in_place) {
    op.need(op.output >= 0 && op.output < static_cast<int64_t>(values.size()), "the output value does not exist");
    Value& value = values[static_cast<size_t>(op.output)];
    op.need(!value.made, "the output value is made twice");
    op.need(value.width == width && value.rows == rows, "the output value is declared [" + std::string{value.rows} +
                                                            ", " + std::to_string(value.width) + "], computed [" +
                                                            std::string{rows} + ", " + std::to_string(width) + "]");
    for (size_t i = 0; i < op.inputs.size(); ++i) {
        const Value& other = input(op, i);
        op.need(other.rows != value.rows || other.offset + other.stride <= value.offset ||
                    value.offset + value.stride <= other.offset || (in_place && other.offset == value.offset),
                "the memory plan puts the output onto input " + std::to_string(op.inputs[i]));
    }
    value.made = true;
    return value;
}

const Tensor& Compiler::matrix(const OpCall& op, size_t place) const {
    const auto found = tensors.find(op.weights[place]);
    op.need(found != tensors.end(), "tensor '" + op.weights[place] + "' does not exist");
    op.need(found->second.is_matrix(), "tensor '" + op.weights[place] + "' is not a matrix");
    return found->second;
}

const float* Compiler::vector(const OpCall& op, size_t place, int64_t n) const {
    const auto found = tensors.find(op.weights[place]);
    op.need(found != tensors.end(), "tensor '" + op.weights[place] + "' does not exist");
    op.need(!found->second.is_matrix() && found->second.n == n,
            "tensor '" + op.weights[place] + "' must be a vector of " + std::to_string(n) + " values");
    return found->second.vector();
}

const float* Compiler::optional_vector(const OpCall& op, size_t place, int64_t n) const {
    return op.weights[place].empty() ? nullptr : vector(op, place, n);
}

const RopeTable* Compiler::rope(const float* inv_freq, int64_t half, float factor) {
    for (const auto& table : ropes)
        if (table->inv_freq == inv_freq && table->half == half && table->factor == factor) return table.get();
    auto table = std::make_unique<RopeTable>();
    table->inv_freq = inv_freq;
    table->half = half;
    table->factor = factor;
    table->memory = platform::LazyMemory(static_cast<size_t>(max_tokens * 2 * half) * sizeof(float));
    ropes.push_back(std::move(table));
    return ropes.back().get();
}

void compile(Compiler& compiler, const OpCall& op) {
    check_call(op);
    if (op.kind == "linear")
        compile_linear(compiler, op);
    else if (op.kind == "attention")
        compile_attention(compiler, op);
    else
        compile_rows(compiler, op);
}

}  // namespace subsecond
