// score/expected.h: Expected Attention (https://arxiv.org/abs/2510.00636): what queries that are still to come will attend to.
//
// The queries of the prompt, before rotation, are taken as normal: mean and covariance. They are rotated by the mean rotation
// of the next positions, so that a key k is expected to get
//
//     softmax over the positions of   s k mean + s^2 k covariance k / 2       s: the scale of attention, 1/sqrt(n_embd_head)
//
// of their attention. The covariance is split, s^2/2 covariance = L^T L, so the second term is |L k|^2.

#pragma once

#include "ggml-backend.h"

#include <cstdint>
#include <vector>

// changes of a layer's queries before they meet the keys
struct headkv_rotation {
    int32_t       rope[16]   = {};      // parameters of the ROPE node
    ggml_tensor * factors    = nullptr; // of its frequencies, F32, or nullptr
    float         scale      = 1.0f;
    int64_t       n_hadamard = 1;       // elements that are mixed before quantised caches; 1: none
};

// sums over n_tokens queries of one layer, in which n_head query heads have n_embd_head elements each
struct headkv_moments {
    int64_t n_embd_head;
    int64_t n_head;
    int64_t n_tokens;
    std::vector<float> sums; // [n_head][n_embd_head + 1][n_embd_head]: q q^T, then q
};

struct headkv_expected {
    std::vector<float> linear;  // [n_head][n_embd_head]: s mean
    std::vector<float> chol_cov; // [n_head][n_embd_head][n_embd_head]: L
};

// the queries expected from position n_pos on; may throw headkv_error
headkv_expected headkv_expect(
        ggml_backend_t backend, const headkv_moments & moments, const headkv_rotation & rotation, int32_t n_pos, float logit_scale);

// logits: [n_head_kv][n_pos][n_gqa], norms of the values: [n_head_kv][n_pos] -> scores [n_head_kv][n_pos]
std::vector<float> headkv_expect_scores(const std::vector<float> & logits, const std::vector<float> & norms, int64_t n_head_kv);
