// attend/node.h: the contract of an attention node over hot rows and tail: what attn.cpp builds and every backend's kernel reads.
//
// A GGML_OP_FLASH_ATTN_EXT node with src[5] set is ours:
//
//     src[0] q        F32  [n_embd_head_k, n_tok, n_head, 1]       any strides, nb[0] = 4
//     src[1] k        any  [n_embd_head_k, n_kv, n_head_kv, 1]     tail cells, any strides of rows
//     src[2] v        any  [n_embd_head_v, n_kv, n_head_kv, 1]     tail cells, not transposed
//     src[3] mask     F16  [>= n_kv, >= n_tok, 1, 1] or NULL       of the tail; a cell at -INF is never read
//     src[4] sinks    F32  [n_head] or NULL                        one more logit per query head, without a value
//     src[5] k_hot    any  [n_embd_head_k, n_rows]                 hot rows, type of src[1], contiguous, head after head
//     src[6] v_hot    any  [n_embd_head_v, n_rows]                 hot rows, type of src[2]
//     src[7] row_ptr  I32  [n_head_kv + 1]                         first row of each head, and the end
//     dst             F32  [n_embd_head_v, n_head, n_tok, 1]
//     op_params       as upstream: scale, max_bias (0), softcap
//
// KV head ih owns the hot rows [row_ptr[ih], row_ptr[ih + 1]), maybe none, which every query sees. One softmax covers them and
// the visible tail cells. A query that sees no row at all gets zeros.
//
// With src[8] set too, the node tells what a whole cache's cells are worth to the queries instead, on the CPU alone:
//
//     src[0], src[1], src[3], src[4]   q, k, mask and sinks as above
//     src[2], src[5], src[8]           k again: upstream and is_observing() look at them
//     op_params[4]                     1: maximum, 0: sum
//     dst F32 [n_kv, n_head]           attention of the tokens to each cell, their sum or maximum

#pragma once

#include "ggml.h"

#include <cstring>

enum headkv_src {
    HEADKV_SRC_Q       = 0,
    HEADKV_SRC_K       = 1,
    HEADKV_SRC_V       = 2,
    HEADKV_SRC_MASK    = 3,
    HEADKV_SRC_SINKS   = 4,
    HEADKV_SRC_K_HOT   = 5,
    HEADKV_SRC_V_HOT   = 6,
    HEADKV_SRC_ROW_PTR = 7,
    HEADKV_SRC_OBSERVE = 8,
};

struct headkv_node {
    const ggml_tensor * q;
    const ggml_tensor * k;
    const ggml_tensor * v;
    const ggml_tensor * mask;
    const ggml_tensor * sinks;
    const ggml_tensor * k_hot;
    const ggml_tensor * v_hot;
    const ggml_tensor * row_ptr;
    const ggml_tensor * dst;

    float scale;
    float max_bias;
    float softcap; // 0: none

    explicit headkv_node(const ggml_tensor * dst) :
        q(dst->src[HEADKV_SRC_Q]), k(dst->src[HEADKV_SRC_K]), v(dst->src[HEADKV_SRC_V]), mask(dst->src[HEADKV_SRC_MASK]),
        sinks(dst->src[HEADKV_SRC_SINKS]), k_hot(dst->src[HEADKV_SRC_K_HOT]), v_hot(dst->src[HEADKV_SRC_V_HOT]),
        row_ptr(dst->src[HEADKV_SRC_ROW_PTR]), dst(dst) {
        float params[3];
        memcpy(params, dst->op_params, sizeof(params));
        scale    = params[0];
        max_bias = params[1];
        softcap  = params[2];
    }

    // of q k, before tanh where there is a softcap
    float logit_scale() const { return softcap != 0.0f ? scale/softcap : scale; }

    int64_t n_gqa() const { return q->ne[2]/k->ne[2]; }

    bool is_maximum() const { return dst->op_params[4] != 0; } // of a node that observes

    static bool is_observing(const ggml_tensor * dst) { return dst->src[HEADKV_SRC_OBSERVE] != nullptr; }

    // the contract above is kept
    bool is_valid() const {
        return max_bias == 0.0f && // no ALiBi
            q->type == GGML_TYPE_F32 && q->nb[0] == sizeof(float) && q->ne[3] == 1 && k->ne[3] == 1 && v->ne[3] == 1 &&
            q->ne[0] == k->ne[0] && q->ne[2] % k->ne[2] == 0 && v->ne[1] == k->ne[1] && v->ne[2] == k->ne[2] &&
            k->nb[0] == ggml_type_size(k->type) && v->nb[0] == ggml_type_size(v->type) &&
            is_mask_valid() && is_sinks_valid() && is_hot_valid(k_hot, k) && is_hot_valid(v_hot, v) &&
            row_ptr && row_ptr->type == GGML_TYPE_I32 && ggml_is_contiguous(row_ptr) && row_ptr->ne[0] == k->ne[2] + 1 &&
            dst->type == GGML_TYPE_F32 && dst->nb[0] == sizeof(float) &&
            dst->ne[0] == v->ne[0] && dst->ne[1] == q->ne[2] && dst->ne[2] == q->ne[1];
    }

    // nodes that the kernels of GPUs take; their own limits (alignment, tokens, queries of a KV head) come on top
    bool is_plain() const {
        const int64_t n = k->ne[0];
        return is_valid() && v->type == k->type && v->ne[0] == n && k->ne[1] > 0 && ggml_is_contiguous(dst) &&
            (k->type == GGML_TYPE_F16 || k->type == GGML_TYPE_BF16 || k->type == GGML_TYPE_Q8_0 || k->type == GGML_TYPE_Q4_0) &&
            (n == 64 || n == 80 || n == 96 || n == 128 || n == 256) && n % ggml_blck_size(k->type) == 0;
    }

private:
    bool is_mask_valid() const {
        return !mask || (mask->type == GGML_TYPE_F16 && mask->nb[0] == 2 && mask->ne[2] == 1 && mask->ne[3] == 1 &&
                         mask->ne[0] >= k->ne[1] && mask->ne[1] >= q->ne[1]);
    }

    bool is_sinks_valid() const {
        return !sinks || (sinks->type == GGML_TYPE_F32 && ggml_is_contiguous(sinks) && sinks->ne[0] == q->ne[2]);
    }

    static bool is_hot_valid(const ggml_tensor * hot, const ggml_tensor * tail) {
        return hot && hot->type == tail->type && hot->ne[0] == tail->ne[0] && ggml_is_contiguous(hot);
    }
};
