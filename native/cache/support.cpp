#include "cache/support.h"
#include "attend/attn.h"
#include "rows/gather.h"
#include "cache/tail.h"

#include "llama-impl.h"
#include "llama-model.h"

#include "ggml-backend.h"

#include <cstring>

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

std::string headkv_device_reason(const llama_kv_cache & kv) {
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
