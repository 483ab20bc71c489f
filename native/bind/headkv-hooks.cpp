#include "headkv-hooks.h"
#include "attend/attn.h"
#include "score/observe.h"
#include "cache/store.h"
#include "cache/tail.h"

#include "llama-context.h"
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

uint32_t headkv_hook_cache_size(uint32_t n_ctx_seq) {
    return n_cells_next ? std::min(n_cells_next, n_ctx_seq) : n_ctx_seq;
}

void headkv_hook_cache_created(llama_memory_i * memory, uint32_t n_ctx_seq) {
    auto * kv = dynamic_cast<llama_kv_cache *>(memory);
    if (kv && kv->get_size() < n_ctx_seq) {
        headkv_access::store(*kv) = std::make_shared<headkv_store>(*kv, n_ctx_seq);
    }
}

void headkv_hook_clear(llama_kv_cache & kv) {
    if (auto * store = store_of(kv)) {
        store->drop_prefix();
    }
}

bool headkv_hook_seq_rm(llama_kv_cache & kv, llama_seq_id seq_id, llama_pos p0, llama_pos p1) {
    auto * store = store_of(kv);
    if (!store || seq_id > 0) {
        return true;
    }
    p0 = std::max(p0, 0); // as upstream reads it; p1 < 0 is the end

    if (p0 >= (llama_pos) store->n_pos_prefix) {
        store->forget_scored(p0);
        return true;
    }
    if (p0 > 0 || (p1 >= 0 && p1 < (llama_pos) store->n_pos())) {
        LLAMA_LOG_DEBUG("%s: positions [%d, %d) start inside the compressed prefix [0, %u): refused\n", __func__, p0, p1, store->n_pos_prefix);
        return false;
    }
    store->drop_prefix();
    return true;
}

void headkv_hook_seq_keep(llama_kv_cache & kv, llama_seq_id seq_id) {
    auto * store = store_of(kv);
    if (store && seq_id != 0) {
        store->drop_prefix();
    }
}

bool headkv_hook_refuse(const llama_kv_cache & kv, const char * operation) {
    const auto * store = store_of(kv);
    if (!store || !store->has_prefix()) {
        return false;
    }
    LLAMA_LOG_DEBUG("%s: %s is refused: the cache is compressed\n", __func__, operation);
    return true;
}

uint32_t headkv_hook_n_ubatch(const llama_kv_cache & kv, uint32_t n_ubatch) {
    const auto * store = store_of(kv);
    return store && store->n_armed > 0 ? headkv_score_n_ubatch(*store, n_ubatch) : n_ubatch;
}

bool headkv_hook_wants_cells(llama_kv_cache & kv, uint32_t n_tokens) {
    auto * store = store_of(kv);
    if (!store) {
        return false;
    }
    const uint32_t n_used = store->n_cells_used();
    const uint32_t n_need = n_used + n_tokens;
    const uint32_t n_max  = store->n_cells_max;
    if (n_need <= kv.get_size() || n_need > n_max) {
        return false;
    }
    store->n_cells_wanted = store->n_cells_to_grow(n_need);
    return true;
}

bool headkv_hook_pending(const llama_kv_cache & kv) {
    const auto * store = store_of(kv);
    return store && store->n_cells_wanted > 0;
}

bool headkv_hook_update(llama_kv_cache & kv) {
    return headkv_hook_pending(kv) && store_of(kv)->grow();
}

void headkv_hook_state_write(const llama_kv_cache & kv) {
    if (headkv_hook_refuse(kv, "state_write")) {
        throw std::runtime_error("headkv: the state of a compressed cache cannot be saved");
    }
}

bool headkv_hook_state_read(llama_kv_cache & kv, uint32_t n_cells) {
    auto * store = store_of(kv);
    if (!store || n_cells <= kv.get_size()) {
        return true;
    }
    if (!store->is_attached() || n_cells > store->n_cells_max) {
        LLAMA_LOG_ERROR("%s: no room for %u cells (attached: %d, at most %u)\n", __func__, n_cells, store->is_attached(), store->n_cells_max);
        return false;
    }
    store->n_cells_wanted = n_cells;
    return store->grow();
}

void headkv_hook_memory(const llama_kv_cache & kv, std::map<ggml_backend_buffer_type_t, size_t> & sizes) {
    if (const auto * store = store_of(kv)) {
        store->add_memory(sizes);
    }
}

ggml_tensor * headkv_hook_attn(const llm_graph_context & g, ggml_tensor * fa, int il) {
    headkv_store & store = *g.cparams.headkv;
    if (store.n_armed > 0 && store.layer(il)) {
        headkv_score_build(g, store, fa, il);
    }
    return headkv_attn_build(g, store, fa, il);
}
