// headkv-rate.h: the scores of a layer: how much each position before the window is worth to each KV head.
//
//     attention   what the armed tokens attended to, folded over the query heads       SnapKV, H2O, TOVA
//     position    the later the better                                                 StreamingLLM
//     knorm       short keys                                                           Knorm
//     keydiff     keys unlike the others of their head                                 KeyDiff
//     expected    what queries to come are expected to attend to, times |value|        Expected Attention
//
// All may throw headkv_error.

#pragma once

#include "headkv.h"
#include "headkv-select.h"

#include <cstdint>
#include <vector>

struct headkv_store;

void             headkv_rate_check(const headkv_score_params & params);
void             headkv_rate_check_kernel(const char * name, uint32_t kernel);
headkv_pool_type headkv_rate_pool(const headkv_score_params & params);

// is it computed from arrays on the host, so that layers may be rated at the same time?
bool headkv_rate_is_parallel(const headkv_score_params & params);

// what the armed tokens attended to, mean or maximum, [n_head][n_pos - n_obs] of layer i
std::vector<float> headkv_rate_attention(const headkv_store & store, uint32_t i, uint32_t n_obs);

// [n_head_kv][n_pos - n_obs] of layer i, not pooled
std::vector<float> headkv_rate_folded(const headkv_store & store, uint32_t i, const headkv_score_params & params);

// the same, pooled
std::vector<float> headkv_rate(const headkv_store & store, uint32_t i, const headkv_score_params & params);
