#include "score/observe.h"
#include "attend/node.h"

#include "llama-graph.h"

#include <algorithm>
#include <cstring>

// the attention of more queries than these is a matrix too large to be held for every head at once
static constexpr int64_t N_QUERIES_AT_ONCE = 64;

// each of these matrices takes some nodes in every layer, and upstream's limit of nodes leaves room for two
static constexpr int64_t N_QUERIES_MAX = 2*N_QUERIES_AT_ONCE;

static int32_t first_pos(const llama_ubatch & ubatch) {
    return *std::min_element(ubatch.pos, ubatch.pos + ubatch.n_tokens);
}

// counts the observing tokens as they are evaluated: a graph that is reused is built once and evaluated more often
class headkv_input_observed : public llm_graph_input_i {
public:
    headkv_input_observed(headkv_observation & observation, uint32_t n) : observation(observation), n(n) {}

    void set_input(const llama_ubatch * ubatch) override {
        if (ubatch && n > 0) {
            observation.see(first_pos(*ubatch) + (int32_t) (ubatch->n_tokens - n), n);
        }
    }

    bool can_reuse(const llm_graph_params & params) override {
        // kept queries have a place of their own each
        const bool has_places = n > 0 && observation.what() == HEADKV_OBSERVE_QUERIES;
        return !has_places && observation.window().overlap(first_pos(params.ubatch), params.ubatch.n_tokens) == n;
    }

private:
    headkv_observation & observation;
    const uint32_t       n; // the last tokens, which observe; of tokens before the window none
};

// attention of queries [first, first + n), F32 [n_kv, n, n_head]
static ggml_tensor * build_attention(ggml_context * ctx, const ggml_tensor * fa, int64_t first, int64_t n) {
    const headkv_node node(fa);

    ggml_tensor * q    = fa->src[HEADKV_SRC_Q];    // F32 [n_embd_head_k, n_tokens, n_head]
    ggml_tensor * k    = fa->src[HEADKV_SRC_K];    // cache type [n_embd_head_k, n_kv, n_head_kv]
    ggml_tensor * mask = fa->src[HEADKV_SRC_MASK]; // F16 [n_kv, n_tokens]

    q    = ggml_view_3d(ctx, q,    q->ne[0], n, q->ne[2], q->nb[1], q->nb[2], first*q->nb[1]);
    mask = ggml_view_2d(ctx, mask, mask->ne[0], n, mask->nb[1], first*mask->nb[1]);

    ggml_tensor * kq = ggml_mul_mat(ctx, k, q); // F32 [n_kv, n, n_head]
    ggml_prec_set_acc(kq, GGML_PREC_F32);
    return headkv_build_softmax(ctx, kq, mask, { node.scale, node.softcap, fa->src[HEADKV_SRC_SINKS] });
}

// the same in host memory, of our kernel: F32 [n_kv, n_head], the sum over the queries or their maximum
static ggml_tensor * build_observing(ggml_context * ctx, const ggml_tensor * fa, int64_t first, int64_t n, headkv_observe_what what) {
    ggml_tensor * q    = fa->src[HEADKV_SRC_Q];
    ggml_tensor * k    = fa->src[HEADKV_SRC_K];
    ggml_tensor * mask = fa->src[HEADKV_SRC_MASK];

    ggml_tensor * res = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, k->ne[1], q->ne[2]);
    res->op = fa->op;
    memcpy(res->op_params, fa->op_params, sizeof(res->op_params));
    res->op_params[4] = what == HEADKV_OBSERVE_ATTN_MAX;

    for (const int i : { HEADKV_SRC_K, HEADKV_SRC_V, HEADKV_SRC_K_HOT, HEADKV_SRC_OBSERVE }) {
        res->src[i] = k;
    }
    res->src[HEADKV_SRC_Q]     = ggml_view_3d(ctx, q, q->ne[0], n, q->ne[2], q->nb[1], q->nb[2], first*q->nb[1]);
    res->src[HEADKV_SRC_MASK]  = ggml_view_2d(ctx, mask, mask->ne[0], n, mask->nb[1], first*mask->nb[1]);
    res->src[HEADKV_SRC_SINKS] = fa->src[HEADKV_SRC_SINKS];
    return res;
}

