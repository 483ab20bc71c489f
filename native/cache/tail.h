// cache/tail.h: reallocates the K/V tensors and cells of a stock llama_kv_cache. The only code that touches its private
// members. The new tail is made and filled first and swapped in with operations that cannot fail, so an error leaves the
// cache as it was.

#pragma once

#include "rows/buffer.h"
#include "rows/scratch.h"

#include "llama-kv-cache.h"

#include <cstdint>
#include <memory>
#include <unordered_map>
#include <utility>
#include <vector>

class headkv_layer_archive;
struct headkv_store;

// a stretch of cells that are neighbours before and after
struct headkv_cell_run {
    uint32_t src;
    uint32_t dst;
    uint32_t n;
};

// neighbouring cells as runs, which lie one behind the other from cell first on
std::vector<headkv_cell_run> headkv_cell_runs(const std::vector<uint32_t> & cells, uint32_t first = 0);

struct headkv_tail {
    struct layer {
        ggml_tensor * k;
        ggml_tensor * v;        // nullptr: the cache has K only
        ggml_tensor * k_stream; // view of k
        ggml_tensor * v_stream;
    };

    std::vector<std::pair<ggml_context_ptr, ggml_backend_buffer_ptr>> buffers; // as upstream has them

    std::vector<layer> layers;
    llama_kv_cells     cells;
    uint32_t           head = 0; // where the search for a free cell starts

    size_t bytes() const; // of the buffers
};

struct headkv_access {
    static std::shared_ptr<headkv_store> & store(llama_kv_cache & kv) { return kv.headkv; }

    static const llama_hparams & hparams(const llama_kv_cache & kv) { return kv.hparams; }
    static const llama_model   & model  (const llama_kv_cache & kv) { return kv.model; }

    static bool is_plain(const llama_kv_cache & kv); // one stream, V not transposed, no sliding window, and
    static bool is_own  (const llama_kv_cache & kv); // not shared with another context

    static size_t        n_layer(const llama_kv_cache & kv)              { return kv.layers.size(); }
    static uint32_t      il     (const llama_kv_cache & kv, size_t i)    { return kv.layers[i].il; }
    static size_t        index  (const llama_kv_cache & kv, uint32_t il) { return kv.map_layer_ids.at(il); }

    // model layer -> index of the layer whose rows it reads, mostly its own
    static const std::unordered_map<int32_t, int32_t> & layer_ids(const llama_kv_cache & kv) { return kv.map_layer_ids; }

    // positions before its own that a token attends to in a cache of sliding windows, its own counted
    static uint32_t n_window(const llama_kv_cache & kv) { return kv.n_swa; }

    // of model layer il, which has a cache
    static ggml_tensor * k(const llama_kv_cache & kv, uint32_t il) { return kv.layers[kv.map_layer_ids.at(il)].k; }
    static ggml_tensor * v(const llama_kv_cache & kv, uint32_t il) { return kv.layers[kv.map_layer_ids.at(il)].v; } // nullptr: MLA

    // the orthogonal matrix that mixes the elements of values before they are quantised, [n][n], its own inverse; empty: none
    static std::vector<float> hadamard_v(const llama_kv_cache & kv);

    static const llama_kv_cells & cells(const llama_kv_cache & kv) { return kv.v_cells[0]; }

    // cells of positions [p0, p1) in position order
    static std::vector<uint32_t> cells_of(const llama_kv_cells & cells, int32_t p0, int32_t p1);
    static std::vector<uint32_t> cells_of(const llama_kv_cache & kv, int32_t p0, int32_t p1) { return cells_of(cells(kv), p0, p1); }

    static std::vector<headkv_kv> rows(const llama_kv_cache & kv); // of all layers

    static size_t bytes(const llama_kv_cache & kv);

    // where the cache of each layer belongs
    static std::vector<ggml_backend_buffer_type_t> bufts(const llama_kv_cache & kv);

    // a tail of n_cells cells that holds the given cells of kv, in this order, each layer where it belongs; throws headkv_error
    static headkv_tail make_tail(
            const llama_kv_cache & kv, const std::vector<ggml_backend_buffer_type_t> & bufts, uint32_t n_cells, const std::vector<uint32_t> & keep);

    // the same in an archive, with all its cells
    static headkv_tail make_tail(const llama_kv_cache & kv, headkv_layer_archive & archive, const std::vector<uint32_t> & keep);

    // the same in a scratch of n_cells, which has memory for one layer at a time: the rows are not copied
    static headkv_tail make_tail(
            const llama_kv_cache & kv, const headkv_scratch & scratch, uint32_t n_cells, const std::vector<uint32_t> & keep);

    // layer i of kv lies there from now on: for graphs that are built, and as long as nobody asks for its memory
    static void set_rows(llama_kv_cache & kv, size_t i, const headkv_kv & rows) noexcept {
        kv.layers[i].k = rows.k;
        kv.layers[i].v = rows.v;
    }

    // the tail of kv and another change places
    static void swap_tail(llama_kv_cache & kv, headkv_tail & tail) noexcept;

    // the given cells of a layer become those of another from cell first on
    static void copy_cells(const headkv_kv & from, const std::vector<uint32_t> & cells, const headkv_kv & to, uint32_t first = 0);

    // the first n cells of an empty tail are those of n tokens from position 0 on
    static void set_tokens(headkv_tail & tail, const int32_t * tokens, uint32_t n);

    // the cells of a tail, which are empty, become the given ones of kv, in this order
    static void set_cells(headkv_tail & tail, const llama_kv_cache & kv, const std::vector<uint32_t> & cells);
};
