#include "score/scorers.h"
#include "core/error.h"
#include "core/select.h"
#include "core/top.h"
#include "core/worst_case.h"
#include "rows/graph.h"

#include <algorithm>
#include <functional>
#include <numeric>

static void check_finite(const headkv_view & view, size_t i, const std::vector<float> & values) {
    if (!headkv_all_finite(values.data(), values.size())) {
        headkv_fail(HEADKV_STATUS_COMPUTE, "the scores of layer %u are not finite", view.layers[i].shape.il);
    }
}

static void check_window(const headkv_view & view, uint32_t n_obs) {
    if (n_obs > view.observation.window().n) {
        headkv_fail(HEADKV_STATUS_INVALID_ARGUMENT, "n_obs = %u, but %u tokens were scored", n_obs, view.observation.window().n);
    }
}

//
// attention
//

std::vector<float> headkv_score_attention(const headkv_view & view, size_t i, uint32_t n_obs) {
    const auto & observation = view.observation;
    observation.check_complete(view.n_pos, HEADKV_OBSERVE_ATTN_MEAN);

    const int64_t   n       = (int64_t) view.n_pos - n_obs;
    const uint32_t  n_head  = view.layers[i].shape.n_head;
    const int32_t * cells   = view.layers[i].rows.k.cells();
    const auto      raw     = observation.read(i);
    const size_t    n_cells = raw.size()/n_head;

    const float scale = observation.what() == HEADKV_OBSERVE_ATTN_MEAN ? 1.0f / (observation.window().n*observation.at(i).n_readers) : 1.0f;

    std::vector<float> attn;
    attn.reserve(n_head*n);
    for (uint32_t h = 0; h < n_head; ++h) {
        for (int64_t p = 0; p < n; ++p) {
            attn.push_back(scale*raw[h*n_cells + cells[p]]);
        }
    }
    check_finite(view, i, attn);
    return attn;
}

static std::vector<float> score_by_attention(const headkv_view & view, size_t i, const headkv_score_params & params) {
    const std::vector<float> attn = headkv_score_attention(view, i, params.n_obs);
    check_window(view, params.n_obs);
    const auto & layer = view.layers[i].shape;

    const headkv_score_shape shape { layer.n_head, layer.n_head_kv, (uint32_t) (attn.size()/layer.n_head) };

    std::vector<float> res((size_t) shape.n_head_kv*shape.n_pos);
    headkv_fold_heads(shape, (headkv_fold) params.fold, attn.data(), res.data());
    return res;
}

//
// rows
//

static std::vector<float> score_by_position(const headkv_view & view, size_t i, const headkv_score_params & params) {
    const uint32_t n_head_kv = view.layers[i].shape.n_head_kv;
    const size_t   n         = view.n_pos - params.n_obs;

    std::vector<float> res(n_head_kv*n);
    for (uint32_t ih = 0; ih < n_head_kv; ++ih) {
        std::iota(res.begin() + ih*n, res.begin() + (ih + 1)*n, 0.0f);
    }
    return res;
}

// [n_head_kv][n_from] -> [n_head_kv][n], n <= n_from, all of them negated
static std::vector<float> negated_first_of_each(const std::vector<float> & values, uint32_t n_head_kv, size_t n) {
    const size_t n_from = values.size()/n_head_kv;

    std::vector<float> res(n_head_kv*n);
    for (uint32_t ih = 0; ih < n_head_kv; ++ih) {
        std::transform(values.begin() + ih*n_from, values.begin() + ih*n_from + n, res.begin() + ih*n, std::negate<float>());
    }
    return res;
}

static std::vector<float> score_by_knorm(const headkv_view & view, size_t i, const headkv_score_params & params) {
    return negated_first_of_each(headkv_keys_norm(view.layers[i].rows.k), view.layers[i].shape.n_head_kv, view.n_pos - params.n_obs);
}

static std::vector<float> score_by_keydiff(const headkv_view & view, size_t i, const headkv_score_params & params) {
    return negated_first_of_each(headkv_keys_cosine_to_mean(view.layers[i].rows.k), view.layers[i].shape.n_head_kv, view.n_pos - params.n_obs);
}

//
// queries to come
//

