// headkv-hooks.h: everything that the patches may call. Each function does nothing, or what upstream does, where the cache
// has no store (headkv_attach() and headkv_context_next() make one).
//
// | hook              | called by                                | upstream's answer, and ours                               |
// | ----------------- | ---------------------------------------- | --------------------------------------------------------- |
// | _cache_size       | llama_model::create_memory               | n_ctx_seq, or what headkv_context_next() asked for        |
// | _base_size        | llama_kv_cache_iswa, made                | the same, of the layers without a sliding window          |
// | _cache_created    | create_memory, after the memory was made | gives an elastic cache its store                          |
// | _clear            | llama_kv_cache::clear                    | the hot rows are dropped too                              |
// | _seq_rm           | llama_kv_cache::seq_rm, and that of _iswa| false: refused, nothing changed; may drop the hot rows    |
// | _seq_keep         | llama_kv_cache::seq_keep                 | another sequence is kept: the hot rows are dropped        |
// | _refuse           | seq_cp, seq_add, seq_div, get_can_shift  | true: there are hot rows, and the operation would be wrong|
// | _decode           | llama_context::decode, before it updates | the update grows the tail if these tokens do not fit      |
// | _n_ubatch         | the same, before it splits the batch     | n_ubatch, or less while tokens observe                    |
// | _pending          | llama_kv_cache_context (update)          | true: the update has to run                               |
// | _update           | llama_kv_cache::update                   | grows the tail                                            |
// | _state_write      | llama_kv_cache::state_write              | throws: a compressed cache cannot be saved yet            |
// | _state_read       | llama_kv_cache::state_read_meta          | false: the cells cannot be had                            |
// | _memory           | llama_kv_cache::memory_breakdown         | adds the hot rows                                         |
// | _graph            | llama_context::process_ubatch            | the graph, or its part that a sweep computes; null: none  |
// | _attn             | llm_graph_context::build_attn_mha        | observation, attention over hot rows and tail             |

#pragma once

#include "llama.h"

#include "ggml-backend.h"

#include <cstdint>
#include <map>

class llama_kv_cache;
class llm_graph_result;
struct headkv_store;
struct llama_memory_i;
struct llama_model;
struct llm_graph_context;

uint32_t headkv_hook_cache_size   (uint32_t n_ctx_seq);
uint32_t headkv_hook_base_size    (const llama_model & model, uint32_t n_ctx_seq);
void     headkv_hook_cache_created(llama_memory_i * memory, uint32_t n_ctx_seq);

void headkv_hook_clear   (llama_kv_cache & kv);
bool headkv_hook_seq_rm  (llama_kv_cache & kv, llama_seq_id seq_id, llama_pos p0, llama_pos p1);
void headkv_hook_seq_keep(llama_kv_cache & kv, llama_seq_id seq_id);
bool headkv_hook_refuse  (const llama_kv_cache & kv, const char * operation);

void     headkv_hook_decode  (llama_memory_i * memory, uint32_t n_tokens);
uint32_t headkv_hook_n_ubatch(llama_memory_i * memory, uint32_t n_tokens, uint32_t n_ubatch);

bool headkv_hook_pending(const llama_kv_cache & kv);
bool headkv_hook_update (llama_kv_cache & kv);

void headkv_hook_state_write(const llama_kv_cache & kv);
bool headkv_hook_state_read (llama_kv_cache & kv, uint32_t n_cells);
void headkv_hook_memory     (const llama_kv_cache & kv, std::map<ggml_backend_buffer_type_t, size_t> & sizes);

ggml_cgraph * headkv_hook_graph(headkv_store & store, llm_graph_result & graph, uint32_t n_tokens);

ggml_tensor * headkv_hook_attn(const llm_graph_context & g, ggml_tensor * fa, int il);
