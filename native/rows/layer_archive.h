// rows/layer_archive.h: an archive with room for K, V and what is observed of every layer of a cache.
//
//     file   | layer 0: K rows ..... | V rows ..... | observed ... | layer 1: ...         rows in the order of their cells

#pragma once

#include "rows/archive.h"

#include <cstdint>
#include <string>
#include <vector>

// of one position in one layer, all heads
struct headkv_cell_bytes {
    size_t k;
    size_t v;
    size_t observed; // at most
};

class headkv_layer_archive {
public:
    // n_cells of each layer; dir: of the file, or "": host memory. Throws headkv_error NO_MEMORY, INVALID_ARGUMENT
    headkv_layer_archive(const std::vector<headkv_cell_bytes> & layers, uint32_t n_cells, const std::string & dir);

    uint32_t n_cells() const { return n_cells_max; }

    // from now on the first n cells of all layers may be written; throws headkv_error NO_MEMORY
    void hold(uint32_t n);

    // K and V of layer i of the cache lie here from now on
    void place(size_t i, ggml_tensor * k, ggml_tensor * v) const;

    // so does what is observed in it, which is zero; false: there is no room
    bool place_observed(size_t i, ggml_tensor * t);

    // the first n cells of layer i are about to be read, and what was observed in it
    void prefetch(size_t i, uint32_t n) const noexcept;

    // the rows of cells [first, end) of layer i are what they will be
    void write_behind(size_t i, uint32_t first, uint32_t end) const noexcept;

    // what there is of a layer need not stay in memory
    void give_back(size_t i) noexcept;

    ggml_backend_buffer_ptr buffer() const { return memory.buffer(); } // owns nothing, must not outlive this

    size_t bytes()          const { return memory.bytes(); } // of the disk, or of host memory
    size_t bytes_resident() const { return memory.bytes_resident(); }
    size_t bytes_resident(size_t i) const { return memory.bytes_resident(N_AREAS*i, N_AREAS); } // others as when they were given back
    size_t bytes_reserved() const { return memory.bytes_reserved(); } // of addresses: the size of buffer()

private:
    enum area { AREA_K, AREA_V, AREA_OBSERVED, N_AREAS };

    std::vector<headkv_cell_bytes> layers;
    uint32_t                       n_cells_max;
    headkv_archive                 memory;
};
