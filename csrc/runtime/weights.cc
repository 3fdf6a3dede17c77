#include "weights.h"

#include "fault.h"

namespace subsecond {
namespace {

constexpr int64_t alignment = 64;  // kernels load whole vectors
// No real tensor reaches these; they keep every product of sizes inside 63 bits.
constexpr int64_t limit_n = int64_t{1} << 24;
constexpr int64_t limit_k = int64_t{1} << 22;

void check_size(const std::string& name, const char* what, int64_t value, int64_t limit) {
    if (value < 1 || value > limit)
        throw ModelFault("tensor '" + name + "': " + what + " " + std::to_string(value) + " is outside 1.." +
                         std::to_string(limit));
}

}  // namespace

Format format_by_name(const std::string& name) {
    for (int i = 0; i < format_count; ++i)
        if (name == format_traits[i].name) return static_cast<Format>(i);
    throw ModelFault("unknown weight format '" + name + "' (f32, bf16, int8, int4, int8_split)");
}

Tensor Weights::matrix(const std::string& name, Format format, int64_t n, int64_t k, int64_t offset,
                       int64_t size) const {
    check_size(name, "n", n, limit_n);
    check_size(name, "k", k, limit_k);
    return {format, n, k, slice(name, offset, size, tile_count(n) * tile_bytes(format, k))};
}

Tensor Weights::vector(const std::string& name, int64_t n, int64_t offset, int64_t size) const {
    check_size(name, "n", n, limit_n);
    return {Format::f32, n, 0, slice(name, offset, size, n * static_cast<int64_t>(sizeof(float)))};
}

const uint8_t* Weights::slice(const std::string& name, int64_t offset, int64_t size, int64_t wanted) const {
    if (size != wanted)
        throw ModelFault("tensor '" + name + "' has " + std::to_string(size) + " bytes, its shape and format need " +
                         std::to_string(wanted));
    if (offset < 0 || offset % alignment != 0)
        throw ModelFault("tensor '" + name + "' lies at offset " + std::to_string(offset) +
                         ", which is not a multiple of " + std::to_string(alignment));
    const int64_t file_size = static_cast<int64_t>(file_.size());
    if (size > file_size || offset > file_size - size)
        throw ModelFault("tensor '" + name + "' ends beyond '" + path_ + "' (" + std::to_string(file_size) +
                         " bytes): the file is truncated or the manifest is wrong");
    return file_.data() + offset;
}

}  // namespace subsecond
