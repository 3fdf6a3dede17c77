// Op calls as they are described to the runtime, and the table of the ops that it knows.
//
// Owns: names and attributes (they equal src/subsecond/program/ops.py; runtime/native.py compares them at import), and
// typed access to attributes. Knows nothing of what an op computes.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <variant>
#include <vector>

#include "../kernels/ops.h"

namespace subsecond {

using Attribute = std::variant<bool, int64_t, double, std::string>;

struct OpCall {
    std::string kind;
    std::vector<int64_t> inputs;       // values
    int64_t output = 0;                // value
    std::vector<std::string> weights;  // the op's places in order; "" is an absent optional weight
    std::map<std::string, Attribute> attributes;

    // All throw ModelFault naming op and attribute.
    int64_t integer(const std::string& name, int64_t low, int64_t high) const;
    float number(const std::string& name) const;  // finite
    bool flag(const std::string& name) const;
    int64_t word(const std::string& name, const std::vector<std::string>& words) const;  // index into words
    Activation activation(const std::string& name) const;
    [[noreturn]] void refuse(const std::string& why) const;
    void need(bool condition, const std::string& why) const {
        if (!condition) refuse(why);
    }
};

// Name -> sorted attribute names.
const std::map<std::string, std::vector<std::string>>& op_table();

// Throws ModelFault unless the op exists and has exactly its attributes.
void check_call(const OpCall& call);

}  // namespace subsecond
