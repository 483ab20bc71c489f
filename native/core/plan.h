// core/plan.h: how many rows each KV head keeps, checked and summed up. Integers only, no llama.cpp.
//
// The observation window, the last n_obs positions, stays in the tail. Of the positions before it every KV head has hot rows of
// the protected ones (sinks and spans), and of as many evictable ones as its number of rows allows.

#pragma once

#include "core/row_ptr.h"

#include <cstddef>
#include <cstdint>
#include <vector>

// positions [first, end)
struct headkv_span {
    uint32_t first;
    uint32_t end;
};

struct headkv_plan {
    uint32_t n_pos  = 0; // positions seen
    uint32_t n_obs  = 0; // of them, the last n_obs stay in the tail
    uint32_t n_sink = 0; // first positions, kept by every head

    std::vector<headkv_span> spans; // protected: sinks and what was asked for. Not empty, ascending, apart

    std::vector<headkv_row_ptr> layers; // hot rows

    uint32_t n_pos_hot()   const { return n_pos - n_obs; }
    uint32_t n_protected() const;
};

// ingredients of a plan
struct headkv_plan_request {
    uint32_t n_pos;
    uint32_t n_obs;
    uint32_t n_sink;

    const uint32_t * n_rows; // [n_rows_size] of each KV head, protected ones and the window included
    uint32_t         n_rows_size;
    const uint32_t * spans;  // [2*n_spans] first, end: behind the sinks, before the window, ascending, apart
    uint32_t         n_spans;
};

// n_head_kv: [n_layer]. Throws headkv_error INVALID_ARGUMENT when a number is out of range
headkv_plan headkv_plan_make(const headkv_plan_request & request, const std::vector<uint32_t> & n_head_kv);

// the same for rows chosen elsewhere: n_kept: [sum of n_head_kv] hot rows, pos: their positions, head after head, strictly
// ascending and below n_pos - n_obs
headkv_plan headkv_plan_make_explicit(
        uint32_t n_pos, uint32_t n_obs,
        const std::vector<uint32_t> & n_head_kv, const uint32_t * n_kept, uint32_t n_kept_size,
        const int32_t * pos, size_t pos_size);
