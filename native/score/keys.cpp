#include "score/keys.h"
#include "rows/graph.h"

#include "ggml.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>

// positions in one graph: some MiB of numbers
static constexpr int64_t N_POS_AT_ONCE = 1024;

static constexpr float EPS_LENGTH = 1e-12f;

// F32 [n_embd_head, n, n_head_kv] of a piece -> what is computed from it
using build_fn = std::function<ggml_tensor *(headkv_graph & graph, ggml_tensor * rows)>;
// take(first, n, values) of the piece of positions [first, first + n)
using take_fn  = std::function<void(int64_t first, int64_t n, const std::vector<float> & values)>;

static void for_pieces(const headkv_rows & rows, const build_fn & build, const take_fn & take) {
    const int64_t n_pos = rows.n_pos;
    for (int64_t first = 0; first < n_pos; first += N_POS_AT_ONCE) {
        const int64_t n = std::min(N_POS_AT_ONCE, n_pos - first);

        headkv_graph graph(rows.backend);
        take(first, n, graph.compute(build(graph, graph.rows(rows, first, n))));
    }
}

// build: F32 [n_out, n, n_head_kv] of a piece. All pieces together: [n_head_kv][n_pos][n_out]
static std::vector<float> map_rows(const headkv_rows & rows, int64_t n_out, const build_fn & build) {
    const int64_t n_pos = rows.n_pos;

    std::vector<float> res(rows.n_head_kv*n_pos*n_out);
    for_pieces(rows, build, [&](int64_t first, int64_t n, const std::vector<float> & values) {
        for (int64_t ih = 0; ih < rows.n_head_kv; ++ih) {
            std::copy_n(values.begin() + ih*n*n_out, n*n_out, res.begin() + (ih*n_pos + first)*n_out);
        }
    });
    return res;
}

std::vector<float> headkv_keys_norm(const headkv_rows & rows) {
    return map_rows(rows, 1, [](headkv_graph & graph, ggml_tensor * x) {
        return ggml_sqrt(graph.ctx(), ggml_sum_rows(graph.ctx(), ggml_sqr(graph.ctx(), x)));
    });
}

static ggml_tensor * build_unit(headkv_graph & graph, ggml_tensor * x) {
    return ggml_l2_norm(graph.ctx(), x, EPS_LENGTH);
}

// mean direction of each head's rows, [n_head_kv][n_embd_head]; zeros where there is none
static std::vector<float> mean_direction(const headkv_rows & rows) {
    const int64_t n_embd_head = rows.n_embd_head();

    std::vector<double> sum(rows.tensor->ne[0], 0.0);
    const auto build = [](headkv_graph & graph, ggml_tensor * x) {
        x = ggml_cont(graph.ctx(), ggml_transpose(graph.ctx(), build_unit(graph, x))); // F32 [n, n_embd_head, n_head_kv]
        return ggml_sum_rows(graph.ctx(), x);
    };
    for_pieces(rows, build, [&](int64_t, int64_t, const std::vector<float> & values) {
        std::transform(sum.begin(), sum.end(), values.begin(), sum.begin(), std::plus<double>());
    });

    std::vector<float> res(sum.size());
    for (int64_t ih = 0; ih < rows.n_head_kv; ++ih) {
        double square = 0.0;
        for (int64_t i = ih*n_embd_head; i < (ih + 1)*n_embd_head; ++i) {
            square += sum[i]*sum[i];
        }
        for (int64_t i = ih*n_embd_head; i < (ih + 1)*n_embd_head && square > 0.0; ++i) {
            res[i] = (float) (sum[i]/std::sqrt(square));
        }
    }
    return res;
}

std::vector<float> headkv_keys_cosine_to_mean(const headkv_rows & rows) {
    const std::vector<float> mean = mean_direction(rows);

    return map_rows(rows, 1, [&](headkv_graph & graph, ggml_tensor * x) {
        ggml_tensor * m = graph.input(mean, x->ne[0], 1, x->ne[2]);
        return ggml_mul_mat(graph.ctx(), m, build_unit(graph, x)); // F32 [1, n, n_head_kv]
    });
}

std::vector<float> headkv_keys_logits(
        const headkv_rows & rows, int64_t n_gqa, const std::vector<float> & linear, const std::vector<float> & chol_cov) {
    return map_rows(rows, n_gqa, [&](headkv_graph & graph, ggml_tensor * x) {
        ggml_context * ctx = graph.ctx();

        const int64_t d = x->ne[0];
        const int64_t n = x->ne[1];

        ggml_tensor * mean = ggml_mul_mat(ctx, graph.input(linear,  d, n_gqa,   x->ne[2]), x); // F32 [n_gqa,   n, n_head_kv]
        ggml_tensor * turn = ggml_mul_mat(ctx, graph.input(chol_cov, d, d*n_gqa, x->ne[2]), x); // F32 [d*n_gqa, n, n_head_kv]

        turn = ggml_reshape_2d(ctx, turn, d, n_gqa*n*x->ne[2]);
        turn = ggml_sum_rows(ctx, ggml_sqr(ctx, turn));
        return ggml_add(ctx, mean, ggml_reshape_3d(ctx, turn, n_gqa, n, x->ne[2]));
    });
}

// queries of one KV head, [n_gqa][n_obs][n_embd_head]
static std::vector<float> queries_of_head(const std::vector<float> & queries, int64_t n_obs, int64_t n_head_kv, int64_t ih, int64_t d) {
    const int64_t n_head = queries.size()/(n_obs*d);
    const int64_t n_gqa  = n_head/n_head_kv;

    std::vector<float> res;
    res.reserve(n_gqa*n_obs*d);
    for (int64_t h = ih*n_gqa; h < (ih + 1)*n_gqa; ++h) {
        for (int64_t o = 0; o < n_obs; ++o) {
            const auto q = queries.begin() + (o*n_head + h)*d;
            res.insert(res.end(), q, q + d);
        }
    }
    return res;
}

