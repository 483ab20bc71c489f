#include "attend/attn.h"
#include "attend/node.h"

#include "llama-graph.h"

#include "ggml.h"

#include <algorithm>
#include <cmath>

// a F32 cache reaches the attention node as a copy in F16; the kernel and the gather read the original
static ggml_tensor * without_cast(ggml_tensor * t) {
    return t->op == GGML_OP_CPY && t->src[0]->type == GGML_TYPE_F32 ? t->src[0] : t;
}

static void build_fused(const headkv_hot_layer & layer, ggml_tensor * fa) {
    fa->src[HEADKV_SRC_K] = without_cast(fa->src[HEADKV_SRC_K]);
    fa->src[HEADKV_SRC_V] = without_cast(fa->src[HEADKV_SRC_V]);

    fa->src[HEADKV_SRC_K_HOT]   = layer.k;
    fa->src[HEADKV_SRC_V_HOT]   = layer.v;
    fa->src[HEADKV_SRC_ROW_PTR] = layer.row_ptr;
}

// indices and mask of the padded hot rows; they change only with the epoch
class headkv_input_unfused : public llm_graph_input_i {
public:
    headkv_input_unfused(const headkv_hot_layer & layer, ggml_tensor * idx, ggml_tensor * mask) :
        rows(layer.rows), idx(idx), mask(mask) {}

    void set_input(const llama_ubatch * ubatch) override {
        GGML_UNUSED(ubatch);

        const int64_t n_pad = mask->ne[0];

        std::vector<int32_t>     idx_data (ggml_nelements(idx), 0);
        std::vector<ggml_fp16_t> mask_data(ggml_nelements(mask), ggml_fp32_to_fp16(-INFINITY));

        for (uint32_t ih = 0; ih < rows.n_head_kv(); ++ih) {
            for (uint32_t j = 0; j < rows.len(ih); ++j) {
                idx_data[ih*n_pad + j] = rows.begin(ih) + j;
            }
            std::fill_n(mask_data.begin() + ih*n_pad, rows.len(ih), ggml_fp32_to_fp16(0.0f));
        }

        ggml_backend_tensor_set(idx,  idx_data.data(),  0, ggml_nbytes(idx));
        ggml_backend_tensor_set(mask, mask_data.data(), 0, ggml_nbytes(mask));
    }

    bool can_reuse(const llm_graph_params & params) override {
        GGML_UNUSED(params);
        return true;
    }

private:
    const headkv_row_ptr rows;

    ggml_tensor * idx;  // I32 [n_pad*n_head_kv]
    ggml_tensor * mask; // F16 [n_pad, 1, 1, n_head_kv]
};

// hot rows, padded per head, then the tail rows: F16 [n_embd_head, n_pad + n_kv, 1, n_head_kv]
static ggml_tensor * build_rows(ggml_context * ctx, ggml_tensor * hot, ggml_tensor * idx, ggml_tensor * tail, int64_t n_pad) {
    ggml_tensor * rows = ggml_get_rows(ctx, hot, idx); // F32 [n_embd_head, n_pad*n_head_kv]
    rows = ggml_reshape_3d(ctx, rows, rows->ne[0], n_pad, tail->ne[2]);

    if (tail->type != GGML_TYPE_F16 && tail->type != GGML_TYPE_F32) {
        tail = ggml_cast(ctx, tail, GGML_TYPE_F32);
    }
    if (tail->type != GGML_TYPE_F16) {
        tail = ggml_cast(ctx, tail, GGML_TYPE_F16);
    }
    rows = ggml_concat(ctx, ggml_cast(ctx, rows, GGML_TYPE_F16), tail, 1);
    return ggml_reshape_4d(ctx, rows, rows->ne[0], rows->ne[1], 1, rows->ne[2]);
}

static ggml_tensor * build_unfused(llm_graph_result & graph, const headkv_hot_layer & layer, ggml_tensor * fa) {
    ggml_context * ctx = graph.get_ctx();

    const headkv_node node(fa);

    ggml_tensor * q    = fa->src[HEADKV_SRC_Q];    // F32 [n_embd_head_k, n_tokens, n_head]
    ggml_tensor * k    = fa->src[HEADKV_SRC_K];    // [n_embd_head_k, n_kv, n_head_kv]
    ggml_tensor * v    = fa->src[HEADKV_SRC_V];    // [n_embd_head_v, n_kv, n_head_kv]
    ggml_tensor * mask = fa->src[HEADKV_SRC_MASK]; // F16 [n_kv, n_tokens]

    const int64_t n_tokens  = q->ne[1];
    const int64_t n_kv      = k->ne[1];
    const int64_t n_head_kv = k->ne[2];
    const int64_t n_gqa     = node.n_gqa();
    const int64_t n_pad     = std::max<int64_t>(1, layer.rows.max_len());

    ggml_tensor * idx = ggml_new_tensor_1d(ctx, GGML_TYPE_I32, n_pad*n_head_kv);
    ggml_set_input(idx);
    ggml_tensor * mask_hot = ggml_new_tensor_4d(ctx, GGML_TYPE_F16, n_pad, 1, 1, n_head_kv);
    ggml_set_input(mask_hot);
    graph.add_input(std::make_unique<headkv_input_unfused>(layer, idx, mask_hot));

    q = ggml_view_4d(ctx, q, q->ne[0], n_tokens, n_gqa, n_head_kv, q->nb[1], q->nb[2], n_gqa*q->nb[2], 0);
    k = build_rows(ctx, layer.k, idx, k, n_pad);
    v = build_rows(ctx, layer.v, idx, v, n_pad);

    mask = ggml_concat(ctx,
        ggml_repeat_4d(ctx, mask_hot, n_pad, n_tokens, 1, n_head_kv),
        ggml_repeat_4d(ctx, mask,        n_kv,  n_tokens, 1, n_head_kv), 0); // F16 [n_pad + n_kv, n_tokens, 1, n_head_kv]

    ggml_tensor * cur = ggml_flash_attn_ext(ctx, q, k, v, mask, node.scale, node.max_bias, node.softcap);
    ggml_prec_set_acc(cur, GGML_PREC_F32); // F32 [n_embd_head_v, n_gqa, n_tokens, n_head_kv]

    cur = ggml_cont(ctx, ggml_permute(ctx, cur, 0, 1, 3, 2));
    return ggml_reshape_3d(ctx, cur, cur->ne[0], n_gqa*n_head_kv, n_tokens);
}

