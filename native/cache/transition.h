// cache/transition.h: make, then swap. Whatever is new of a change is made beside what is there, which may fail; the store then
// swaps it in, which may not (headkv_store::commit()). Growing the tail, compressing, and keeping given rows all go this way.

#pragma once

#include "cache/tail.h"
#include "rows/hot.h"

#include <optional>
#include <vector>

struct headkv_transition {
    std::optional<headkv_hot> hot; // nothing: the hot rows stay as they are
    headkv_tail               tail;

    size_t bytes() const { return headkv_bytes(tail.buffers) + (hot ? hot->bytes() : 0); }
};

// all cells, in a tail of n_cells; throws headkv_error NO_MEMORY
headkv_transition headkv_transition_grow(const llama_kv_cache & kv, uint32_t n_cells);

// hot rows of a plan, at pos, out of sources, and the positions behind them in a tail of n_cells; throws headkv_error NO_MEMORY,
// COMPUTE, UNSUPPORTED
headkv_transition headkv_transition_compress(
        const llama_kv_cache & kv, const headkv_plan & plan, headkv_kept_positions pos, const std::vector<headkv_layer_rows> & sources,
        uint32_t n_cells, uint32_t n_threads);
