// attend/attn.h: graph nodes of attention over hot rows and tail.
//
// fused:   the FLASH_ATTN_EXT node itself, given three more sources, which the backend's kernel reads (attend/node.h)
// unfused: stock ops only. The hot rows are gathered into one padded array per layer, laid before the tail, and masked where
//          a head is shorter than the longest. It costs memory and copies; it is the oracle, and the way where the layer's
//          device has no kernel for the node. KV heads lie where sequences do (dim 3), since GPUs know masks for each
//          sequence but not for each head; sinks are looked up by the other dim, so a node with sinks is always fused.

#pragma once

#include "rows/hot.h"

#include "ggml-backend.h"

#include <cstdint>
#include <string>

class llm_graph_result;

struct headkv_attn_shape {
    ggml_type type_k;
    ggml_type type_v;
    int64_t   n_embd_head_k;
    int64_t   n_embd_head_v;
    int64_t   n_head;
    int64_t   n_head_kv;
    bool      has_sinks;
};

// "" if the device computes attention of such a layer itself, fused or not; else why not
std::string headkv_attn_reason(ggml_backend_dev_t dev, const headkv_attn_shape & shape);

// the node that takes the place of fa, F32 [n_embd_head_v, n_head, n_tokens]; layer: its hot rows
ggml_tensor * headkv_attn_build(llm_graph_result & graph, const headkv_hot_layer & layer, ggml_tensor * fa, bool is_unfused);
