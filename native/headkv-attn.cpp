#include "headkv-attn.h"
#include "headkv-store.h"

#include "llama-graph.h"

#include "ggml.h"

#include <algorithm>
#include <cmath>
#include <cstring>

headkv_attn_params headkv_attn_params_get(const ggml_tensor * fa) {
    headkv_attn_params res;
    memcpy(&res, fa->op_params, sizeof(res));
    return res;
}

// a F32 cache reaches the attention node as a copy in F16; the kernel and the gather read the original
static ggml_tensor * without_cast(ggml_tensor * t) {
    return t->op == GGML_OP_CPY && t->src[0]->type == GGML_TYPE_F32 ? t->src[0] : t;
}

static ggml_tensor * build_fused(const headkv_layer_store & layer, ggml_tensor * fa) {
    fa->src[1] = without_cast(fa->src[1]);
    fa->src[2] = without_cast(fa->src[2]);

    fa->src[HEADKV_SRC_K]    = layer.k;
    fa->src[HEADKV_SRC_V]    = layer.v;
    fa->src[HEADKV_SRC_META] = layer.meta;

    return fa;
}

// indices and mask of the padded prefix; they change only with the epoch
class headkv_input_composed : public llm_graph_input_i {
public:
    headkv_input_composed(const headkv_layer_store & layer, ggml_tensor * idx, ggml_tensor * mask) :
        rows(layer.rows), n_gqa(layer.shape.n_head / layer.shape.n_head_kv), idx(idx), mask(mask) {}

    void set_input(const llama_ubatch * ubatch) override {
        GGML_UNUSED(ubatch);

        const int64_t n_pad = mask->ne[0];

        std::vector<int32_t>     idx_data (ggml_nelements(idx), 0);
        std::vector<ggml_fp16_t> mask_data(ggml_nelements(mask), ggml_fp32_to_fp16(-INFINITY));

        for (uint32_t ih = 0; ih < rows.n_head_kv(); ++ih) {
            for (uint32_t j = 0; j < rows.len[ih]; ++j) {
                idx_data[ih*n_pad + j] = rows.indptr[ih] + j;
            }
            for (uint32_t h = ih*n_gqa; h < (ih + 1)*n_gqa; ++h) {
                std::fill_n(mask_data.begin() + h*n_pad, rows.len[ih], ggml_fp32_to_fp16(0.0f));
            }
        }

        ggml_backend_tensor_set(idx,  idx_data.data(),  0, ggml_nbytes(idx));
        ggml_backend_tensor_set(mask, mask_data.data(), 0, ggml_nbytes(mask));
    }

    bool can_reuse(const llm_graph_params & params) override {
        GGML_UNUSED(params);
        return true;
    }

private:
    const headkv_layer_rows rows;
    const uint32_t          n_gqa;

    ggml_tensor * idx;  // I32 [n_pad*n_head_kv]
    ggml_tensor * mask; // F16 [n_pad, 1, n_head]
};

// prefix rows, padded per head, then the tail rows: F16 [n_embd_head, n_pad + n_kv, n_head_kv]
static ggml_tensor * build_rows(ggml_context * ctx, ggml_tensor * prefix, ggml_tensor * idx, ggml_tensor * tail, int64_t n_pad) {
    ggml_tensor * rows = ggml_get_rows(ctx, prefix, idx); // F32 [n_embd_head, n_pad*n_head_kv]
    rows = ggml_reshape_3d(ctx, rows, rows->ne[0], n_pad, tail->ne[2]);

    if (tail->type != GGML_TYPE_F16 && tail->type != GGML_TYPE_F32) {
        tail = ggml_cast(ctx, tail, GGML_TYPE_F32);
    }
    if (tail->type != GGML_TYPE_F16) {
        tail = ggml_cast(ctx, tail, GGML_TYPE_F16);
    }
    return ggml_concat(ctx, ggml_cast(ctx, rows, GGML_TYPE_F16), tail, 1);
}

static ggml_tensor * build_composed(const llm_graph_context & g, const headkv_layer_store & layer, ggml_tensor * fa) {
    ggml_context * ctx = g.ctx0;

    ggml_tensor * q    = fa->src[0]; // F32 [n_embd_head_k, n_tokens, n_head]
    ggml_tensor * k    = fa->src[1]; // [n_embd_head_k, n_kv, n_head_kv]
    ggml_tensor * v    = fa->src[2]; // [n_embd_head_v, n_kv, n_head_kv]
    ggml_tensor * mask = fa->src[3]; // F16 [n_kv, n_tokens]

    const int64_t n_tokens = q->ne[1];
    const int64_t n_head   = q->ne[2];
    const int64_t n_kv     = k->ne[1];
    const int64_t n_pad    = std::max<int64_t>(1, layer.rows.max_len());

    ggml_tensor * idx = ggml_new_tensor_1d(ctx, GGML_TYPE_I32, n_pad*layer.shape.n_head_kv);
    ggml_set_input(idx);
    ggml_tensor * mask_prefix = ggml_new_tensor_3d(ctx, GGML_TYPE_F16, n_pad, 1, n_head);
    ggml_set_input(mask_prefix);
    g.res->add_input(std::make_unique<headkv_input_composed>(layer, idx, mask_prefix));

    k = build_rows(ctx, layer.k, idx, k, n_pad);
    v = build_rows(ctx, layer.v, idx, v, n_pad);

    mask = ggml_concat(ctx,
        ggml_repeat_4d(ctx, mask_prefix, n_pad, n_tokens, n_head, 1),
        ggml_repeat_4d(ctx, mask,        n_kv,  n_tokens, n_head, 1), 0); // F16 [n_pad + n_kv, n_tokens, n_head]

    const headkv_attn_params params = headkv_attn_params_get(fa);

    ggml_tensor * cur = ggml_flash_attn_ext(ctx, q, k, v, mask, params.scale, params.max_bias, params.softcap);
    ggml_flash_attn_ext_add_sinks(cur, fa->src[4]);
    ggml_prec_set_acc(cur, GGML_PREC_F32);

    return cur;
}

ggml_tensor * headkv_attn_build(const llm_graph_context & g, const headkv_store & store, ggml_tensor * fa, int il) {
    const headkv_layer_store * layer = store.layer(il);
    if (!layer || !layer->k) {
        return fa;
    }
    return store.is_composed ? build_composed(g, *layer, fa) : build_fused(*layer, fa);
}
