// cache/select.h: which positions every KV head keeps hot rows of: scores, pooled, voted on, and the best of them.
//
// All may throw headkv_error.

#pragma once

#include "headkv.h"
#include "score/view.h"

// refuses parameters that are wrong whatever the plan says
void headkv_select_check(const headkv_compress_params & params);

// of the positions before the observation window, in layer i: [n_head_kv][rows]. For parameters without a vote and without scores that
// were made elsewhere
std::vector<std::vector<int32_t>> headkv_select_layer(
        const headkv_view & view, const headkv_plan & plan, const headkv_compress_params & params, size_t i);

// scores of layer i, observed or of its rows, not pooled: [n_head_kv][n_pos - n_obs]
std::vector<float> headkv_select_scores(const headkv_view & view, const headkv_compress_params & params, size_t i);

// the positions in all layers by such scores of each, for parameters with a vote
headkv_kept_positions headkv_select_voted(
        const headkv_view & view, const headkv_plan & plan, const headkv_compress_params & params, std::vector<std::vector<float>> scores);

// the same in all layers. The context is synchronized
headkv_kept_positions headkv_select(const headkv_view & view, const headkv_plan & plan, const headkv_compress_params & params);
