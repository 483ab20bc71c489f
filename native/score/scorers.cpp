#include "score/scorers.h"
#include "core/worst_case.h"
#include "score/expected.h"
#include "rows/graph.h"
#include "score/keys.h"
#include "cache/store.h"
#include "cache/tail.h"

#include "llama-impl.h"
#include "llama-model.h"

#include <algorithm>
#include <numeric>

void headkv_rate_check_kernel(const char * name, uint32_t kernel) {
    if (kernel % 2 == 0) {
        throw headkv_error { HEADKV_STATUS_INVALID_ARGUMENT, format("%s = %u is not an odd number", name, kernel) };
    }
}

static void check_enum(const char * name, int32_t value, int32_t last, const char * type) {
    if (value < 0 || value > last) {
        throw headkv_error { HEADKV_STATUS_INVALID_ARGUMENT, format("%s = %d is not an enum %s", name, value, type) };
    }
}

void headkv_rate_check(const headkv_score_params & params) {
    headkv_rate_check_kernel("pool_kernel", params.pool_kernel);
    check_enum("pool", params.pool, HEADKV_POOL_AVG,        "headkv_pool");
    check_enum("fold", params.fold, HEADKV_FOLD_LAYER,      "headkv_fold");
    check_enum("kind", params.kind, HEADKV_SCORE_DEFENSIVE, "headkv_score");
}

headkv_pool_type headkv_rate_pool(const headkv_score_params & params) {
    return params.pool == HEADKV_POOL_AVG ? headkv_pool_type::avg : headkv_pool_type::max;
}

uint32_t headkv_rate_kernel(const headkv_score_params & params) {
    return params.kind == HEADKV_SCORE_DEFENSIVE ? 1 : params.pool_kernel;
}

static bool is_by_attention(const headkv_score_params & params) {
    return params.kind == HEADKV_SCORE_ATTENTION || params.kind == HEADKV_SCORE_CRITICAL;
}

bool headkv_rate_is_parallel(const headkv_score_params & params) {
    return is_by_attention(params) || params.kind == HEADKV_SCORE_POSITION;
}

static const char * name_of(headkv_reduce reduce) {
    switch (reduce) {
        case HEADKV_REDUCE_MOMENTS: return "moments";
        case HEADKV_REDUCE_QUERIES: return "queries";
        default:                    return "attention";
    }
}

// the observing tokens must be the last ones, all of them decoded, and armed for what is needed: mean stands for the maximum too
static void check_scored(const headkv_store & store, headkv_reduce needed) {
    const uint32_t n_pos = store.n_pos();
    if (store.n_armed == 0 || store.n_scored != store.n_armed || store.pos_scored + (int32_t) store.n_armed != (int32_t) n_pos) {
        throw headkv_error { HEADKV_STATUS_WRONG_STATE,
            format("the last %u positions were not all scored: %u of %u armed tokens were decoded, from position %d on",
                store.n_armed, store.n_scored, store.n_armed, store.pos_scored) };
    }
    const std::string armed  = name_of(store.reduce);
    const std::string wanted = name_of(needed);
    if (armed != wanted) {
        throw headkv_error { HEADKV_STATUS_WRONG_STATE, "armed for " + armed + ", but these scores need " + wanted };
    }
}

static void check_finite(const headkv_store & store, uint32_t i, const std::vector<float> & values) {
    if (!headkv_all_finite(values.data(), values.size())) {
        throw headkv_error { HEADKV_STATUS_COMPUTE, format("the scores of layer %u are not finite", store.layers[i].shape.il) };
    }
}

static std::vector<float> read_armed(const headkv_layer_store & layer) {
    std::vector<float> raw(ggml_nelements(layer.score));
    ggml_backend_tensor_get(layer.score, raw.data(), 0, ggml_nbytes(layer.score));
    return raw;
}

