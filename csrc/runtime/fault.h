// The two ways in which the caller of the runtime can be wrong. bindings.cc turns them into subsecond.errors.
#pragma once
#include <stdexcept>
#include <string>

namespace subsecond {

// A model description (file, tensor, op, size) is damaged, contradictory or not supported.
struct ModelFault : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// A plan or an argument of a call on a finished model is out of bounds.
struct PlanFault : std::runtime_error {
    using std::runtime_error::runtime_error;
};

}  // namespace subsecond
