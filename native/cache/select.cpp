#include "cache/select.h"
#include "score/scorers.h"
#include "cache/store.h"
#include "core/vote.h"

#include "llama-impl.h"

#include <string>

void headkv_choose_check(const headkv_compress_params & params) {
    headkv_rate_check(params.score);
    const std::string error = headkv_vote_error({ params.voters, params.heeds, params.n_rows_size });
    if (!error.empty()) {
        throw headkv_error { HEADKV_STATUS_INVALID_ARGUMENT, error };
    }
    if (params.voters) {
        headkv_rate_check_kernel("vote_kernel", params.vote_kernel);
        const bool is_negative = params.score.kind == HEADKV_SCORE_KNORM || params.score.kind == HEADKV_SCORE_KEYDIFF;
        if (is_negative && !params.scores) {
            throw headkv_error { HEADKV_STATUS_INVALID_ARGUMENT, "heads cannot vote by keys alone: these scores are negative" };
        }
        if (params.score.kind == HEADKV_SCORE_DEFENSIVE && !params.scores) {
            throw headkv_error { HEADKV_STATUS_INVALID_ARGUMENT, "heads cannot vote by defensive scores: the first have no measure" };
        }
    }
    for (uint32_t h = 0; params.pool_kernels && h < params.n_rows_size; ++h) {
        headkv_rate_check_kernel("pool_kernels", params.pool_kernels[h]);
    }
}

// scores that were made elsewhere, of each layer [n_head_kv][n_pos - n_obs]
static std::vector<std::vector<float>> read_scores(
        const headkv_store & store, const headkv_plan & plan, const headkv_compress_params & params) {
    if (params.n_scores != (size_t) params.n_rows_size*plan.n_pos_prefix()) {
        throw headkv_error { HEADKV_STATUS_INVALID_ARGUMENT,
            format("n_scores = %zu, expected %u heads x %u positions", params.n_scores, params.n_rows_size, plan.n_pos_prefix()) };
    }
    if (!headkv_all_finite(params.scores, params.n_scores)) {
        throw headkv_error { HEADKV_STATUS_INVALID_ARGUMENT, "scores holds a value that is not finite" };
    }
    std::vector<std::vector<float>> scores;
    const float * src = params.scores;
    for (const auto & layer : store.layers) {
        const float * end = src + (size_t) plan.n_pos_prefix()*layer.shape.n_head_kv;
        scores.emplace_back(src, end);
        src = end;
    }
    return scores;
}

// the same, of what was observed or of the rows; not pooled
static std::vector<std::vector<float>> rate(const headkv_store & store, const headkv_compress_params & params) {
    std::vector<std::vector<float>> scores(store.layers.size());
    // a graph on the context's backend has threads of its own, and there is one backend
    headkv_parallel_for(scores.size(), headkv_rate_is_parallel(params.score) ? params.n_threads : 1, [&](size_t i) {
        scores[i] = headkv_rate_folded(store, i, params.score);
    });
    return scores;
}

headkv_positions_by_head headkv_choose(
        const headkv_store & store, const headkv_plan & plan, const headkv_compress_params & params) {
    const auto & layers      = store.layers;
    const size_t n           = plan.n_pos_prefix();
    const bool   is_critical = params.score.kind == HEADKV_SCORE_CRITICAL;

    std::vector<std::vector<float>> scores = params.scores ? read_scores(store, plan, params) : rate(store, params);
    std::vector<std::vector<float>> norms(layers.size()); // as the scores
    std::vector<size_t> first = { 0 };                    // of each layer's heads among all
    for (size_t i = 0; i < layers.size(); ++i) {
        first.push_back(first.back() + layers[i].shape.n_head_kv);
        if (is_critical) {
            norms[i] = headkv_rate_projected(store, i, n);
        }
    }

    // in order and by one thread, so that sums are the same for any number of threads
    std::vector<float> vote(params.voters ? n : 0);
    for (size_t i = 0; params.voters && i < layers.size(); ++i) {
        for (uint32_t ih = 0; ih < layers[i].shape.n_head_kv; ++ih) {
            headkv_vote_add(scores[i].data() + ih*n, n, plan.n_sink, params.voters[first[i] + ih], vote.data());
        }
    }
    headkv_pool_row(headkv_rate_pool(params.score), params.vote_kernel, vote.data(), vote.size());

    headkv_positions_by_head pos(layers.size());
    headkv_parallel_for(layers.size(), params.n_threads, [&](size_t i) {
        for (uint32_t ih = 0; ih < layers[i].shape.n_head_kv; ++ih) {
            const size_t   h      = first[i] + ih;
            const uint32_t kernel = params.pool_kernels ? params.pool_kernels[h] : headkv_rate_kernel(params.score);
            const uint32_t n_keep = plan.layers[i].len[ih];
            float        * score  = scores[i].data() + ih*n;

            headkv_pool_row(headkv_rate_pool(params.score), kernel, score, n);
            if (params.heeds && params.heeds[h] > 0.0f) {
                headkv_vote_heed(score, n, plan.n_sink, params.heeds[h], vote.data());
            }
            pos[i].push_back(is_critical
                ? headkv_select_critical(score, norms[i].data() + ih*n, n, plan.always, n_keep)
                : headkv_select_head(score, n, plan.always, n_keep));
        }
    });
    return pos;
}
