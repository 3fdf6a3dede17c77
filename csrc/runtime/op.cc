#include "op.h"

#include <cmath>

#include "fault.h"

namespace subsecond {
namespace {

const std::vector<std::string> activations = {"silu", "gelu_tanh", "gelu", "relu", "tanh"};  // order of enum Activation

}  // namespace

const std::map<std::string, std::vector<std::string>>& op_table() {
    static const std::map<std::string, std::vector<std::string>> table = {
        {"embed", {"ids", "scale"}},
        {"norm", {"eps", "groups", "kind"}},
        {"linear", {"eps", "gate", "norm", "residual"}},
        {"rope", {"factor", "head_dim", "heads", "interleaved", "rotary"}},
        {"attention",
         {"eps", "factor", "group", "head_dim", "heads", "interleaved", "kv_heads", "layer", "rotary", "scale",
          "softcap", "window"}},
        {"activation", {"kind"}},
        {"gated", {"kind"}},
        {"add", {}},
        {"scale", {"factor"}},
        {"softcap", {"cap"}},
        {"slice", {"size", "start"}},
        {"concat", {}},
        {"gather", {}},
        {"pool", {"kind"}},
    };
    return table;
}

void check_call(const OpCall& call) {
    const auto known = op_table().find(call.kind);
    if (known == op_table().end()) throw ModelFault("unknown op '" + call.kind + "'");
    for (const std::string& name : known->second)
        call.need(call.attributes.count(name) != 0, "attribute '" + name + "' is missing");
    call.need(call.attributes.size() == known->second.size(), "it has attributes that the op does not know");
}

void OpCall::refuse(const std::string& why) const {
    throw ModelFault("op '" + kind + "' (value " + std::to_string(output) + "): " + why);
}

int64_t OpCall::integer(const std::string& name, int64_t low, int64_t high) const {
    const int64_t* value = std::get_if<int64_t>(&attributes.at(name));
    if (value == nullptr) refuse(name + " must be an integer");
    if (*value < low || *value > high)
        refuse(name + " " + std::to_string(*value) + " is outside " + std::to_string(low) + ".." +
               std::to_string(high));
    return *value;
}

float OpCall::number(const std::string& name) const {
    const double* value = std::get_if<double>(&attributes.at(name));
    if (value == nullptr) refuse(name + " must be a float");
    const float narrow = static_cast<float>(*value);
    if (!std::isfinite(narrow)) refuse(name + " must be finite in float32");
    return narrow;
}

bool OpCall::flag(const std::string& name) const {
    const bool* value = std::get_if<bool>(&attributes.at(name));
    if (value == nullptr) refuse(name + " must be a bool");
    return *value;
}

int64_t OpCall::word(const std::string& name, const std::vector<std::string>& words) const {
    const std::string* value = std::get_if<std::string>(&attributes.at(name));
    if (value == nullptr) refuse(name + " must be a string");
    for (size_t i = 0; i < words.size(); ++i)
        if (words[i] == *value) return static_cast<int64_t>(i);
    refuse(name + " '" + *value + "' is unknown");
}

Activation OpCall::activation(const std::string& name) const {
    return static_cast<Activation>(word(name, activations));
}

}  // namespace subsecond
