// attend/node.h: what the kernels of all GPUs ask of an attention node with a prefix, and how they read its parameters. Their own
// limits (alignment, tokens, queries of a KV head) come on top.

#pragma once

#include "ggml.h"

#include <cstring>

struct headkv_node_logits {
    float scale;   // of q k, as what tanh is taken of where there is a softcap
    float softcap; // 0: none
};

inline float headkv_node_param(const ggml_tensor * dst, int i) {
    float res;
    memcpy(&res, (const float *) dst->op_params + i, sizeof(res));
    return res;
}

inline headkv_node_logits headkv_node_logits_of(const ggml_tensor * dst) {
    const float scale   = headkv_node_param(dst, 0);
    const float softcap = headkv_node_param(dst, 2);
    return { softcap != 0.0f ? scale/softcap : scale, softcap };
}

inline bool headkv_node_has_type(const ggml_tensor * k) {
    return k->type == GGML_TYPE_F16 || k->type == GGML_TYPE_BF16 || k->type == GGML_TYPE_Q8_0 || k->type == GGML_TYPE_Q4_0;
}

inline bool headkv_node_has_size(const ggml_tensor * k) {
    const int64_t n = k->ne[0];
    return (n == 64 || n == 80 || n == 96 || n == 128 || n == 256) && n % ggml_blck_size(k->type) == 0;
}

inline bool headkv_node_has_prefix(const ggml_tensor * prefix, const ggml_tensor * tail) {
    return prefix && prefix->type == tail->type && prefix->ne[0] == tail->ne[0] && ggml_is_contiguous(prefix);
}

inline bool headkv_node_is_plain(const ggml_tensor * dst) {
    const ggml_tensor * q     = dst->src[0];
    const ggml_tensor * k     = dst->src[1];
    const ggml_tensor * v     = dst->src[2];
    const ggml_tensor * mask  = dst->src[3];
    const ggml_tensor * sinks = dst->src[4];
    const ggml_tensor * meta  = dst->src[7];

    return headkv_node_param(dst, 1) == 0.0f && // no ALiBi
        headkv_node_has_type(k) && v->type == k->type &&
        headkv_node_has_size(k) && v->ne[0] == k->ne[0] && q->ne[0] == k->ne[0] &&
        k->nb[0] == ggml_type_size(k->type) && v->nb[0] == ggml_type_size(v->type) &&
        q->type == GGML_TYPE_F32 && q->nb[0] == sizeof(float) && dst->type == GGML_TYPE_F32 && ggml_is_contiguous(dst) &&
        q->ne[3] == 1 && k->ne[3] == 1 && v->ne[3] == 1 && k->ne[1] > 0 && v->ne[1] == k->ne[1] && v->ne[2] == k->ne[2] &&
        q->ne[2] % k->ne[2] == 0 &&
        (!mask || (mask->type == GGML_TYPE_F16 && mask->nb[0] == 2 && mask->ne[2] == 1 && mask->ne[3] == 1 &&
                   mask->ne[0] >= k->ne[1] && mask->ne[1] >= q->ne[1])) &&
        (!sinks || (sinks->type == GGML_TYPE_F32 && ggml_is_contiguous(sinks) && sinks->ne[0] == q->ne[2])) &&
        headkv_node_has_prefix(dst->src[5], k) && headkv_node_has_prefix(dst->src[6], v) &&
        meta && meta->type == GGML_TYPE_I32 && ggml_is_contiguous(meta) && meta->ne[0] == 2*k->ne[2];
}
