#include "headkv-hooks.h"
#include "cache/store.h"
#include "cache/support.h"
#include "cache/tail.h"

#include "llama-graph.h"
#include "llama-impl.h"

#include <algorithm>
#include <stdexcept>

// set by headkv_context_next(): contexts are created on the thread that asks for them
static thread_local uint32_t n_cells_next = 0;

extern "C" int32_t headkv_context_next(uint32_t n_cells) {
    n_cells_next = n_cells;
    return HEADKV_STATUS_OK;
}

static headkv_store * store_of(const llama_kv_cache & kv) {
    return headkv_access::store(const_cast<llama_kv_cache &>(kv)).get();
}

static headkv_store * store_of(llama_memory_i * memory) {
    const llama_kv_cache * kv = headkv_attention_cache(memory);
    return kv ? store_of(*kv) : nullptr;
}

uint32_t headkv_hook_cache_size(uint32_t n_ctx_seq) {
    return n_cells_next ? std::min(n_cells_next, n_ctx_seq) : n_ctx_seq;
}

uint32_t headkv_hook_base_size(const llama_model & model, uint32_t n_ctx_seq) {
    return headkv_is_elastic(model) ? headkv_hook_cache_size(n_ctx_seq) : n_ctx_seq;
}

void headkv_hook_cache_created(llama_memory_i * memory, uint32_t n_ctx_seq) {
    llama_kv_cache * kv = headkv_attention_cache(memory);
    if (kv && kv->get_size() < n_ctx_seq && headkv_access::is_own(*kv)) {
        headkv_access::store(*kv) = std::make_shared<headkv_store>(*kv, n_ctx_seq);
    }
}

void headkv_hook_clear(llama_kv_cache & kv) {
    if (auto * store = store_of(kv)) {
        store->clear();
    }
}

bool headkv_hook_seq_rm(llama_kv_cache & kv, llama_seq_id seq_id, llama_pos p0, llama_pos p1) {
    auto * store = store_of(kv);
    return !store || seq_id > 0 || store->remove(p0, p1);
}

void headkv_hook_seq_keep(llama_kv_cache & kv, llama_seq_id seq_id) {
    if (seq_id != 0) {
        headkv_hook_clear(kv);
    }
}

bool headkv_hook_refuse(const llama_kv_cache & kv, const char * operation) {
    const auto * store = store_of(kv);
    if (!store || !store->hot().exist()) {
        return false;
    }
    LLAMA_LOG_DEBUG("%s: %s is refused: the cache is compressed\n", __func__, operation);
    return true;
}

void headkv_hook_decode(llama_memory_i * memory, uint32_t n_tokens) {
    if (auto * store = store_of(memory)) {
        store->want_cells(n_tokens);
    }
}

uint32_t headkv_hook_n_ubatch(llama_memory_i * memory, uint32_t n_tokens, uint32_t n_ubatch) {
    const auto * store = store_of(memory);
    return store ? store->n_ubatch_max(n_tokens, n_ubatch) : n_ubatch;
}

bool headkv_hook_pending(const llama_kv_cache & kv) {
    const auto * store = store_of(kv);
    return store && store->is_update_due();
}

bool headkv_hook_update(llama_kv_cache & kv) {
    auto * store = store_of(kv);
    return store && store->update();
}

void headkv_hook_state_write(const llama_kv_cache & kv) {
    if (headkv_hook_refuse(kv, "state_write")) {
        throw std::runtime_error("headkv: the state of a compressed cache cannot be saved");
    }
}

bool headkv_hook_state_read(llama_kv_cache & kv, uint32_t n_cells) {
    auto * store = store_of(kv);
    return !store || store->make_room(n_cells);
}

void headkv_hook_memory(const llama_kv_cache & kv, std::map<ggml_backend_buffer_type_t, size_t> & sizes) {
    if (const auto * store = store_of(kv)) {
        store->add_memory(sizes);
    }
}

ggml_cgraph * headkv_hook_graph(headkv_store & store, llm_graph_result & graph, uint32_t n_tokens) {
    return store.cut(graph, n_tokens) ? graph.get_gf() : nullptr;
}

ggml_tensor * headkv_hook_attn(const llm_graph_context & g, ggml_tensor * fa, int il) {
    return g.cparams.headkv->attend(g, fa, il);
}