// scores of all positions whose queries were observed; those before them, the sinks, are worth as much as the best of these
static std::vector<float> score_by_expectation(const headkv_view & view, size_t i, const headkv_score_params & params) {
    const auto & layer    = view.layers[i];
    const auto & observed = view.observation.at(i);
    if (!observed.is_rotation_known) {
        headkv_fail(HEADKV_STATUS_UNSUPPORTED,
            "the queries of layer %u before rotation cannot be found: take another scorer", layer.shape.il);
    }
    const uint32_t n_head_kv    = layer.shape.n_head_kv;
    const uint32_t n_gqa        = layer.shape.n_head/n_head_kv;
    const uint32_t n_observed   = view.observation.window().n;
    const uint32_t n_unobserved = view.n_pos - n_observed;

    const headkv_moments  moments  { layer.shape.n_embd_head_k, layer.shape.n_head, n_observed, view.observation.read(i) };
    const headkv_expected expected = headkv_expect(layer.rows.k.backend, moments, observed.rotation, view.n_pos, observed.logits.scale);

    const auto logits = headkv_keys_logits(layer.rows.k.slice(n_unobserved, n_observed), n_gqa, expected.linear, expected.chol_cov);
    check_finite(view, i, logits);
    const auto norms  = headkv_keys_norm(layer.rows.v.slice(n_unobserved, n_observed));
    const auto scores = headkv_expect_scores(logits, norms, n_head_kv);

    const size_t n = view.n_pos - params.n_obs;
    std::vector<float> res(n_head_kv*n);
    for (uint32_t ih = 0; ih < n_head_kv; ++ih) {
        const float * own = scores.data() + (size_t) ih*n_observed;
        float       * dst = res.data() + ih*n;

        const size_t n_sink = std::min<size_t>(n_unobserved, n);
        std::fill_n(dst, n_sink, *std::max_element(own, own + n_observed));
        std::copy_n(own, n - n_sink, dst + n_sink);
    }
    return res;
}

//
// behind the output projection
//

std::vector<float> headkv_score_projected(const headkv_view & view, size_t i, int64_t n) {
    const auto & layer = view.layers[i];
    if (!layer.wo || layer.wo->ne[0] != (int64_t) layer.shape.n_head*layer.shape.n_embd_head_v) {
        headkv_fail(HEADKV_STATUS_UNSUPPORTED,
            "the output projection of layer %u cannot be found: take another scorer", layer.shape.il);
    }
    auto res = headkv_keys_projected(
        layer.rows.v.slice(0, n), layer.wo, layer.shape.n_head/layer.shape.n_head_kv, view.hadamard_v);
    check_finite(view, i, res);
    return res;
}

static std::vector<float> score_by_worst_case(const headkv_view & view, size_t i, const headkv_score_params & params) {
    const auto & observation = view.observation;
    check_window(view, params.n_obs);

    const auto   & layer   = view.layers[i];
    const uint32_t n_gqa   = layer.shape.n_head/layer.shape.n_head_kv;
    const uint32_t n_obs   = observation.window().n;
    const uint32_t n       = view.n_pos - params.n_obs;
    const auto     queries = observation.read(i);
    const auto     norms   = headkv_score_projected(view, i, n);

    const headkv_worst_case how { n_gqa*n_obs, view.n_pos, n, params.n_forced_max, (headkv_pool) params.pool, params.pool_kernel };

    std::vector<float> res(norms.size());
    for (uint32_t ih = 0; ih < layer.shape.n_head_kv; ++ih) {
        const auto attention = headkv_keys_attention(layer.rows.k, ih, queries, n_obs, observation.at(i).logits);
        check_finite(view, i, attention);
        headkv_worst_case_score(how, attention.data(), norms.data() + (size_t) ih*n, res.data() + (size_t) ih*n);
    }
    return res;
}

//
// Task-KV
//

std::vector<float> headkv_score_semantics(const headkv_view & view, size_t i, uint32_t n_top) {
    const auto   & layer = view.layers[i].shape;
    const auto   & rows  = view.layers[i].rows.v;
    const size_t   d     = layer.n_embd_head_v;
    const uint32_t n_pos = view.n_pos;
    const auto     attn  = headkv_score_attention(view, i, /*.n_obs =*/ 0);

    std::vector<float> mean((size_t) layer.n_head_kv*n_pos);
    headkv_fold_heads({ layer.n_head, layer.n_head_kv, n_pos }, HEADKV_FOLD_MEAN, attn.data(), mean.data());

    std::vector<float> res;
    for (uint32_t ih = 0; ih < layer.n_head_kv; ++ih) {
        const float * weights = mean.data() + (size_t) ih*n_pos;

        const std::vector<int32_t> top = headkv_top(weights, n_pos, n_top);

        headkv_graph graph(rows.backend);
        const auto values = graph.compute(graph.rows_of_head(rows, top, ih)); // [n_top][n_embd_head_v]

        std::vector<double> sum(d, 0.0);
        for (size_t t = 0; t < top.size(); ++t) {
            for (size_t j = 0; j < d; ++j) {
                sum[j] += (double) weights[top[t]]*values[t*d + j];
            }
        }
        res.insert(res.end(), sum.begin(), sum.end());
    }
    check_finite(view, i, res);
    return res;
}