std::vector<float> headkv_rate_attention(const headkv_store & store, uint32_t i, uint32_t n_obs) {
    check_scored(store, HEADKV_REDUCE_MEAN);

    const auto & layer = store.layers[i];
    const auto   cells = headkv_access::cells_of(store.kv, 0, store.n_pos() - n_obs);
    const auto   raw   = read_armed(layer);

    const float scale = store.reduce == HEADKV_REDUCE_MEAN ? 1.0f / store.n_armed : 1.0f;

    std::vector<float> attn;
    attn.reserve((size_t) layer.shape.n_head*cells.size());
    for (uint32_t h = 0; h < layer.shape.n_head; ++h) {
        for (const uint32_t cell : cells) {
            attn.push_back(scale*raw[(size_t) h*layer.score->ne[0] + cell]);
        }
    }
    check_finite(store, i, attn);
    return attn;
}

static headkv_fold_type fold_type(const headkv_score_params & params) {
    switch (params.fold) {
        case HEADKV_FOLD_MAX:   return headkv_fold_type::max;
        case HEADKV_FOLD_LAYER: return headkv_fold_type::layer;
        default:                return headkv_fold_type::mean;
    }
}

static void check_window(const headkv_store & store, uint32_t n_obs) {
    if (n_obs > store.n_armed) {
        throw headkv_error { HEADKV_STATUS_INVALID_ARGUMENT, format("n_obs = %u, but %u tokens were scored", n_obs, store.n_armed) };
    }
}

static std::vector<float> rate_by_attention(const headkv_store & store, uint32_t i, const headkv_score_params & params) {
    const std::vector<float> attn = headkv_rate_attention(store, i, params.n_obs);
    check_window(store, params.n_obs);
    const auto & layer = store.layers[i].shape;

    const headkv_score_shape shape { layer.n_head, layer.n_head_kv, (uint32_t) (attn.size()/layer.n_head) };

    std::vector<float> res((size_t) shape.n_head_kv*shape.n_pos);
    headkv_fold(shape, fold_type(params), attn.data(), res.data());
    return res;
}

// [n_head_kv][n_from] -> [n_head_kv][n], n <= n_from
static std::vector<float> first_of_each(const std::vector<float> & values, uint32_t n_head_kv, size_t n) {
    const size_t n_from = values.size()/n_head_kv;

    std::vector<float> res;
    res.reserve(n_head_kv*n);
    for (uint32_t ih = 0; ih < n_head_kv; ++ih) {
        res.insert(res.end(), values.begin() + ih*n_from, values.begin() + ih*n_from + n);
    }
    return res;
}

static std::vector<float> rate_by_position(uint32_t n_head_kv, size_t n) {
    std::vector<float> res(n_head_kv*n);
    for (uint32_t ih = 0; ih < n_head_kv; ++ih) {
        std::iota(res.begin() + ih*n, res.begin() + (ih + 1)*n, 0.0f);
    }
    return res;
}

static std::vector<int32_t> cells_from(const headkv_store & store, int32_t p0) {
    const auto cells = headkv_access::cells_of(store.kv, p0, store.n_pos());
    return { cells.begin(), cells.end() };
}

static std::vector<float> rate_by_keys(const headkv_store & store, uint32_t i, const headkv_score_params & params) {
    ggml_tensor * k     = headkv_access::k(store.kv, store.layers[i].shape.il);
    const auto    cells = cells_from(store, 0);

    const headkv_rows rows { store.backend_of(k), k, store.layers[i].shape.n_head_kv, cells };

    std::vector<float> res = params.kind == HEADKV_SCORE_KNORM ? headkv_keys_norm(rows) : headkv_keys_likeness(rows);
    std::transform(res.begin(), res.end(), res.begin(), std::negate<float>());
    return first_of_each(res, rows.n_head_kv, cells.size() - params.n_obs);
}

