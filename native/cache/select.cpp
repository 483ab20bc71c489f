#include "cache/select.h"
#include "core/error.h"
#include "core/parallel.h"
#include "core/select.h"
#include "core/vote.h"
#include "score/scorers.h"

void headkv_select_check(const headkv_compress_params & params) {
    const headkv_scorer & scorer = headkv_scorer_of(params.score);
    headkv_vote_check({ params.vote_weights, params.vote_shares, params.n_rows_size });
    if (params.vote_weights) {
        headkv_check_kernel("vote_kernel", params.vote_kernel);
        if (scorer.no_vote && !params.scores) {
            headkv_fail(HEADKV_STATUS_INVALID_ARGUMENT, "%s", scorer.no_vote);
        }
    }
    for (uint32_t h = 0; params.pool_kernels && h < params.n_rows_size; ++h) {
        headkv_check_kernel("pool_kernels", params.pool_kernels[h]);
    }
}

// scores that were made elsewhere, of each layer [n_head_kv][n_pos - n_obs]
static std::vector<std::vector<float>> given_scores(
        const headkv_view & view, const headkv_plan & plan, const headkv_compress_params & params) {
    if (params.n_scores != (size_t) params.n_rows_size*plan.n_pos_hot()) {
        headkv_fail(HEADKV_STATUS_INVALID_ARGUMENT,
            "n_scores = %zu, expected %u heads x %u positions", params.n_scores, params.n_rows_size, plan.n_pos_hot());
    }
    if (!headkv_all_finite(params.scores, params.n_scores)) {
        headkv_fail(HEADKV_STATUS_INVALID_ARGUMENT, "scores holds a value that is not finite");
    }
    std::vector<std::vector<float>> scores;
    const float * src = params.scores;
    for (const auto & layer : view.layers) {
        const float * end = src + (size_t) plan.n_pos_hot()*layer.shape.n_head_kv;
        scores.emplace_back(src, end);
        src = end;
    }
    return scores;
}

// the same, of what was observed or of the rows; not pooled
static std::vector<std::vector<float>> score_layers(const headkv_view & view, const headkv_compress_params & params) {
    std::vector<std::vector<float>> scores(view.layers.size());
    // a graph on the context's backend has threads of its own, and there is one backend
    const bool is_parallel = headkv_scorer_of(params.score).is_parallel;
    headkv_parallel_for(scores.size(), is_parallel ? params.n_threads : 1, [&](size_t i) {
        scores[i] = headkv_score_layer(view, i, params.score);
    });
    return scores;
}

// number of each layer's first KV head among those of all layers
static std::vector<size_t> first_heads(const headkv_view & view) {
    std::vector<size_t> res = { 0 };
    for (const auto & layer : view.layers) {
        res.push_back(res.back() + layer.shape.n_head_kv);
    }
    return res;
}

// the pooled vote of all heads, [n]. In order and by one thread, so that sums are the same for any number of threads
static std::vector<float> vote_of_heads(
        const std::vector<std::vector<float>> & scores, size_t n, const headkv_plan & plan, const headkv_compress_params & params) {
    std::vector<float> vote(n);
    const float * weight = params.vote_weights;
    for (size_t i = 0; i < scores.size(); ++i) {
        for (uint32_t ih = 0; ih < plan.layers[i].n_head_kv(); ++ih) {
            headkv_vote_add(scores[i].data() + ih*n, n, plan.n_sink, *weight++, vote.data());
        }
    }
    headkv_pool_row((headkv_pool) params.score.pool, params.vote_kernel, vote.data(), vote.size());
    return vote;
}

headkv_kept_positions headkv_select(const headkv_view & view, const headkv_plan & plan, const headkv_compress_params & params) {
    const size_t n_layer     = view.layers.size();
    const size_t n           = plan.n_pos_hot();
    const bool   is_critical = headkv_scorer_of(params.score).is_critical;
    const auto   first       = first_heads(view);

    std::vector<std::vector<float>> scores = params.scores ? given_scores(view, plan, params) : score_layers(view, params);
    std::vector<std::vector<float>> norms(n_layer); // as the scores
    for (size_t i = 0; i < n_layer && is_critical; ++i) {
        norms[i] = headkv_score_projected(view, i, n);
    }
    const std::vector<float> vote = params.vote_weights ? vote_of_heads(scores, n, plan, params) : std::vector<float>();

    headkv_kept_positions pos(n_layer);
    headkv_parallel_for(n_layer, params.n_threads, [&](size_t i) {
        for (uint32_t ih = 0; ih < plan.layers[i].n_head_kv(); ++ih) {
            const size_t   h      = first[i] + ih;
            const uint32_t kernel = params.pool_kernels ? params.pool_kernels[h] : headkv_score_kernel(params.score);
            const uint32_t n_keep = plan.layers[i].len(ih);
            float        * score  = scores[i].data() + ih*n;

            headkv_pool_row((headkv_pool) params.score.pool, kernel, score, n);
            if (params.vote_shares && params.vote_shares[h] > 0.0f) {
                headkv_vote_mix(score, n, plan.n_sink, params.vote_shares[h], vote.data());
            }
            pos[i].push_back(is_critical
                ? headkv_select_critical(score, norms[i].data() + ih*n, n, plan.spans, n_keep)
                : headkv_select_head(score, n, plan.spans, n_keep));
        }
    });
    return pos;
}
