// cache/transition.h: make, then swap. Whatever is new of a change is made beside what is there, which may fail; the store then
// swaps it in, which may not (headkv_store::swap()). Growing the tail, moving it into an archive, compressing, and keeping given
// rows all go this way.

#pragma once

#include "cache/tail.h"
#include "rows/hot.h"
#include "rows/layer_archive.h"

#include <memory>
#include <optional>
#include <vector>

struct headkv_transition {
    std::optional<headkv_hot> hot; // nothing: the hot rows stay as they are
    headkv_tail               tail;

    std::unique_ptr<headkv_layer_archive> archive; // that the tail lies in, if it does

    size_t bytes() const; // in memory
};

// the rows of all positions, in an archive, beside a cache that is compressed
struct headkv_parked {
    headkv_tail                           tail; // in the archive
    std::unique_ptr<headkv_layer_archive> archive;

    uint32_t n_pos = 0; // the positions [0, n_pos) are those of the sequence
};

using headkv_bufts = std::vector<ggml_backend_buffer_type_t>; // where the cache of each layer belongs

// all cells, in a tail of n_cells; throws headkv_error NO_MEMORY
headkv_transition headkv_transition_grow(const llama_kv_cache & kv, const headkv_bufts & bufts, uint32_t n_cells);

// all cells, in an archive with room for n_cells; dir: of its file, or "": host memory. Throws headkv_error NO_MEMORY,
// INVALID_ARGUMENT
headkv_transition headkv_transition_archive(const llama_kv_cache & kv, uint32_t n_cells, const std::string & dir);

// the first n_pos positions: those that are parked, and out of kv those behind; no hot rows. Throws headkv_error NO_MEMORY, nothing is
// parked any more otherwise
headkv_transition headkv_transition_reopen(const llama_kv_cache & kv, headkv_parked & parked, uint32_t n_pos);

// room for the hot rows of a plan, and for the positions behind them in a tail of n_cells; sources: of each layer, only their shapes
// matter. Throws headkv_error NO_MEMORY
headkv_transition headkv_transition_room(
        const llama_kv_cache & kv, const headkv_bufts & bufts, const headkv_plan & plan, const std::vector<headkv_layer_rows> & sources,
        uint32_t n_cells);

// layer i of it: hot rows at pos out of source, and the rows behind them out of kv; throws headkv_error NO_MEMORY, COMPUTE, UNSUPPORTED
void headkv_transition_fill(
        headkv_transition & fresh, const llama_kv_cache & kv, const headkv_plan & plan, size_t i, std::vector<std::vector<int32_t>> pos,
        const headkv_layer_rows & source, uint32_t n_threads);

// and, when all layers are filled, the cells of its tail
void headkv_transition_finish(headkv_transition & fresh, const llama_kv_cache & kv, const headkv_plan & plan);