//
// the table
//

static const char * const NEGATIVE  = "heads cannot vote by keys alone: these scores are negative";
static const char * const UNBOUNDED = "heads cannot vote by defensive scores: the first have no measure";

static constexpr int32_t NOTHING = -1;

static const headkv_scorer SCORERS[] = {
    //  kind                  needs                  parallel pooled critical no_vote    score
    { HEADKV_SCORE_ATTENTION, HEADKV_OBSERVE_ATTN_MEAN,    true,    false, false,   nullptr,   score_by_attention   },
    { HEADKV_SCORE_POSITION,  NOTHING,               true,    false, false,   nullptr,   score_by_position    },
    { HEADKV_SCORE_KNORM,     NOTHING,               false,   false, false,   NEGATIVE,  score_by_knorm       },
    { HEADKV_SCORE_KEYDIFF,   NOTHING,               false,   false, false,   NEGATIVE,  score_by_keydiff     },
    { HEADKV_SCORE_EXPECTED,  HEADKV_OBSERVE_QUERY_STATS, false,   false, false,   nullptr,   score_by_expectation },
    { HEADKV_SCORE_CRITICAL,  HEADKV_OBSERVE_ATTN_MEAN,    true,    false, true,    nullptr,   score_by_attention   },
    { HEADKV_SCORE_DEFENSIVE, HEADKV_OBSERVE_QUERIES, false,   true,  false,   UNBOUNDED, score_by_worst_case  },
};

void headkv_check_kernel(const char * name, uint32_t kernel) {
    if (kernel % 2 == 0) {
        headkv_fail(HEADKV_STATUS_INVALID_ARGUMENT, "%s = %u is not an odd number", name, kernel);
    }
}

static void check_enum(const char * name, int32_t value, int32_t last, const char * type) {
    if (value < 0 || value > last) {
        headkv_fail(HEADKV_STATUS_INVALID_ARGUMENT, "%s = %d is not an enum %s", name, value, type);
    }
}

const headkv_scorer & headkv_scorer_of(const headkv_score_params & params) {
    headkv_check_kernel("pool_kernel", params.pool_kernel);
    check_enum("pool", params.pool, HEADKV_POOL_AVG,   "headkv_pool");
    check_enum("fold", params.fold, HEADKV_FOLD_LAYER, "headkv_fold");

    for (const auto & scorer : SCORERS) {
        if (scorer.kind == params.kind) {
            return scorer;
        }
    }
    headkv_fail(HEADKV_STATUS_INVALID_ARGUMENT, "kind = %d is not an enum headkv_score", params.kind);
}

uint32_t headkv_score_kernel(const headkv_score_params & params) {
    return headkv_scorer_of(params).is_pooled ? 1 : params.pool_kernel;
}

std::vector<float> headkv_score_layer(const headkv_view & view, size_t i, const headkv_score_params & params) {
    const headkv_scorer & scorer = headkv_scorer_of(params);
    if (scorer.needs != NOTHING) {
        view.observation.check_complete(view.n_pos, (headkv_observe_what) scorer.needs);
    }
    std::vector<float> res = scorer.score(view, i, params);
    check_finite(view, i, res);
    return res;
}

std::vector<float> headkv_score_pooled(const headkv_view & view, size_t i, const headkv_score_params & params) {
    std::vector<float> res = headkv_score_layer(view, i, params);

    const uint32_t n_head_kv = view.layers[i].shape.n_head_kv;
    const size_t   n         = res.size()/n_head_kv;
    for (uint32_t ih = 0; ih < n_head_kv; ++ih) {
        headkv_pool_row((headkv_pool) params.pool, headkv_score_kernel(params), res.data() + ih*n, n);
    }
    return res;
}