// scores of all positions whose queries were observed; those before them, the sinks, are worth as much as the best of these
static std::vector<float> rate_by_expectation(const headkv_store & store, uint32_t i, const headkv_score_params & params) {
    check_scored(store, HEADKV_REDUCE_MOMENTS);

    const auto & layer = store.layers[i];
    if (!layer.is_rotation_known) {
        throw headkv_error { HEADKV_STATUS_UNSUPPORTED,
            format("the queries of layer %u before rotation cannot be found: take another scorer", layer.shape.il) };
    }
    const uint32_t n_head_kv = layer.shape.n_head_kv;
    const uint32_t n_gqa     = layer.shape.n_head/n_head_kv;
    const uint32_t n_pos     = store.n_pos();
    const uint32_t n_first   = n_pos - store.n_armed;

    ggml_tensor * k = headkv_access::k(store.kv, store.layers[i].shape.il);
    ggml_tensor * v = headkv_access::v(store.kv, store.layers[i].shape.il);
    const auto backend = store.backend_of(k);
    const auto cells   = cells_from(store, n_first);

    const headkv_moments  moments  { layer.shape.n_embd_head_k, layer.shape.n_head, store.n_armed, read_armed(layer) };
    const headkv_expected expected = headkv_expect(backend, moments, layer.rotation, n_pos, layer.logits.scale);

    const auto logits = headkv_keys_logits({ backend, k, n_head_kv, cells }, n_gqa, expected.linear, expected.squared);
    check_finite(store, i, logits);
    const auto scores = headkv_expect_scores(logits, headkv_keys_norm({ backend, v, n_head_kv, cells }), n_head_kv);

    const size_t n = n_pos - params.n_obs;
    std::vector<float> res(n_head_kv*n);
    for (uint32_t ih = 0; ih < n_head_kv; ++ih) {
        const float * own = scores.data() + (size_t) ih*store.n_armed;
        float       * dst = res.data() + ih*n;

        const size_t n_sink = std::min<size_t>(n_first, n);
        std::fill_n(dst, n_sink, *std::max_element(own, own + store.n_armed));
        std::copy_n(own, n - n_sink, dst + n_sink);
    }
    return res;
}

std::vector<float> headkv_rate_projected(const headkv_store & store, uint32_t i, size_t n) {
    const auto  & layer = store.layers[i].shape;
    ggml_tensor * wo    = headkv_access::model(store.kv).layers[layer.il].wo;
    ggml_tensor * v     = headkv_access::v(store.kv, store.layers[i].shape.il);
    if (!wo || wo->ne[0] != (int64_t) layer.n_head*layer.n_embd_head_v) {
        throw headkv_error { HEADKV_STATUS_UNSUPPORTED,
            format("the output projection of layer %u cannot be found: take another scorer", layer.il) };
    }
    auto cells = cells_from(store, 0);
    cells.resize(n);

    auto res = headkv_keys_projected({ store.backend_of(v), v, layer.n_head_kv, cells }, wo, layer.n_head/layer.n_head_kv,
        headkv_access::mixing_v(store.kv));
    check_finite(store, i, res);
    return res;
}

static std::vector<float> rate_by_defence(const headkv_store & store, uint32_t i, const headkv_score_params & params) {
    check_scored(store, HEADKV_REDUCE_QUERIES);
    check_window(store, params.n_obs);

    const auto   & layer   = store.layers[i];
    const uint32_t n_gqa   = layer.shape.n_head/layer.shape.n_head_kv;
    const uint32_t n       = store.n_pos() - params.n_obs;
    const auto     queries = read_armed(layer);
    const auto     cells   = cells_from(store, 0);
    const auto     norms   = headkv_rate_projected(store, i, n);

    ggml_tensor * k = headkv_access::k(store.kv, store.layers[i].shape.il);
    const headkv_rows    rows    { store.backend_of(k), k, layer.shape.n_head_kv, cells };
    const headkv_defence defence { n_gqa*store.n_armed, store.n_pos(), n, params.n_first, headkv_rate_pool(params), params.pool_kernel };

    std::vector<float> res(norms.size());
    for (uint32_t ih = 0; ih < layer.shape.n_head_kv; ++ih) {
        const auto attention = headkv_keys_attention(rows, ih, queries, store.n_armed, layer.logits);
        check_finite(store, i, attention);
        headkv_defend(defence, attention.data(), norms.data() + (size_t) ih*n, res.data() + (size_t) ih*n);
    }
    return res;
}

