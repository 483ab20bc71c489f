// headkv-keys.h: scores that the cached rows tell by themselves, without any attention. One layer at a time, in pieces of its
// positions, on the backend where the layer's cache lies.
//
// Upstream turns the vectors of quantised caches by an orthogonal matrix: neither lengths nor angles change.

#pragma once

#include "ggml-backend.h"

#include <cstdint>
#include <vector>

// rows of one layer's cache
struct headkv_rows {
    ggml_backend_t backend;
    ggml_tensor  * cache;                 // K or V, cache type [n_embd_gqa, n_cells]
    int64_t        n_head_kv;
    const std::vector<int32_t> & cells;   // of all positions, in their order
};

// length of each row, [n_head_kv][n_pos]
std::vector<float> headkv_keys_norm(const headkv_rows & rows);

// cosine between each key and the mean direction of its head's keys, [n_head_kv][n_pos]. Keys of length 0 have no direction
std::vector<float> headkv_keys_likeness(const headkv_rows & rows);

// what queries with a normal distribution expect of each key: the logarithm of the mean of exp(q k) is k m + |L k|^2, with
// linear  m: [n_head_kv][n_gqa][n_embd_head]
// squared L: [n_head_kv][n_gqa][n_embd_head][n_embd_head]
// -> [n_head_kv][n_pos][n_gqa]
std::vector<float> headkv_keys_logits(
        const headkv_rows & rows, int64_t n_gqa, const std::vector<float> & linear, const std::vector<float> & squared);
