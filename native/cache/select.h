// cache/select.h: which positions every KV head keeps in the prefix: scores, pooled, voted on, and the best of them.
//
// All may throw headkv_error.

#pragma once

#include "headkv.h"
#include "core/plan.h"

#include <cstdint>
#include <vector>

struct headkv_store;

// ascending, [n_layer][n_head_kv][rows]
using headkv_positions_by_head = std::vector<std::vector<std::vector<int32_t>>>;

// what speaks against the parameters, whatever the plan says
void headkv_choose_check(const headkv_compress_params & params);

// without the observation window. The context is synchronized
headkv_positions_by_head headkv_choose(
        const headkv_store & store, const headkv_plan & plan, const headkv_compress_params & params);
