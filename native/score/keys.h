// score/keys.h: statistics of the cached rows of a layer: scores without any attention, and attention of queries that were kept.
// One layer at a time, in pieces of its positions or one KV head after the other, on the backend where the layer's cache lies.
//
// Upstream turns the vectors of quantised caches by an orthogonal matrix: neither lengths nor angles change.

#pragma once

#include "rows/source.h"
#include "score/softmax.h"

#include <cstdint>
#include <vector>

// length of each row, [n_head_kv][n_pos]
std::vector<float> headkv_keys_norm(const headkv_rows & rows);

// cosine between each key and the mean direction of its head's keys, [n_head_kv][n_pos]. Keys of length 0 have no direction
std::vector<float> headkv_keys_cosine_to_mean(const headkv_rows & rows);

// attention of the last n_obs positions' queries, of KV head ih, [n_gqa][n_obs][n_pos].
// queries: [n_obs][n_head][n_embd_head], as the keys are: rotated, and mixed where the cache is
std::vector<float> headkv_keys_attention(
        const headkv_rows & rows, int64_t ih, const std::vector<float> & queries, int64_t n_obs, const headkv_logits & logits);

// size of each value behind the output projection: length of W_o v, mean over the group, [n_head_kv][n_pos]. The length and not
// the sum of the absolute elements, as the papers have it: v (W_o^T W_o) v takes a small part of the work of W_o v.
// rows: of V; wo: any type [n_embd_head*n_head, n_embd]; hadamard: [n][n] what mixes the elements of cached values, its own
// inverse, or empty
std::vector<float> headkv_keys_projected(
        const headkv_rows & rows, ggml_tensor * wo, int64_t n_gqa, const std::vector<float> & hadamard);

// logits that queries with a normal distribution are expected to have with each key: the logarithm of the mean of exp(q k) is
// k m + |L k|^2, with
// linear   m: [n_head_kv][n_gqa][n_embd_head]
// chol_cov L: [n_head_kv][n_gqa][n_embd_head][n_embd_head]
// -> [n_head_kv][n_pos][n_gqa]
std::vector<float> headkv_keys_logits(
        const headkv_rows & rows, int64_t n_gqa, const std::vector<float> & linear, const std::vector<float> & chol_cov);
