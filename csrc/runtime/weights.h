// Mapped weights and the tensors that lie in them.
//
// Owns: the checks between numbers from a file and pointers that kernels read. Knows nothing of ops.
#pragma once
#include <cstdint>
#include <string>

#include "../kernels/formats.h"
#include "platform.h"

namespace subsecond {

// A matrix [n, k] in the packed layout, or (k == 0) an f32 vector [n].
struct Tensor {
    Format format = Format::f32;
    int64_t n = 0;
    int64_t k = 0;
    const uint8_t* data = nullptr;

    bool is_matrix() const { return k != 0; }
    const float* vector() const { return reinterpret_cast<const float*>(data); }
    int64_t tiles() const { return tile_count(n); }
    Tiles tile(int64_t index) const { return tiles_at(format, data, tiles(), k, index); }
    // int8_split alone: how far a value may be from what its upper bits give, see ops.h.
    const float* radius() const { return reinterpret_cast<const float*>(data); }
};

class Weights {
  public:
    explicit Weights(const std::string& path) : path_(path), file_(path) {}

    const uint8_t* data() const { return file_.data(); }
    size_t size() const { return file_.size(); }
    // Throw ModelFault naming the tensor and the number that is wrong.
    Tensor matrix(const std::string& name, Format format, int64_t n, int64_t k, int64_t offset, int64_t size) const;
    Tensor vector(const std::string& name, int64_t n, int64_t offset, int64_t size) const;

  private:
    const uint8_t* slice(const std::string& name, int64_t offset, int64_t size, int64_t wanted) const;

    std::string path_;
    platform::MappedFile file_;
};

Format format_by_name(const std::string& name);  // throws ModelFault

}  // namespace subsecond
