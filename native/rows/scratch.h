// rows/scratch.h: memory for layers on their devices: K and V of all layers that belong on a device lie in the same place, one at a time.
//
//     device    place 0 | layer 0 ...... | layer 2 ......            computed
//               place 1                  | layer 1 ...... |          computed
//     host                               | layer 0 |      | layer 1  travels, beside what is computed
//
// Where rows travel there are two places, in turns, so that a layer's rows travel while the next one is computed.

#pragma once

#include "rows/buffer.h"

#include <cstdint>
#include <functional>
#include <future>
#include <vector>

// K and V of a layer, [n_embd_gqa, n_cells]; v: nullptr if the cache has K only
struct headkv_kv {
    ggml_tensor * k = nullptr;
    ggml_tensor * v = nullptr;
};

class headkv_scratch {
public:
    // like: the tensors of each layer; bufts: where each layer belongs. Layers that belong in host memory have no place here, unless
    // all have, and no rows travel then. Throws headkv_error NO_MEMORY
    headkv_scratch(const std::vector<headkv_kv> & like, const std::vector<ggml_backend_buffer_type_t> & bufts, uint32_t n_cells, bool is_for_all);

    headkv_scratch(const headkv_scratch &) = delete;

    // what a layer is computed with: its tensors in the scratch, or those that it has
    const headkv_kv & at(size_t i) const { return layers[i]; }

    size_t bytes() const { return headkv_bytes(buffers); }

    // layer i is about to be computed: waits until its place is free, then its cells [first, end) travel there from its tensors in host
    // memory. Throws what wait() does
    void load(size_t i, int64_t first, int64_t end);

    // layer i has been computed: its cells travel back on a thread of their own, which calls `then` behind them. Those of the layer
    // before are there when this returns; a layer that has no place here is done with at once. Throws what wait() does
    void store(size_t i, int64_t first, int64_t end, const std::function<void()> & then);

    // all rows have travelled; throws what `then` threw
    void wait();

private:
    // where rows are on their way, in memory that the device reaches best
    struct stop {
        ggml_backend_buffer_type_t buft; // of the layers
        ggml_backend_buffer_ptr    pinned;
    };

    std::vector<headkv_kv>     like, layers;
    std::vector<headkv_buffer> buffers; // one for each device
    std::vector<stop>          stops;   // of devices that have such memory

    size_t            travelling = 0; // layer
    std::future<void> travel;         // waits when it is destroyed

    void make(ggml_backend_buffer_type_t buft, const std::vector<size_t> & own, uint32_t n_cells, size_t n_places);
    bool has(size_t i) const { return layers[i].k != like[i].k; }
    void fetch(const ggml_tensor * from, ggml_tensor * to, size_t offset, size_t n_bytes) const;
};
