// score/view.h: what scorers see of a cache: its rows by position, the shapes of its layers, and what was observed.

#pragma once

#include "headkv.h"
#include "rows/hot.h"
#include "score/observation.h"

#include <cstdint>
#include <functional>
#include <vector>

struct headkv_layer_view {
    headkv_layer      shape;
    headkv_layer_rows rows; // of all positions
    ggml_tensor     * wo;   // output projection, [n_embd_head_v*n_head, n_embd], or nullptr
};

struct headkv_view {
    uint32_t n_pos;

    std::vector<headkv_layer_view> layers;

    // the orthogonal matrix that mixes the elements of values before they are quantised, [n][n], its own inverse; empty: none
    std::vector<float> hadamard_v;

    const headkv_observation & observation;

    // to be called before something of layer i is read: what was observed, and its rows if is_rows. May be empty
    std::function<void(size_t i, bool is_rows)> prefetch;

    // to be called when all that is needed of layer i was read: its rows need not stay in memory. May be empty
    std::function<void(size_t i)> give_back;
};
