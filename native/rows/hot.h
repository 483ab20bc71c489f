// rows/hot.h: the hot rows of a cache: of the positions before the tail, those that attention reads.
//
// Of each layer one array of K rows and one of V rows, raw bytes of the cache type, packed head after head (core/row_ptr.h), and
// the positions that they came from.

#pragma once

#include "core/plan.h"
#include "rows/buffer.h"
#include "rows/source.h"

#include <cstdint>
#include <map>
#include <vector>

// ascending, [n_layer][n_head_kv][rows]
using headkv_kept_positions = std::vector<std::vector<std::vector<int32_t>>>;

struct headkv_hot_layer {
    ggml_tensor * k       = nullptr; // cache type [n_embd_head_k, max(1, n_rows)]
    ggml_tensor * v       = nullptr; // cache type [n_embd_head_v, max(1, n_rows)]
    ggml_tensor * row_ptr = nullptr; // I32 [n_head_kv + 1]

    headkv_row_ptr rows; // what row_ptr holds

    std::vector<std::vector<int32_t>> pos; // [n_head_kv] positions of the rows, ascending
};

// rows of one layer to choose from
struct headkv_layer_rows {
    uint32_t    il;
    headkv_rows k;
    headkv_rows v;

    ggml_backend_buffer_type_t buft; // where its hot rows belong
};

class headkv_hot {
public:
    // none
    headkv_hot() = default;

    // room for the rows of a plan; sources: one for each layer, only their shapes matter. Throws headkv_error NO_MEMORY
    headkv_hot(const headkv_plan & plan, const std::vector<headkv_layer_rows> & sources);

    // copies of the rows at pos [n_head_kv][rows] of layer i; throws headkv_error NO_MEMORY, COMPUTE, UNSUPPORTED
    void fill(size_t i, std::vector<std::vector<int32_t>> pos, const headkv_layer_rows & source, uint32_t n_threads);

    bool     exist() const { return n_pos_hot > 0; }
    uint32_t n_pos() const { return n_pos_hot; } // they stand for the positions [0, n_pos)

    const headkv_hot_layer & layer(size_t i) const { return layers[i]; }

    uint64_t n_rows() const;
    size_t   bytes()  const { return headkv_bytes(buffers); }
    void     add_memory(std::map<ggml_backend_buffer_type_t, size_t> & sizes) const;

private:
    uint32_t n_pos_hot = 0;

    std::vector<headkv_hot_layer> layers;
    std::vector<headkv_buffer>    buffers;
};
