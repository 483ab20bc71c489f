#include "headkv-keys.h"
#include "headkv-graph.h"

#include "ggml.h"

#include <algorithm>
#include <cmath>
#include <functional>

// positions in one graph: some MiB of numbers
static constexpr int64_t N_POS_AT_ONCE = 1024;

static constexpr float EPS_LENGTH = 1e-12f;

// F32 [n_embd_head, n, n_head_kv] of a piece -> what is computed from it
using build_fn = std::function<ggml_tensor *(headkv_graph & graph, ggml_tensor * rows)>;
// take(first, n, values) of the piece of positions [first, first + n)
using take_fn  = std::function<void(int64_t first, int64_t n, const std::vector<float> & values)>;

static void for_pieces(const headkv_rows & rows, const build_fn & build, const take_fn & take) {
    const int64_t n_pos = rows.cells.size();
    for (int64_t first = 0; first < n_pos; first += N_POS_AT_ONCE) {
        const int64_t n = std::min(N_POS_AT_ONCE, n_pos - first);

        headkv_graph graph(rows.backend);
        take(first, n, graph.compute(build(graph, graph.rows(rows.cache, rows.cells.data() + first, n, rows.n_head_kv))));
    }
}

// build: F32 [n_out, n, n_head_kv] of a piece. All pieces together: [n_head_kv][n_pos][n_out]
static std::vector<float> map_rows(const headkv_rows & rows, int64_t n_out, const build_fn & build) {
    const int64_t n_pos = rows.cells.size();

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
    const int64_t n_embd_head = rows.cache->ne[0]/rows.n_head_kv;

    std::vector<double> sum(rows.cache->ne[0], 0.0);
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

std::vector<float> headkv_keys_likeness(const headkv_rows & rows) {
    const std::vector<float> mean = mean_direction(rows);

    return map_rows(rows, 1, [&](headkv_graph & graph, ggml_tensor * x) {
        ggml_tensor * m = graph.input(mean, x->ne[0], 1, x->ne[2]);
        return ggml_mul_mat(graph.ctx(), m, build_unit(graph, x)); // F32 [1, n, n_head_kv]
    });
}

std::vector<float> headkv_keys_logits(
        const headkv_rows & rows, int64_t n_gqa, const std::vector<float> & linear, const std::vector<float> & squared) {
    return map_rows(rows, n_gqa, [&](headkv_graph & graph, ggml_tensor * x) {
        ggml_context * ctx = graph.ctx();

        const int64_t d = x->ne[0];
        const int64_t n = x->ne[1];

        ggml_tensor * mean = ggml_mul_mat(ctx, graph.input(linear,  d, n_gqa,   x->ne[2]), x); // F32 [n_gqa,   n, n_head_kv]
        ggml_tensor * turn = ggml_mul_mat(ctx, graph.input(squared, d, d*n_gqa, x->ne[2]), x); // F32 [d*n_gqa, n, n_head_kv]

        turn = ggml_reshape_2d(ctx, turn, d, n_gqa*n*x->ne[2]);
        turn = ggml_sum_rows(ctx, ggml_sqr(ctx, turn));
        return ggml_add(ctx, mean, ggml_reshape_3d(ctx, turn, n_gqa, n, x->ne[2]));
    });
}