// the n positions with the highest values, ties to the lower one
static std::vector<int32_t> highest(const float * x, size_t n_pos, size_t n) {
    std::vector<int32_t> pos(n_pos);
    std::iota(pos.begin(), pos.end(), 0);
    n = std::min(n, n_pos);
    std::partial_sort(pos.begin(), pos.begin() + n, pos.end(), [x](int32_t a, int32_t b) { return x[a] != x[b] ? x[a] > x[b] : a < b; });
    pos.resize(n);
    return pos;
}

std::vector<float> headkv_rate_semantics(const headkv_store & store, uint32_t i, uint32_t n_top) {
    const auto   & layer = store.layers[i].shape;
    const size_t   d     = layer.n_embd_head_v;
    const uint32_t n_pos = store.n_pos();
    const auto     attn  = headkv_rate_attention(store, i, /*.n_obs =*/ 0);
    const auto     cells = cells_from(store, 0);
    ggml_tensor  * v     = headkv_access::v(store.kv, store.layers[i].shape.il);

    std::vector<float> mean((size_t) layer.n_head_kv*n_pos);
    headkv_fold({ layer.n_head, layer.n_head_kv, n_pos }, headkv_fold_type::mean, attn.data(), mean.data());

    std::vector<float> res;
    for (uint32_t ih = 0; ih < layer.n_head_kv; ++ih) {
        const float * weights = mean.data() + (size_t) ih*n_pos;

        std::vector<int32_t> top = highest(weights, n_pos, n_top);
        std::vector<int32_t> top_cells;
        for (const int32_t p : top) {
            top_cells.push_back(cells[p]);
        }
        headkv_graph graph(store.backend_of(v));
        const auto values = graph.compute(graph.rows_of_head(v, top_cells, layer.n_head_kv, ih)); // [n_top][n_embd_head_v]

        std::vector<double> sum(d, 0.0);
        for (size_t t = 0; t < top.size(); ++t) {
            for (size_t j = 0; j < d; ++j) {
                sum[j] += (double) weights[top[t]]*values[t*d + j];
            }
        }
        res.insert(res.end(), sum.begin(), sum.end());
    }
    check_finite(store, i, res);
    return res;
}

std::vector<float> headkv_rate_folded(const headkv_store & store, uint32_t i, const headkv_score_params & params) {
    headkv_rate_check(params);
    if (!is_by_attention(params)) {
        store.check_can_compress(params.n_obs);
    }

    std::vector<float> res;
    switch (params.kind) {
        case HEADKV_SCORE_ATTENTION:
        case HEADKV_SCORE_CRITICAL:  res = rate_by_attention(store, i, params); break;
        case HEADKV_SCORE_DEFENSIVE: res = rate_by_defence(store, i, params); break;
        case HEADKV_SCORE_POSITION:  res = rate_by_position(store.layers[i].shape.n_head_kv, store.n_pos() - params.n_obs); break;
        case HEADKV_SCORE_EXPECTED:  res = rate_by_expectation(store, i, params); break;
        default:                     res = rate_by_keys(store, i, params); break;
    }
    check_finite(store, i, res);
    return res;
}

std::vector<float> headkv_rate(const headkv_store & store, uint32_t i, const headkv_score_params & params) {
    std::vector<float> res = headkv_rate_folded(store, i, params);

    const uint32_t n_head_kv = store.layers[i].shape.n_head_kv;
    const size_t   n         = res.size()/n_head_kv;
    for (uint32_t ih = 0; ih < n_head_kv; ++ih) {
        headkv_pool_row(headkv_rate_pool(params), headkv_rate_kernel(params), res.data() + ih*n, n);
    }
    return res;
}
