// score/observe.h: graph nodes that gather what the observing tokens tell, behind the attention node of each layer.
//
// attention: per query head and cell, what the tokens attend to. Works with flash attention on, since their softmax is
//            computed again from q and the cached K, in blocks of queries: the window's against all cells is a small part
//            of a prefill; all tokens of a prompt cost about as much as its attention once more.
// moments:   per query head, sums of q and q q^T before rotation, from which Expected Attention is computed later.
// queries:   the queries themselves, a few; their attention is computed when the cache is compressed (LayerDefensiveKV).

#pragma once

#include <cstdint>

struct headkv_store;
struct llm_graph_context;
struct ggml_tensor;

// how many tokens may observe in one graph: n_ubatch at most. The store is armed
uint32_t headkv_score_n_ubatch(const headkv_store & store, uint32_t n_ubatch);

// fa: the FLASH_ATTN_EXT node of layer il, which carries q, k, mask, sinks and scale. The store is armed
void headkv_score_build(const llm_graph_context & g, headkv_store & store, const ggml_tensor * fa, int il);
