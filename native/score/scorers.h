// score/scorers.h: the scores of a layer: how much each position before the window is worth to each KV head.
//
//     attention   what the armed tokens attended to, folded over the query heads       SnapKV, H2O, TOVA
//     position    the later the better                                                 StreamingLLM
//     knorm       short keys                                                           Knorm
//     keydiff     keys unlike the others of their head                                 KeyDiff
//     expected    what queries to come are expected to attend to, times |value|        Expected Attention
//     critical    as attention; times |W_o value| when half of the rows are chosen     CriticalKV
//     defensive   the largest attention of any armed query, times |W_o value|          LayerDefensiveKV
//
// All may throw headkv_error.

#pragma once

#include "headkv.h"
#include "core/select.h"

#include <cstdint>
#include <vector>

struct headkv_store;

void             headkv_rate_check(const headkv_score_params & params);
void             headkv_rate_check_kernel(const char * name, uint32_t kernel);
headkv_pool_type headkv_rate_pool(const headkv_score_params & params);

// positions that are pooled into each score by the caller; 1 where the scores are made of pooled rows already
uint32_t headkv_rate_kernel(const headkv_score_params & params);

// is it computed from arrays on the host, so that layers may be rated at the same time?
bool headkv_rate_is_parallel(const headkv_score_params & params);

// what the armed tokens attended to, mean or maximum, [n_head][n_pos - n_obs] of layer i
std::vector<float> headkv_rate_attention(const headkv_store & store, uint32_t i, uint32_t n_obs);

// what the values of the first n positions do behind the output projection, [n_head_kv][n] of layer i
std::vector<float> headkv_rate_projected(const headkv_store & store, uint32_t i, size_t n);

// what the KV heads of layer i see together, [n_head_kv][n_embd_head_v]: the values of the n_top positions with the largest
// attention, each times this attention
std::vector<float> headkv_rate_semantics(const headkv_store & store, uint32_t i, uint32_t n_top);

// [n_head_kv][n_pos - n_obs] of layer i, not pooled
std::vector<float> headkv_rate_folded(const headkv_store & store, uint32_t i, const headkv_score_params & params);

// the same, pooled
std::vector<float> headkv_rate(const headkv_store & store, uint32_t i, const headkv_score_params & params);