// kq: F32 [n_kv, n_tokens, n_head] -> F32 [n_kv, n_head], the sum over the tokens or their maximum
static ggml_tensor * build_reduced(ggml_context * ctx, ggml_tensor * kq, headkv_observe_what what) {
    const int64_t n_kv     = kq->ne[0];
    const int64_t n_tokens = kq->ne[1];
    const int64_t n_head   = kq->ne[2];

    const ggml_op_pool op = what == HEADKV_OBSERVE_ATTN_MAX ? GGML_OP_POOL_MAX : GGML_OP_POOL_AVG;

    ggml_tensor * res = ggml_pool_2d(ctx, kq, op, 1, n_tokens, 1, n_tokens, 0, 0); // F32 [n_kv, 1, n_head]
    res = ggml_reshape_2d(ctx, res, n_kv, n_head);

    return what == HEADKV_OBSERVE_ATTN_MAX ? res : ggml_scale(ctx, res, (float) n_tokens);
}

// sums: F32 [n_cells, n_head], to which the attention of the node's queries from number begin on is added
static void build_attention_sums(llm_graph_result & graph, ggml_tensor * sums, const ggml_tensor * fa, int64_t begin, headkv_observe_what what) {
    ggml_context * ctx = graph.get_ctx();

    const int64_t n_tokens = fa->src[HEADKV_SRC_Q]->ne[1];

    const bool is_host = ggml_backend_buffer_is_host(sums->buffer);

    sums = ggml_view_2d(ctx, sums, fa->src[HEADKV_SRC_K]->ne[1], sums->ne[1], sums->nb[1], 0); // F32 [n_kv, n_head]

    ggml_tensor * all = sums;
    for (int64_t first = begin; first < n_tokens; first += N_QUERIES_AT_ONCE) {
        const int64_t n = std::min(N_QUERIES_AT_ONCE, n_tokens - first);

        ggml_tensor * batch = is_host // F32 [n_kv, n_head]
            ? build_observing(ctx, fa, first, n, what)
            : build_reduced(ctx, build_attention(ctx, fa, first, n), what);

        all = what == HEADKV_OBSERVE_ATTN_MAX
            ? ggml_add(ctx, ggml_relu(ctx, ggml_sub(ctx, batch, all)), all) // the larger of both
            : ggml_add(ctx, batch, all);
        ggml_build_forward_expand(graph.get_gf(), all); // one matrix after the other
    }
    ggml_build_forward_expand(graph.get_gf(), ggml_cpy(ctx, all, sums));
}

// text has one position in all sections of M-RoPE but the last, whose position is 0; what is left is NEOX's rotation
static bool is_turned_by_position(headkv_rotation & rotation) {
    int32_t & mode = rotation.rope[2];
    if (mode & GGML_ROPE_TYPE_MROPE) {
        mode = GGML_ROPE_TYPE_NEOX;
        return rotation.rope[14] == 0; // the last section
    }
    return true;
}

// the queries before they were rotated, F32 [n_embd_head_k, n_head, n_tokens], and what was done to them since; nullptr if
// something else was done
static ggml_tensor * find_unrotated(const ggml_tensor * q, headkv_rotation & rotation) {
    rotation = {};
    for (const ggml_tensor * t = q; t; ) {
        switch (t->op) {
            case GGML_OP_VIEW:
                if (ggml_nelements(t) != ggml_nelements(t->src[0])) {
                    return nullptr;
                }
                t = t->src[0];
                break;
            case GGML_OP_PERMUTE:
            case GGML_OP_RESHAPE:
            case GGML_OP_CONT:
                t = t->src[0];
                break;
            case GGML_OP_SCALE:
                {
                    float params[2]; // factor, offset
                    memcpy(params, t->op_params, sizeof(params));
                    if (params[1] != 0.0f) {
                        return nullptr;
                    }
                    rotation.scale *= params[0];
                    t = t->src[0];
                } break;
            case GGML_OP_MUL_MAT: // upstream mixes the elements of each vector before it quantises them
                if (t->op_params[1] != GGML_HINT_SRC0_IS_HADAMARD) {
                    return nullptr;
                }
                rotation.n_hadamard = t->src[0]->ne[0];
                t = t->src[1];
                break;
            case GGML_OP_ROPE:
                memcpy(rotation.rope, t->op_params, sizeof(rotation.rope));
                rotation.factors = t->src[2];
                return is_turned_by_position(rotation) ? t->src[0] : nullptr;
            default:
                return nullptr;
        }
    }
    return nullptr;
}