// attention of one token over one cell and one hot row, as build_fused() and build_unfused() make it; not to be computed
static ggml_tensor * build_probe(ggml_context * ctx, const headkv_attn_shape & shape, bool is_fused) {
    const int64_t n_gqa  = shape.n_head/shape.n_head_kv;
    const auto    type_k = is_fused ? shape.type_k : GGML_TYPE_F16;
    const auto    type_v = is_fused ? shape.type_v : GGML_TYPE_F16;
    const int64_t ne2    = is_fused ? shape.n_head_kv : 1; // where the KV heads are
    const int64_t ne3    = is_fused ? 1 : shape.n_head_kv;

    ggml_tensor * fa = ggml_flash_attn_ext(ctx,
        ggml_new_tensor_4d(ctx, GGML_TYPE_F32, shape.n_embd_head_k, 1, n_gqa*ne2, ne3),
        ggml_new_tensor_4d(ctx, type_k, shape.n_embd_head_k, 1, ne2, ne3),
        ggml_new_tensor_4d(ctx, type_v, shape.n_embd_head_v, 1, ne2, ne3),
        ggml_new_tensor_4d(ctx, GGML_TYPE_F16, 1, 1, 1, ne3), 1.0f, 0.0f, 0.0f);
    if (is_fused) {
        fa->src[HEADKV_SRC_K_HOT]   = ggml_new_tensor_2d(ctx, type_k, shape.n_embd_head_k, 1);
        fa->src[HEADKV_SRC_V_HOT]   = ggml_new_tensor_2d(ctx, type_v, shape.n_embd_head_v, 1);
        fa->src[HEADKV_SRC_ROW_PTR] = ggml_new_tensor_1d(ctx, GGML_TYPE_I32, shape.n_head_kv + 1);
    }
    return fa;
}

// can the device turn rows of the cache into F16, as build_rows() does?
static bool supports_rows(ggml_backend_dev_t dev, ggml_context * ctx, ggml_type type, int64_t n_embd_head) {
    ggml_tensor * rows = ggml_new_tensor_2d(ctx, type, n_embd_head, 1);
    return ggml_backend_dev_supports_op(dev, ggml_get_rows(ctx, rows, ggml_new_tensor_1d(ctx, GGML_TYPE_I32, 1))) &&
        (type == GGML_TYPE_F16 || type == GGML_TYPE_F32 || ggml_backend_dev_supports_op(dev, ggml_cast(ctx, rows, GGML_TYPE_F32)));
}

std::string headkv_attn_reason(ggml_backend_dev_t dev, const headkv_attn_shape & shape) {
    ggml_context_ptr ctx { ggml_init({ 32*ggml_tensor_overhead(), nullptr, /*.no_alloc =*/ true }) };

    if (ggml_backend_dev_supports_op(dev, build_probe(ctx.get(), shape, /*.is_fused =*/ true))) {
        return "";
    }
    if (shape.has_sinks) {
        return "its kernel does not take this cache type or head size, which a model with attention sinks needs";
    }
    const bool is_computed = ggml_backend_dev_supports_op(dev, build_probe(ctx.get(), shape, /*.is_fused =*/ false)) &&
        supports_rows(dev, ctx.get(), shape.type_k, shape.n_embd_head_k) &&
        supports_rows(dev, ctx.get(), shape.type_v, shape.n_embd_head_v);
    return is_computed ? "" : "it has no attention for this cache type and head size";
}

// nodes that the device of the hot rows cannot compute would be computed on the CPU, the cache copied there for each token
static bool is_fused(const headkv_hot_layer & layer, ggml_tensor * fa) {
    ggml_backend_dev_t dev = ggml_backend_buft_get_device(ggml_backend_buffer_get_type(layer.k->buffer));
    return !dev || ggml_backend_buffer_is_host(layer.k->buffer) || ggml_backend_dev_supports_op(dev, fa);
}

ggml_tensor * headkv_attn_build(llm_graph_result & graph, const headkv_hot_layer & layer, ggml_tensor * fa, bool is_unfused) {
    const ggml_tensor stock = *fa;
    build_fused(layer, fa);
    if (fa->src[HEADKV_SRC_SINKS] || (!is_unfused && is_fused(layer, fa))) {
        return fa;
    }
    *fa = stock;
    return build_unfused(graph, layer, fa);
}
