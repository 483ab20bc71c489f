#include "headkv-score.h"
#include "headkv-attn.h"
#include "headkv-store.h"

#include "llama-graph.h"

#include <algorithm>

// counts the window's tokens as they are evaluated: a graph that is reused is built once and evaluated more often
class headkv_input_window : public llm_graph_input_i {
public:
    headkv_input_window(headkv_store & store) : store(store) {}

    void set_input(const llama_ubatch * ubatch) override {
        if (!ubatch) {
            return;
        }
        if (store.n_scored == 0) {
            store.pos_scored = *std::min_element(ubatch->pos, ubatch->pos + ubatch->n_tokens);
        }
        store.n_scored += ubatch->n_tokens;
    }

    bool can_reuse(const llm_graph_params & params) override {
        return store.n_scored + params.ubatch.n_tokens <= store.n_obs;
    }

private:
    headkv_store & store;
};

// kq: F32 [n_kv, n_tokens, n_head] -> F32 [n_kv, n_head], the sum over the tokens or their maximum
static ggml_tensor * build_reduced(ggml_context * ctx, ggml_tensor * kq, headkv_reduce reduce) {
    const int64_t n_kv     = kq->ne[0];
    const int64_t n_tokens = kq->ne[1];
    const int64_t n_head   = kq->ne[2];

    const ggml_op_pool op = reduce == HEADKV_REDUCE_MAX ? GGML_OP_POOL_MAX : GGML_OP_POOL_AVG;

    ggml_tensor * res = ggml_pool_2d(ctx, kq, op, 1, n_tokens, 1, n_tokens, 0, 0); // F32 [n_kv, 1, n_head]
    res = ggml_reshape_2d(ctx, res, n_kv, n_head);

    return reduce == HEADKV_REDUCE_MAX ? res : ggml_scale(ctx, res, (float) n_tokens);
}

void headkv_score_build(const llm_graph_context & g, headkv_store & store, const ggml_tensor * fa, int il) {
    const headkv_layer_store * layer = store.layer(il);

    ggml_context * ctx = g.ctx0;

    ggml_tensor * q    = fa->src[0]; // F32 [n_embd_head_k, n_tokens, n_head]
    ggml_tensor * k    = fa->src[1]; // cache type [n_embd_head_k, n_kv, n_head_kv]
    ggml_tensor * mask = fa->src[3]; // F16 [n_kv, n_tokens]

    const int64_t n_tokens = q->ne[1];
    const int64_t n_head   = q->ne[2];
    const int64_t n_kv     = k->ne[1];

    // more tokens than are armed (a worst-case graph is being reserved, or the caller's batch is too long): no scores,
    // which headkv_compress() notices
    if (store.n_scored + n_tokens > store.n_obs || n_kv > layer->score->ne[0]) {
        return;
    }

    if (il == (int) store.layers[0].shape.il) {
        g.res->add_input(std::make_unique<headkv_input_window>(store));
    }

    const headkv_attn_params params = headkv_attn_params_get(fa);

    ggml_tensor * kq = ggml_mul_mat(ctx, k, q); // F32 [n_kv, n_tokens, n_head]
    ggml_prec_set_acc(kq, GGML_PREC_F32);

    if (params.softcap != 0.0f) {
        kq = ggml_scale(ctx, ggml_tanh(ctx, ggml_scale(ctx, kq, params.scale/params.softcap)), params.softcap);
    }

    kq = ggml_soft_max_ext(ctx, kq, mask, params.softcap != 0.0f ? 1.0f : params.scale, 0.0f);
    ggml_soft_max_add_sinks(kq, fa->src[4]);

    ggml_tensor * score = ggml_view_2d(ctx, layer->score, n_kv, n_head, layer->score->nb[1], 0); // F32 [n_kv, n_head]
    ggml_tensor * batch = build_reduced(ctx, kq, store.reduce); // F32 [n_kv, n_head]

    ggml_tensor * all = store.reduce == HEADKV_REDUCE_MAX
        ? ggml_add(ctx, ggml_relu(ctx, ggml_sub(ctx, batch, score)), score) // the larger of both
        : ggml_add(ctx, batch, score);

    ggml_build_forward_expand(g.gf, ggml_cpy(ctx, all, score));
}
