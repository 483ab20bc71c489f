// score/scorers.h: the scores of a layer: how much each position before the window is worth to each KV head. One row of the table in
// scorers.cpp and one function a scorer:
//
//     attention   what the observing tokens attended to, folded over the query heads   SnapKV, H2O, TOVA
//     position    the later the better                                                 StreamingLLM
//     knorm       short keys                                                           Knorm
//     keydiff     keys unlike the others of their head                                 KeyDiff
//     expected    what queries to come are expected to attend to, times |value|        Expected Attention
//     critical    as attention; times |W_o value| when half of the rows are selected   CriticalKV
//     defensive   the largest attention of any observing query, times |W_o value|      LayerDefensiveKV
//
// All functions may throw headkv_error.

#pragma once

#include "headkv.h"
#include "score/view.h"

#include <cstdint>
#include <vector>

struct headkv_scorer {
    headkv_score kind;

    int32_t needs; // what must have been observed: enum headkv_observe_what (the mean stands for the maximum too), or -1

    bool is_parallel; // computed from what was observed alone, on the host, so that layers may be scored at the same time
    bool is_pooled;   // made of pooled rows already: not pooled again

    // half of the evictable rows are selected by these scores, the others by these times what the values do to the output
    bool is_critical;

    const char * no_vote; // why heads cannot vote by these scores, or nullptr

    // [n_head_kv][n_pos - n_obs] of layer i, not pooled
    std::vector<float> (*score)(const headkv_view & view, size_t i, const headkv_score_params & params);
};

// checks the parameters too
const headkv_scorer & headkv_scorer_of(const headkv_score_params & params);

void headkv_check_kernel(const char * name, uint32_t kernel);

// positions that are pooled into each score by the caller; 1 where the scores are made of pooled rows already
uint32_t headkv_score_kernel(const headkv_score_params & params);

// attention of the observing tokens, mean or maximum, [n_head][n_pos - n_obs] of layer i
std::vector<float> headkv_score_attention(const headkv_view & view, size_t i, uint32_t n_obs);

// size of the values of the first n positions behind the output projection, [n_head_kv][n] of layer i
std::vector<float> headkv_score_projected(const headkv_view & view, size_t i, int64_t n);

// sight of the KV heads of layer i together, [n_head_kv][n_embd_head_v]: the values of the n_top positions with the largest
// attention, each times this attention
std::vector<float> headkv_score_semantics(const headkv_view & view, size_t i, uint32_t n_top);

// [n_head_kv][n_pos - n_obs] of layer i, not pooled, finite
std::vector<float> headkv_score_layer(const headkv_view & view, size_t i, const headkv_score_params & params);

// the same, pooled
std::vector<float> headkv_score_pooled(const headkv_view & view, size_t i, const headkv_score_params & params);
