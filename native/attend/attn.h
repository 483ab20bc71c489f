// attend/attn.h: graph nodes of attention over prefix and tail.
//
// fused:    the FLASH_ATTN_EXT node itself, given three more sources, which the backend's kernel reads
//           src[5] = prefix K, src[6] = prefix V, src[7] = meta
// composed: stock ops only. The prefix is gathered into one padded array per layer, laid before the tail, and masked where
//           a head is shorter than the longest. It costs memory and copies; it is the oracle, and the way where the layer's
//           device has no kernel for the node. KV heads lie where sequences do (dim 3), since GPUs know masks for each
//           sequence but not for each head; sinks are looked up by the other dim, so a node with sinks is always fused.

#pragma once

#include "ggml-backend.h"

#include <cstdint>
#include <string>

struct headkv_store;
struct llm_graph_context;
struct ggml_tensor;

// where the prefix is found in the sources of a FLASH_ATTN_EXT node; the kernels know the same numbers
enum headkv_attn_src {
    HEADKV_SRC_SINKS = 4, // upstream's
    HEADKV_SRC_K     = 5,
    HEADKV_SRC_V     = 6,
    HEADKV_SRC_META  = 7,
};

struct headkv_attn_params {
    float scale;
    float max_bias;
    float softcap; // 0: none
};

headkv_attn_params headkv_attn_params_get(const ggml_tensor * fa);

struct headkv_attn_shape {
    ggml_type type_k;
    ggml_type type_v;
    int64_t   n_embd_head_k;
    int64_t   n_embd_head_v;
    int64_t   n_head;
    int64_t   n_head_kv;
    bool      has_sinks;
};

// "" if the device computes attention of such a layer itself, fused or composed; else why not
std::string headkv_attn_reason(ggml_backend_dev_t dev, const headkv_attn_shape & shape);

// the node that takes the place of fa, F32 [n_embd_head_v, n_head, n_tokens]: fa itself where layer il has no prefix
ggml_tensor * headkv_attn_build(const llm_graph_context & g, const headkv_store & store, ggml_tensor * fa, int il);
