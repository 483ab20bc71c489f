// core/plan.h: how many rows each KV head keeps, checked and summed up. Integers only, no llama.cpp.
//
// One layer's prefix is one array of rows, packed head after head:
//
//     n_head_kv = 3, len = {2, 0, 3}:   indptr = {0, 2, 2, 5}
//
//     row      0    1    2    3    4
//              |head 0 |  head 2    |      head 1 keeps nothing in the prefix
//
// Used by cache/store (allocation, gather) and core/select. The observation window is not part of the prefix.

#pragma once

#include <cstdint>
#include <string>
#include <vector>

// rows of one layer's prefix
struct headkv_layer_rows {
    std::vector<uint32_t> len;    // [n_head_kv]
    std::vector<uint32_t> indptr; // [n_head_kv + 1], indptr[0] == 0

    explicit headkv_layer_rows(std::vector<uint32_t> len);

    uint32_t n_head_kv() const { return (uint32_t) len.size(); }
    uint32_t n_rows()    const { return indptr.back(); }
    uint32_t max_len()   const;
};

// positions [first, end)
struct headkv_span {
    uint32_t first;
    uint32_t end;
};

struct headkv_plan {
    uint32_t n_pos  = 0; // positions seen
    uint32_t n_obs  = 0; // of them, the last n_obs stay in the tail
    uint32_t n_sink = 0; // first positions, kept by every head

    std::vector<headkv_span> always; // sinks and protected spans, kept by every head: not empty, ascending, apart

    std::vector<headkv_layer_rows> layers;

    uint32_t n_pos_prefix() const { return n_pos - n_obs; }
    uint32_t n_always()     const;
};

// what a plan is made of
struct headkv_plan_request {
    uint32_t n_pos;
    uint32_t n_obs;
    uint32_t n_sink;

    const uint32_t * n_rows; // [n_rows_size] of each KV head, all that is always kept included
    uint32_t         n_rows_size;
    const uint32_t * spans;  // [2*n_spans] first, end: behind the sinks, before the window, ascending, apart
    uint32_t         n_spans;
};

// n_head_kv: [n_layer]. Returns false and sets error when a number is out of range; plan is left alone then.
bool headkv_plan_make(
        const headkv_plan_request & request, const std::vector<uint32_t> & n_head_kv, headkv_plan & plan, std::string & error);

// the same for rows chosen elsewhere: n_kept: [sum of n_head_kv] prefix rows, pos: their positions, head after head,
// strictly ascending and below n_pos - n_obs
bool headkv_plan_make_explicit(
        uint32_t n_pos, uint32_t n_obs,
        const std::vector<uint32_t> & n_head_kv, const uint32_t * n_kept, uint32_t n_kept_size,
        const int32_t * pos, size_t pos_size,
        headkv_plan & plan, std::string & error);
