// score/observe.h: graph nodes that gather what the observing tokens tell, behind the attention node of each layer.
//
// attention: per query head and cell, what the tokens attend to. Works with flash attention on, since their softmax is
//            computed again from q and the cached K, in blocks of queries: the window's against all cells is a small part
//            of a prefill; all tokens of a prompt cost about as much as its attention once more.
// moments:   per query head, sums of q and q q^T before rotation, from which Expected Attention is computed later.
// queries:   the queries themselves, a few; their attention is computed when the rows are selected (LayerDefensiveKV).

#pragma once

#include "score/observation.h"

#include <cstddef>
#include <cstdint>

class llm_graph_result;
struct llama_ubatch;

// whether it is attention that is gathered, to which every layer that reads the rows can add
bool headkv_observes_attention(headkv_observe_what what);

// how many tokens may lie in one graph, of a batch of n_tokens from position pos on: n_ubatch at most
uint32_t headkv_observe_n_ubatch(const headkv_observation & observation, int32_t pos, uint32_t n_tokens, uint32_t n_ubatch);

// fa: the FLASH_ATTN_EXT node of the ubatch in layer i of the cache, which carries q, k, mask, sinks and scale. The observation is on
void headkv_observe_build(
        llm_graph_result & graph, headkv_observation & observation, size_t i, const ggml_tensor * fa, const llama_ubatch & ubatch);
