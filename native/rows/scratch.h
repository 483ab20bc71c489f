// rows/scratch.h: memory for one layer on each device: K and V of all layers that belong there lie in the same place, one at a time.

#pragma once

#include "rows/buffer.h"

#include <cstdint>
#include <vector>

// K and V of a layer, [n_embd_gqa, n_cells]; v: nullptr if the cache has K only
struct headkv_kv {
    ggml_tensor * k = nullptr;
    ggml_tensor * v = nullptr;
};

class headkv_scratch {
public:
    // like: the tensors of each layer; bufts: where each layer belongs. Layers that belong in host memory have no place here, unless
    // all have. Throws headkv_error NO_MEMORY
    headkv_scratch(const std::vector<headkv_kv> & like, const std::vector<ggml_backend_buffer_type_t> & bufts, uint32_t n_cells, bool is_for_all);

    // what a layer is computed with: its tensors in the scratch, or those that it has
    const headkv_kv & at(size_t i) const { return layers[i]; }

    size_t bytes() const { return headkv_bytes(buffers); }

    // the cells [first, end) of layer i travel from its tensors in host memory to the scratch, or back
    void load (size_t i, int64_t first, int64_t end) const;
    void store(size_t i, int64_t first, int64_t end) const;

private:
    std::vector<headkv_kv>     like, layers;
    std::vector<headkv_buffer> buffers; // one for each device

    void make(ggml_backend_buffer_type_t buft, const std::vector<size_t> & own, uint32_t n_cells);
};