// sums: F32 [n_embd_head_k, n_embd_head_k + 1, n_head], to which sums over the queries q before rotation are added:
// q q^T, and q itself as the last row
static void build_moments(llm_graph_result & graph, ggml_tensor * sums, ggml_tensor * q) {
    ggml_context * ctx = graph.get_ctx();

    q = ggml_cont(ctx, ggml_permute(ctx, q, 1, 2, 0, 3)); // F32 [n_tokens, n_embd_head_k, n_head]

    ggml_tensor * second = ggml_mul_mat(ctx, q, q); // F32 [n_embd_head_k, n_embd_head_k, n_head]
    ggml_prec_set_acc(second, GGML_PREC_F32);

    ggml_tensor * first = ggml_reshape_3d(ctx, ggml_sum_rows(ctx, q), q->ne[1], 1, q->ne[2]);
    ggml_tensor * all   = ggml_add(ctx, ggml_concat(ctx, second, first, 1), sums);

    ggml_build_forward_expand(graph.get_gf(), ggml_cpy(ctx, all, sums));
}

// queries: F32 [n_embd_head_k, n_head, n_tokens], in which the queries q are put from number first on
static void build_queries(llm_graph_result & graph, ggml_tensor * queries, ggml_tensor * q, int64_t first) {
    ggml_context * ctx = graph.get_ctx();

    ggml_tensor * dst = ggml_view_3d(ctx, queries, queries->ne[0], queries->ne[1], q->ne[1], queries->nb[1], queries->nb[2], first*queries->nb[2]);
    ggml_build_forward_expand(graph.get_gf(), ggml_cpy(ctx, ggml_permute(ctx, q, 0, 2, 1, 3), dst));
}

bool headkv_observes_attention(headkv_observe_what what) {
    return what == HEADKV_OBSERVE_ATTN_MEAN || what == HEADKV_OBSERVE_ATTN_MAX;
}

uint32_t headkv_observe_n_ubatch(const headkv_observation & observation, int32_t pos, uint32_t n_tokens, uint32_t n_ubatch) {
    const bool are_few = observation.window().overlap(pos, n_tokens) <= N_QUERIES_MAX;
    return are_few || !headkv_observes_attention(observation.what()) ? n_ubatch : std::min(n_ubatch, (uint32_t) N_QUERIES_MAX);
}

void headkv_observe_build(
        llm_graph_result & graph, headkv_observation & observation, size_t i, const ggml_tensor * fa, const llama_ubatch & ubatch) {
    headkv_observation::layer & layer = observation.at(i);

    ggml_tensor * q = fa->src[HEADKV_SRC_Q];

    const int64_t n_tokens = q->ne[1];
    const int64_t n_kv     = fa->src[HEADKV_SRC_K]->ne[1];

    // none: tokens before the window; or some of it and some behind it (the caller's batch is too long), whose loss scorers notice
    const int32_t pos   = first_pos(ubatch);
    const int64_t n     = observation.window().overlap(pos, n_tokens);
    const int64_t first = n_tokens - n;
    if (headkv_observes_attention(observation.what()) && (n_kv > layer.gathered->ne[0] || n > N_QUERIES_MAX)) {
        return;
    }
    if (i == 0) {
        graph.add_input(std::make_unique<headkv_input_observed>(observation, n));
    }
    if (n == 0) {
        return;
    }

    if (headkv_observes_attention(observation.what())) {
        build_attention_sums(graph, layer.gathered, fa, first, observation.what());
        return;
    }
    const headkv_node node(fa);
    layer.logits = { node.scale, node.softcap, fa->src[HEADKV_SRC_SINKS] };

    if (observation.what() == HEADKV_OBSERVE_QUERIES) {
        q = ggml_view_3d(graph.get_ctx(), q, q->ne[0], n, q->ne[2], q->nb[1], q->nb[2], first*q->nb[1]);
        build_queries(graph, layer.gathered, q, pos + first - observation.window().begin);
        return;
    }
    ggml_tensor * unrotated = find_unrotated(q, layer.rotation);
    layer.is_rotation_known = unrotated != nullptr;
    if (unrotated) { // F32 [n_embd_head_k, n_head, n_tokens]
        const size_t stride = unrotated->nb[2];
        unrotated = ggml_view_3d(graph.get_ctx(), unrotated, unrotated->ne[0], unrotated->ne[1], n, unrotated->nb[1], stride, first*stride);
        build_moments(graph, layer.gathered, unrotated);
    }
}
