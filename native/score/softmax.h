// score/softmax.h: how a layer makes attention of products of queries and keys.

#pragma once

#include "ggml.h"

struct headkv_logits {
    float         scale   = 0.0f;
    float         softcap = 0.0f;    // 0: none
    ggml_tensor * sinks   = nullptr; // F32 [n_head], or nullptr
};

// kq: F32 [n_kv, n_queries, n_head] -> the same, attention. mask: [n_kv, n_queries]
inline ggml_tensor * headkv_build_softmax(ggml_context * ctx, ggml_tensor * kq, ggml_tensor * mask, const headkv_logits & logits) {
    const bool is_capped = logits.softcap != 0.0f;
    if (is_capped) {
        kq = ggml_scale(ctx, ggml_tanh(ctx, ggml_scale(ctx, kq, logits.scale/logits.softcap)), logits.softcap);
    }
    kq = ggml_soft_max_ext(ctx, kq, mask, is_capped ? 1.0f : logits.scale, 0.0f);
    ggml_soft_max_add_sinks(kq, logits.sinks);
    return kq;
}
