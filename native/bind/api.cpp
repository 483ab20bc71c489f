// bind/api.cpp: the C ABI of headkv.h. Checks arguments, turns exceptions into a status and a message; the work is done
// by cache/store.

#include "cache/store.h"
#include "cache/support.h"
#include "cache/tail.h"
#include "core/error.h"
#include "headkv.h"

#include "llama-context.h"

#include <algorithm>
#include <new>

static thread_local std::string last_error;

// run fn; nothing is thrown across the ABI
template <typename F>
static int32_t guarded(F && fn) {
    try {
        last_error.clear();
        fn();
        return HEADKV_STATUS_OK;
    } catch (const headkv_error & err) {
        last_error = err.what();
        return err.status;
    } catch (const std::bad_alloc &) {
        last_error = "out of memory";
        return HEADKV_STATUS_NO_MEMORY;
    } catch (const std::exception & err) {
        last_error = err.what();
        return HEADKV_STATUS_COMPUTE;
    }
}

// nullptr if ctx is not attached
static headkv_store * find_store(const llama_context * ctx) {
    llama_kv_cache * kv    = ctx ? headkv_attention_cache(ctx->get_memory()) : nullptr;
    headkv_store   * store = kv ? headkv_access::store(*kv).get() : nullptr;
    return store && store->is_attached() ? store : nullptr;
}

static headkv_store & get_store(const llama_context * ctx) {
    headkv_store * store = find_store(ctx);
    if (!store) {
        headkv_fail(HEADKV_STATUS_WRONG_STATE, "the context is not attached: call headkv_attach() first");
    }
    return *store;
}

static void check_pointer(const void * p, const char * name) {
    if (!p) {
        headkv_fail(HEADKV_STATUS_INVALID_ARGUMENT, "%s is NULL", name);
    }
}

static void check_index(const char * name, uint32_t i, size_t n) {
    if (i >= n) {
        headkv_fail(HEADKV_STATUS_INVALID_ARGUMENT, "%s = %u is not below %zu", name, i, n);
    }
}

static void check_observe_what(int32_t what) {
    if (what < HEADKV_OBSERVE_ATTN_MEAN || what > HEADKV_OBSERVE_QUERIES) {
        headkv_fail(HEADKV_STATUS_INVALID_ARGUMENT, "what = %d is not an enum headkv_observe_what", what);
    }
}

int32_t headkv_abi_version(void) {
    return HEADKV_ABI_VERSION;
}

const char * headkv_last_error(void) {
    return last_error.c_str();
}

int32_t headkv_attach(llama_context * ctx) {
    return guarded([&] {
        check_pointer(ctx, "ctx");
        if (find_store(ctx)) {
            return;
        }
        const std::string reason = headkv_unsupported_reason(ctx->get_memory(), ctx->get_cparams());
        if (!reason.empty()) {
            throw headkv_error(HEADKV_STATUS_UNSUPPORTED, reason);
        }
        llama_kv_cache * kv = headkv_attention_cache(ctx->get_memory());
        auto & store = headkv_access::store(*kv);
        if (!store) {
            store = std::make_shared<headkv_store>(*kv, ctx->n_ctx_seq());
        }
        store->attach(*ctx);
    });
}

uint32_t headkv_n_layer(const llama_context * ctx) {
    const headkv_store * store = find_store(ctx);
    return store ? (uint32_t) store->layers().size() : 0;
}

int32_t headkv_layer_get(const llama_context * ctx, uint32_t i, headkv_layer * layer) {
    return guarded([&] {
        const headkv_store & store = get_store(ctx);
        check_pointer(layer, "layer");
        check_index("i", i, store.layers().size());
        *layer = store.layers()[i];
    });
}

int32_t headkv_reserve(llama_context * ctx, uint32_t n_cells) {
    return guarded([&] { get_store(ctx).reserve(n_cells); });
}

int32_t headkv_observe(llama_context * ctx, uint32_t n_before, uint32_t n_tokens, int32_t what) {
    return guarded([&] {
        headkv_store & store = get_store(ctx);
        check_observe_what(what);
        store.observe(n_before, n_tokens, (headkv_observe_what) what);
    });
}

const char * headkv_read_reason(const llama_context * ctx) {
    static thread_local std::string reason;
    const int32_t status = guarded([&] { reason = get_store(ctx).sweep_reason(); });
    return status == HEADKV_STATUS_OK ? reason.c_str() : nullptr;
}

int32_t headkv_read(llama_context * ctx, const int32_t * tokens, uint32_t n, const headkv_read_params * params) {
    return guarded([&] {
        headkv_store & store = get_store(ctx);
        check_pointer(tokens, "tokens");
        check_pointer(params, "params");
        check_observe_what(params->what);
        store.read(tokens, n, *params);
    });
}