// [n_obs][n_pos]: 0 where the query of one of the last positions may look, -inf behind it
static std::vector<float> causal_mask(int64_t n_obs, int64_t n_pos) {
    std::vector<float> res(n_obs*n_pos, 0.0f);
    for (int64_t o = 0; o < n_obs; ++o) {
        std::fill(res.begin() + o*n_pos + (n_pos - n_obs + o + 1), res.begin() + (o + 1)*n_pos, -INFINITY);
    }
    return res;
}

static std::vector<int32_t> all_positions(int64_t n_pos) {
    std::vector<int32_t> res(n_pos);
    std::iota(res.begin(), res.end(), 0);
    return res;
}

std::vector<float> headkv_keys_attention(
        const headkv_rows & rows, int64_t ih, const std::vector<float> & queries, int64_t n_obs, const headkv_logits & logits) {
    const int64_t n_pos = rows.n_pos;
    const int64_t d     = rows.n_embd_head();

    const std::vector<float> own   = queries_of_head(queries, n_obs, rows.n_head_kv, ih, d);
    const std::vector<float> mask  = causal_mask(n_obs, n_pos);
    const int64_t            n_gqa = own.size()/(n_obs*d);

    headkv_graph graph(rows.backend);
    ggml_context * ctx = graph.ctx();

    ggml_tensor * k  = graph.rows_of_head(rows, all_positions(n_pos), ih);
    ggml_tensor * kq = ggml_mul_mat(ctx, k, graph.input(own, d, n_obs*n_gqa, 1));
    ggml_prec_set_acc(kq, GGML_PREC_F32);
    kq = ggml_reshape_3d(ctx, kq, n_pos, n_obs, n_gqa);

    headkv_logits own_logits = logits;
    if (logits.sinks) {
        own_logits.sinks = ggml_view_1d(ctx, logits.sinks, n_gqa, ih*n_gqa*logits.sinks->nb[0]);
    }
    return graph.compute(headkv_build_softmax(ctx, kq, graph.input(mask, n_pos, n_obs, 1), own_logits));
}

// directions in the projection's input whose images are asked for: of the elements that the query heads of KV head ih take,
// as the cache mixes them, [n_embd_head*n_gqa][n_in]. hadamard: [n][n] or empty
static std::vector<float> directions_of_head(int64_t n_in, int64_t n_head_kv, int64_t ih, const std::vector<float> & hadamard) {
    static const std::vector<float> unmixed = { 1.0f };

    const std::vector<float> & mix = hadamard.empty() ? unmixed : hadamard;

    const int64_t n_own = n_in/n_head_kv;
    const int64_t n_mix = (int64_t) std::sqrt((double) mix.size());

    std::vector<float> res(n_own*n_in, 0.0f);
    for (int64_t j = 0; j < n_own; ++j) {
        for (int64_t i = 0; i < n_mix; ++i) {
            res[j*n_in + ih*n_own + j/n_mix*n_mix + i] = mix[j%n_mix*n_mix + i];
        }
    }
    return res;
}

// W^T W of the blocks W of the output projection that a KV head's query heads go through, [n_gqa][n_embd_head][n_embd_head].
// The blocks are asked for by a product: backends know no other way to look at weights that they keep in an order of their own
static std::vector<float> gram_of_head(
        const headkv_rows & rows, ggml_tensor * wo, int64_t n_gqa, int64_t ih, const std::vector<float> & hadamard) {
    const std::vector<float> directions = directions_of_head(wo->ne[0], rows.n_head_kv, ih, hadamard);

    headkv_graph graph(rows.backend);
    ggml_context * ctx = graph.ctx();

    ggml_tensor * w = ggml_mul_mat(ctx, wo, graph.input(directions, wo->ne[0], wo->ne[0]/rows.n_head_kv, 1));
    w = ggml_reshape_3d(ctx, w, wo->ne[1], w->ne[1]/n_gqa, n_gqa); // F32 [n_embd, n_embd_head, n_gqa]

    ggml_tensor * gram = ggml_mul_mat(ctx, w, w);
    ggml_prec_set_acc(gram, GGML_PREC_F32);
    return graph.compute(gram);
}

std::vector<float> headkv_keys_projected(
        const headkv_rows & rows, ggml_tensor * wo, int64_t n_gqa, const std::vector<float> & hadamard) {
    std::vector<float> grams; // [n_head_kv][n_gqa][n_embd_head][n_embd_head]
    for (int64_t ih = 0; ih < rows.n_head_kv; ++ih) {
        const auto gram = gram_of_head(rows, wo, n_gqa, ih, hadamard);
        grams.insert(grams.end(), gram.begin(), gram.end());
    }
    return map_rows(rows, 1, [&](headkv_graph & graph, ggml_tensor * v) {
        ggml_context * ctx = graph.ctx();

        const int64_t d = v->ne[0];
        const int64_t n = v->ne[1]*v->ne[2];

        ggml_tensor * square = ggml_mul_mat(ctx, graph.input(grams, d, d*n_gqa, v->ne[2]), v); // F32 [d*n_gqa, n_pos, n_head_kv]
        square = ggml_mul(ctx, ggml_reshape_3d(ctx, square, d, n_gqa, n), ggml_reshape_3d(ctx, v, d, 1, n));
        square = ggml_relu(ctx, ggml_sum_rows(ctx, square)); // rounding may leave less than nothing
        square = ggml_reshape_2d(ctx, ggml_sqrt(ctx, square), n_gqa, n);
        return ggml_scale(ctx, ggml_sum_rows(ctx, square), 1.0f/n_gqa);
    });
}
