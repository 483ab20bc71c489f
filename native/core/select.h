// core/select.h: from scores to the positions that each KV head keeps. Plain arrays, no llama.cpp.
//
// Scores come in as attention of the observing tokens, one row of positions per query head. They are folded over the query heads
// of each KV head, pooled along the positions, and the best are selected (SnapKV, arXiv 2404.14469; fold before pooling as in
// kvpress and KVCache-Factory).

#pragma once

#include "core/plan.h"
#include "headkv.h"

#include <cstddef>
#include <cstdint>
#include <vector>

struct headkv_score_shape {
    uint32_t n_head;
    uint32_t n_head_kv;
    uint32_t n_pos; // scored positions, the window excluded
};

// attn: [n_head][n_pos] -> score: [n_head_kv][n_pos], folded over each group; layer: the mean over all heads, for each KV head
void headkv_fold_heads(const headkv_score_shape & shape, headkv_fold fold, const float * attn, float * score);

// pool n values in place, stride 1, "same" padding: the window is cut off at both ends. kernel is odd
void headkv_pool_row(headkv_pool pool, uint32_t kernel, float * score, size_t n);

// the protected positions, then those with the highest scores, ties to the lower position, until n_keep are selected.
// score: [n_pos] finite; spans: as in a plan, no more positions than n_keep <= n_pos. Returns n_keep positions, ascending
std::vector<int32_t> headkv_select_head(const float * score, uint32_t n_pos, const std::vector<headkv_span> & spans, uint32_t n_keep);

// CriticalKV (arXiv 2502.03805): of the evictable rows, half (rounded down) are the highest scores, the others the highest of
// (score + 1e-4) * norm. norm: [n_pos] what each value does to the output, finite, >= 0
std::vector<int32_t> headkv_select_critical(
        const float * score, const float * norm, uint32_t n_pos, const std::vector<headkv_span> & spans, uint32_t n_keep);

// true when all values are finite
bool headkv_all_finite(const float * x, size_t n);