static void copy_out(const std::vector<float> & values, uint32_t i, float * dst, size_t n) {
    if (n != values.size()) {
        headkv_fail(HEADKV_STATUS_INVALID_ARGUMENT, "n = %zu, but layer %u has %zu values", n, i, values.size());
    }
    std::copy(values.begin(), values.end(), dst);
}

int32_t headkv_attention_read(llama_context * ctx, uint32_t i, float * dst, size_t n) {
    return guarded([&] {
        headkv_store & store = get_store(ctx);
        check_pointer(dst, "dst");
        check_index("i", i, store.layers().size());
        copy_out(store.attention(i), i, dst, n);
    });
}

int32_t headkv_score_read(llama_context * ctx, uint32_t i, const headkv_score_params * params, float * dst, size_t n) {
    return guarded([&] {
        headkv_store & store = get_store(ctx);
        check_pointer(params, "params");
        check_pointer(dst, "dst");
        check_index("i", i, store.layers().size());
        copy_out(store.scores(i, *params), i, dst, n);
    });
}

int32_t headkv_semantics_read(llama_context * ctx, uint32_t i, uint32_t n_top, float * dst, size_t n) {
    return guarded([&] {
        headkv_store & store = get_store(ctx);
        check_pointer(dst, "dst");
        check_index("i", i, store.layers().size());
        copy_out(store.semantics(i, n_top), i, dst, n);
    });
}

int32_t headkv_compress(llama_context * ctx, const headkv_compress_params * params) {
    return guarded([&] {
        headkv_store & store = get_store(ctx);
        check_pointer(params, "params");
        check_pointer(params->n_rows, "n_rows");
        if (params->n_spans > 0) {
            check_pointer(params->spans, "spans");
        }
        store.compress(*params);
    });
}

int32_t headkv_keep(
        llama_context * ctx, uint32_t n_obs, const uint32_t * n_kept, uint32_t n_kept_size,
        const int32_t * pos, size_t n_pos, uint32_t n_threads) {
    return guarded([&] {
        headkv_store & store = get_store(ctx);
        check_pointer(n_kept, "n_kept");
        if (n_pos > 0) {
            check_pointer(pos, "pos");
        }
        store.keep(n_obs, n_kept, n_kept_size, pos, n_pos, n_threads);
    });
}

int64_t headkv_positions(const llama_context * ctx, uint32_t i, uint32_t ih, int32_t * dst, size_t n) {
    int64_t res = 0;
    const int32_t status = guarded([&] {
        const headkv_store & store = get_store(ctx);
        check_index("i", i, store.layers().size());
        check_index("ih", ih, store.layers()[i].n_head_kv);
        if (!store.hot().exist()) {
            return;
        }
        const auto & pos = store.hot().layer(i).pos[ih];
        res = (int64_t) pos.size();
        if (n > 0) {
            check_pointer(dst, "dst");
            std::copy_n(pos.begin(), std::min(n, pos.size()), dst);
        }
    });
    return status == HEADKV_STATUS_OK ? res : status;
}

int32_t headkv_stats_get(const llama_context * ctx, headkv_stats * stats) {
    return guarded([&] {
        check_pointer(stats, "stats");
        *stats = get_store(ctx).stats();
    });
}

int32_t headkv_stats_reset_peak(llama_context * ctx) {
    return guarded([&] { get_store(ctx).reset_peak(); });
}

int32_t headkv_rows_get(llama_context * ctx, uint32_t i, int32_t is_k, uint32_t first, uint32_t n, void * dst, size_t n_bytes) {
    return guarded([&] { get_store(ctx).get_rows(i, is_k != 0, first, n, dst, n_bytes); });
}

int32_t headkv_rows_set(llama_context * ctx, uint32_t i, int32_t is_k, uint32_t first, uint32_t n, const void * src, size_t n_bytes) {
    return guarded([&] { get_store(ctx).set_rows(i, is_k != 0, first, n, src, n_bytes); });
}

int32_t headkv_rows_begin(llama_context * ctx, const int32_t * tokens, uint32_t n, const char * dir) {
    return guarded([&] { get_store(ctx).begin_rows(tokens, n, dir ? dir : ""); });
}

int32_t headkv_keep_archive(llama_context * ctx, int32_t keep) {
    return guarded([&] { get_store(ctx).keep_archive(keep != 0); });
}

int32_t headkv_reopen(llama_context * ctx, uint32_t n) {
    return guarded([&] { get_store(ctx).reopen(n); });
}

int32_t headkv_attention_set(llama_context * ctx, int32_t attention) {
    return guarded([&] {
        if (attention != HEADKV_ATTENTION_FUSED && attention != HEADKV_ATTENTION_UNFUSED) {
            headkv_fail(HEADKV_STATUS_INVALID_ARGUMENT, "attention = %d is not an enum headkv_attention", attention);
        }
        get_store(ctx).set_unfused(attention == HEADKV_ATTENTION_UNFUSED);
    });
}

void headkv_debug_alloc_fail(int32_t n) {
    headkv_alloc_fail(n);
}
