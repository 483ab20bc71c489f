#include "cache/support.h"
#include "attend/attn.h"
#include "cache/tail.h"
#include "rows/gather.h"

#include "llama-cparams.h"
#include "llama-impl.h"
#include "llama-model.h"

#include "ggml-backend.h"

#include <cstring>

llama_kv_cache * headkv_attention_cache(llama_memory_i * memory) {
    return dynamic_cast<llama_kv_cache *>(memory);
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
    if (hparams.n_pos_per_embd() != 1) {
        return "the model uses multi-dimensional positions (M-RoPE)";
    }
    if (hparams.ple_n_heads > 0) {
        return "the model reads the tokens of earlier positions from the cache";
    }
    if (!headkv_access::is_plain(kv)) {
        return "the cache is not a plain one (several streams, sliding window or shared layers)";
    }
    return "";
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
        return "the model's memory is not a plain KV cache (sliding window, recurrent, hybrid or sparse attention)";
    }
    const std::string reason = cache_reason(*kv, cparams);
    return reason.empty() ? device_reason(*kv) : reason;
}
