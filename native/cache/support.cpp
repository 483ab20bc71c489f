#include "cache/support.h"
#include "attend/attn.h"
#include "cache/tail.h"
#include "rows/gather.h"

#include "llama-cparams.h"
#include "llama-impl.h"
#include "llama-kv-cache-iswa.h"
#include "llama-memory-hybrid-idx.h"
#include "llama-memory-hybrid-iswa.h"
#include "llama-memory-hybrid.h"
#include "llama-memory-recurrent.h"
#include "llama-model.h"

#include "ggml-backend.h"

#include <cstring>

// the two caches of a model in which some layers attend to sliding windows, or nullptr
static const llama_kv_cache_iswa * find_windows(llama_memory_i * memory) {
    const auto * hybrid = dynamic_cast<llama_memory_hybrid_iswa *>(memory);
    return hybrid ? hybrid->get_mem_attn() : dynamic_cast<llama_kv_cache_iswa *>(memory);
}

llama_kv_cache * headkv_attention_cache(llama_memory_i * memory) {
    if (const auto * windows = find_windows(memory)) {
        return windows->get_base();
    }
    if (dynamic_cast<llama_memory_hybrid_idx *>(memory)) {
        return nullptr; // its index has the same cells
    }
    if (const auto * hybrid = dynamic_cast<llama_memory_hybrid *>(memory)) {
        return hybrid->get_mem_attn();
    }
    return dynamic_cast<llama_kv_cache *>(memory);
}

llama_kv_cache * headkv_window_cache(llama_memory_i * memory) {
    const auto * windows = find_windows(memory);
    return windows ? windows->get_swa() : nullptr;
}

bool headkv_is_elastic(const llama_model & model) {
    // upstream keeps caches of other sizes in step with these
    return model.arch != LLM_ARCH_DEEPSEEK4 && model.arch != LLM_ARCH_DFLASH;
}

// layers that read another one's rows must read them alike
static std::string readers_reason(const llama_kv_cache & kv) {
    const auto & hparams = headkv_access::hparams(kv);
    for (const auto & [il, i] : headkv_access::layer_ids(kv)) {
        const uint32_t owner = headkv_access::il(kv, i);
        if (hparams.n_head(il) != hparams.n_head(owner) || hparams.n_embd_head_k(il) != hparams.n_embd_head_k(owner)) {
            return format("layer %d reads the rows of layer %u with other heads", il, owner);
        }
    }
    return "";
}

static bool has_rows(const llama_kv_cache & kv) {
    for (size_t i = 0; i < headkv_access::n_layer(kv); ++i) {
        if (headkv_access::hparams(kv).n_head_kv(headkv_access::il(kv, i)) > 0) {
            return true;
        }
    }
    return false;
}

static std::string cache_reason(const llama_kv_cache & kv, const llama_cparams & cparams) {
    const auto & hparams = headkv_access::hparams(kv);

    if (!cparams.flash_attn) {
        return "flash attention is off: create the context with flash attention on";
    }
    if (cparams.n_seq_max != 1) {
        return format("the context holds %u sequences, 1 is supported: make a context for each", cparams.n_seq_max);
    }
    if (cparams.ctx_other || cparams.ctx_type != LLAMA_CONTEXT_TYPE_DEFAULT) {
        return "the context belongs to a draft model or shares another context's cache";
    }
    if (!hparams.causal_attn || headkv_access::model(kv).arch == LLM_ARCH_LLAMA_EMBED) {
        return "the model attends to later tokens too, and reads no cache";
    }
    if (hparams.is_mla()) {
        return "the model uses latent attention (MLA), which has no KV heads";
    }
    if (hparams.n_rel_attn_bkts > 0) {
        return "the model adds a position bias to its attention, which flash attention does not take";
    }
    if (hparams.router_layer >= 0) {
        return "the model keeps in its cache which adapter each token chose";
    }
    if (hparams.use_alibi || hparams.f_max_alibi_bias > 0.0f) {
        return "the model uses ALiBi, whose bias needs every position";
    }
    if (hparams.ple_n_heads > 0) {
        return "the model reads the tokens of earlier positions from the cache";
    }
    if (cparams.n_rs_seq > 0) {
        return "the context keeps recurrent states to go back to, which its compressed rows could not follow";
    }
    if (!headkv_access::is_plain(kv)) {
        return "the cache is not a plain one (several streams, sliding window, or shared with another context)";
    }
    if (!has_rows(kv)) {
        return "no layer of the model attends to all positions";
    }
    return readers_reason(kv);
}

static bool is_known(ggml_backend_dev_t dev) {
    const char * name = dev ? ggml_backend_reg_name(ggml_backend_dev_backend_reg(dev)) : "";
    return strcmp(name, "CUDA") == 0 || strcmp(name, "MTL") == 0;
}

static std::string layer_reason(const llama_kv_cache & kv, uint32_t il) {
    const ggml_tensor * k = headkv_access::k(kv, il);
    const ggml_tensor * v = headkv_access::v(kv, il);
    if (ggml_backend_buffer_is_host(k->buffer)) {
        return "";
    }

    ggml_backend_dev_t dev = ggml_backend_buft_get_device(ggml_backend_buffer_get_type(k->buffer));
    if (dev && ggml_backend_dev_type(dev) == GGML_BACKEND_DEVICE_TYPE_META) { // of several devices, and of no backend
        return "its rows are split over devices: split the model by layers";
    }
    if (!is_known(dev)) {
        return "only main memory, CUDA and Metal devices are supported";
    }

    const auto & hparams = headkv_access::hparams(kv);

    headkv_attn_shape shape;
    shape.type_k        = k->type;
    shape.type_v        = v->type;
    shape.n_embd_head_k = hparams.n_embd_head_k(il);
    shape.n_embd_head_v = hparams.n_embd_head_v(il);
    shape.n_head        = hparams.n_head(il);
    shape.n_head_kv     = hparams.n_head_kv(il);
    shape.has_sinks     = headkv_access::model(kv).layers[il].attn_sinks != nullptr;

    for (const size_t bytes : { ggml_row_size(shape.type_k, shape.n_embd_head_k), ggml_row_size(shape.type_v, shape.n_embd_head_v) }) {
        const std::string reason = headkv_gather_reason(bytes);
        if (!reason.empty()) {
            return reason;
        }
    }
    return headkv_attn_reason(dev, shape);
}

static std::string device_reason(const llama_kv_cache & kv) {
    for (size_t i = 0; i < headkv_access::n_layer(kv); ++i) {
        const uint32_t il = headkv_access::il(kv, i);
        if (headkv_access::hparams(kv).n_head_kv(il) == 0) {
            continue;
        }
        const std::string reason = layer_reason(kv, il);
        if (!reason.empty()) {
            return format("the cache of layer %u lies on %s: %s",
                il, ggml_backend_buffer_name(headkv_access::k(kv, il)->buffer), reason.c_str());
        }
    }
    return "";
}

std::string headkv_unsupported_reason(llama_memory_i * memory, const llama_cparams & cparams) {
    if (!memory) {
        return "the model has no KV cache";
    }
    const llama_kv_cache * kv = headkv_attention_cache(memory);
    if (!kv) {
        return "the model's memory is no KV cache that could be compressed (it is recurrent, or has an index beside its rows)";
    }
    const std::string reason = cache_reason(*kv, cparams);
    return reason.empty() ? device_reason(*kv) : reason;
}
