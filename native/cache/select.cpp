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

// run fn for each layer; what it reads of a layer need not stay in memory afterwards
static void for_layers(const headkv_view & view, const headkv_compress_params & params, bool is_scoring, const std::function<void(size_t)> & fn) {
    // a graph on the context's backend has threads of its own, and there is one backend
    const headkv_scorer & scorer   = headkv_scorer_of(params.score);
    const bool            is_graph = scorer.is_critical || (is_scoring && !scorer.is_parallel);
    if (!view.give_back) {
        headkv_parallel_for(view.layers.size(), is_graph ? 1 : params.n_threads, fn);
        return;
    }
    for (size_t i = 0; i < view.layers.size(); ++i) { // one layer in memory at a time
        view.prefetch(i, scorer.is_critical || (is_scoring && !scorer.is_parallel));
        fn(i);
        view.give_back(i);
    }
}

// scores that were observed or are of the rows, of each layer [n_head_kv][n_pos - n_obs]; not pooled
static std::vector<std::vector<float>> score_layers(const headkv_view & view, const headkv_compress_params & params) {
    std::vector<std::vector<float>> scores(view.layers.size());
    for_layers(view, params, /*.is_scoring =*/ true, [&](size_t i) { scores[i] = headkv_select_scores(view, params, i); });
    return scores;
}

// number of a layer's first KV head among those of all layers
static size_t first_head(const headkv_view & view, size_t i) {
    size_t res = 0;
    for (size_t j = 0; j < i; ++j) {
        res += view.layers[j].shape.n_head_kv;
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

// of one layer, whose scores are [n_head_kv][n]
static std::vector<std::vector<int32_t>> choose(
        const headkv_view & view, const headkv_plan & plan, const headkv_compress_params & params, size_t i, std::vector<float> scores,
        const std::vector<float> & vote) {
    const size_t n           = plan.n_pos_hot();
    const bool   is_critical = headkv_scorer_of(params.score).is_critical;
    const auto   norms       = is_critical ? headkv_score_projected(view, i, n) : std::vector<float>(); // as the scores

    std::vector<std::vector<int32_t>> pos;
    for (uint32_t ih = 0; ih < plan.layers[i].n_head_kv(); ++ih) {
        const size_t   h      = first_head(view, i) + ih;
        const uint32_t kernel = params.pool_kernels ? params.pool_kernels[h] : headkv_score_kernel(params.score);
        const uint32_t n_keep = plan.layers[i].len(ih);
        float        * score  = scores.data() + ih*n;

        headkv_pool_row((headkv_pool) params.score.pool, kernel, score, n);
        if (params.vote_shares && params.vote_shares[h] > 0.0f) {
            headkv_vote_mix(score, n, plan.n_sink, params.vote_shares[h], vote.data());
        }
        pos.push_back(is_critical
            ? headkv_select_critical(score, norms.data() + ih*n, n, plan.spans, n_keep)
            : headkv_select_head(score, n, plan.spans, n_keep));
    }
    return pos;
}

std::vector<float> headkv_select_scores(const headkv_view & view, const headkv_compress_params & params, size_t i) {
    return headkv_score_layer(view, i, params.score);
}

std::vector<std::vector<int32_t>> headkv_select_layer(
        const headkv_view & view, const headkv_plan & plan, const headkv_compress_params & params, size_t i) {
    return choose(view, plan, params, i, headkv_select_scores(view, params, i), {});
}

headkv_kept_positions headkv_select(const headkv_view & view, const headkv_plan & plan, const headkv_compress_params & params) {
    headkv_kept_positions pos(view.layers.size());
    if (!params.scores && !params.vote_weights) {
        for_layers(view, params, /*.is_scoring =*/ true, [&](size_t i) { pos[i] = headkv_select_layer(view, plan, params, i); });
        return pos;
    }
    return headkv_select_voted(view, plan, params, params.scores ? given_scores(view, plan, params) : score_layers(view, params));
}

headkv_kept_positions headkv_select_voted(
        const headkv_view & view, const headkv_plan & plan, const headkv_compress_params & params, std::vector<std::vector<float>> scores) {
    headkv_kept_positions pos(view.layers.size());
    const auto vote = params.vote_weights ? vote_of_heads(scores, plan.n_pos_hot(), plan, params) : std::vector<float>();
    for_layers(view, params, /*.is_scoring =*/ false, [&](size_t i) { pos[i] = choose(view, plan, params, i, std::move(scores[i]), vote); });
    return pos;
}
