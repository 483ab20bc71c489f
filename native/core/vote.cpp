#include "core/vote.h"
#include "core/error.h"

#include <algorithm>
#include <cmath>
#include <numeric>

static bool is_within(const float * x, size_t n, float max) {
    return std::all_of(x, x + n, [max](float v) { return std::isfinite(v) && v >= 0.0f && v <= max; });
}

void headkv_vote_check(const headkv_vote & vote) {
    if (!vote.weights && !vote.shares) {
        return;
    }
    if (!vote.weights || !vote.shares) {
        headkv_fail(HEADKV_STATUS_INVALID_ARGUMENT, "vote_weights and vote_shares go together: one of them is NULL");
    }
    if (!is_within(vote.weights, vote.n, 1e6f)) {
        headkv_fail(HEADKV_STATUS_INVALID_ARGUMENT, "vote_weights holds a value outside 0 to 1e6");
    }
    if (!is_within(vote.shares, vote.n, 1.0f)) {
        headkv_fail(HEADKV_STATUS_INVALID_ARGUMENT, "vote_shares holds a value outside 0 to 1");
    }
}

// 1 / sum of the scores behind the sinks; 0 if there is nothing
static float scale_of(const float * score, size_t n_pos, uint32_t n_sink) {
    const double sum = std::accumulate(score + std::min<size_t>(n_sink, n_pos), score + n_pos, 0.0);
    return sum > 0.0 ? (float) (1.0/sum) : 0.0f;
}

void headkv_vote_add(const float * score, size_t n_pos, uint32_t n_sink, float weight, float * vote) {
    const float scale = weight*scale_of(score, n_pos, n_sink);
    for (size_t p = n_sink; p < n_pos; ++p) {
        vote[p] += scale*score[p];
    }
}

void headkv_vote_mix(float * score, size_t n_pos, uint32_t n_sink, float share, const float * vote) {
    const float scale_score = (1.0f - share)*scale_of(score, n_pos, n_sink);
    const float scale_vote  = share*scale_of(vote, n_pos, n_sink);
    for (size_t p = 0; p < n_pos; ++p) {
        score[p] = scale_score*score[p] + scale_vote*vote[p];
    }
}
