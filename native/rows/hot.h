// rows/hot.h: the tensors of a prefix, and what is in them: the kept rows of the cells, and where each head's begin.

#pragma once

#include "ggml.h"

#include <cstdint>
#include <vector>

struct headkv_layer_store;
struct headkv_store;

// tensors of one layer, whose rows are known; not yet allocated
void headkv_prefix_tensors(ggml_context * ctx, headkv_layer_store & layer, ggml_type type_k, ggml_type type_v);

// copy the rows of the store's cells into the tensors of fresh, one for each layer of the store.
// cell_of: of each position. May throw headkv_error COMPUTE, UNSUPPORTED
void headkv_prefix_fill(
        const headkv_store & store, const std::vector<headkv_layer_store> & fresh, const std::vector<uint32_t> & cell_of,
        uint32_t n_threads);
