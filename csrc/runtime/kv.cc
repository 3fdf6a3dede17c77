#include "kv.h"

#include <cstring>
#include <string>

#include "fault.h"

namespace subsecond {

void CacheGroup::allocate(KvFormat format, int64_t page_count) {
    page_bytes = 0;
    block_bytes.clear();
    for (const CacheLayer& layer : layers) {
        block_bytes.push_back(kv_block_bytes(format, layer.head_dim));
        page_bytes += layer.kv_heads * block_bytes.back();
    }
    constexpr int64_t limit = int64_t{1} << 46;  // of address space
    if (page_bytes > 0 && page_count > limit / page_bytes)
        throw ModelFault("a KV pool of " + std::to_string(page_count) + " pages of " + std::to_string(page_bytes) +
                         " bytes does not fit; ask for fewer positions");
    pages = page_count;
    layer_offset.clear();
    int64_t offset = 0;
    for (size_t i = 0; i < layers.size(); ++i) {
        layer_offset.push_back(offset);
        offset += chunk_pages * layers[i].kv_heads * block_bytes[i];
    }
    const int64_t chunks = (pages + chunk_pages - 1) / chunk_pages;
    memory = platform::LazyMemory(static_cast<size_t>(chunks * chunk_pages * page_bytes));
    memory.prefer_large_pages();
}

void CacheGroup::copy_page(int64_t from, int64_t to) {
    for (const int64_t index : {from, to})
        if (index < 0 || index >= pages)
            throw PlanFault("page " + std::to_string(index) + " is outside 0.." + std::to_string(pages - 1));
    if (from == to) return;
    for (size_t i = 0; i < layers.size(); ++i) {
        const int64_t layer = static_cast<int64_t>(i);
        for (int64_t head = 0; head < layers[i].kv_heads; ++head)
            std::memcpy(block(layer, head, to), block(layer, head, from), static_cast<size_t>(block_bytes[i]));
    }
}

}  // namespace subsecond
