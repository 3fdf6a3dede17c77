// The KV cache: pages of 64 positions, one pool a cache group.
//
// Owns: memory and addresses. A page holds one block for each (layer, KV head) of its group. The pool is cut into
// chunks of a few pages; in a chunk the blocks of a (layer, KV head) lie side by side: a sequence whose pages follow
// one another is read in long streams, which memory serves at about 1.7 times the rate of blocks far apart, and a chunk
// is small enough to be touched in large pages. Which page belongs to which sequence is the caller's business, told by
// page tables. Knows nothing of attention.
#pragma once
#include <cstdint>
#include <utility>
#include <vector>

#include "../kernels/formats.h"
#include "platform.h"

namespace subsecond {

struct CacheLayer {
    int64_t kv_heads = 0;
    int64_t head_dim = 0;
};

struct CacheGroup {
    static constexpr int64_t chunk_pages = 8;

    int64_t window = 0;  // 0: all positions
    std::vector<CacheLayer> layers;

    // Filled by allocate().
    int64_t pages = 0;
    int64_t page_bytes = 0;
    std::vector<int64_t> layer_offset;  // bytes from the start of a chunk to the layer's first stream
    std::vector<int64_t> block_bytes;   // of each layer
    platform::LazyMemory memory;

    uint8_t* block(int64_t layer, int64_t kv_head, int64_t page) const {
        const auto at = static_cast<size_t>(layer);
        return memory.data() + page / chunk_pages * chunk_pages * page_bytes + layer_offset[at] +
               (kv_head * chunk_pages + page % chunk_pages) * block_bytes[at];
    }
    void allocate(KvFormat format, int64_t page_count);  // throws ModelFault when the pool cannot exist
    void copy_page(int64_t from, int64_t to);            // throws PlanFault
};

}  // namespace subsecond
