// headkv-score.h: graph nodes that gather the attention of the observation window, per query head and cell.
//
// Built behind the attention node of each layer while the store is armed. Works with flash attention on, since the
// window's softmax is computed again from q and the cached K: n_obs rows against all cells, a small part of a prefill.

#pragma once

struct headkv_store;
struct llm_graph_context;
struct ggml_tensor;

// fa: the FLASH_ATTN_EXT node of layer il, which carries q, k, mask, sinks and scale
void headkv_score_build(const llm_graph_context & g, headkv_store & store, const ggml_tensor * fa, int il);
