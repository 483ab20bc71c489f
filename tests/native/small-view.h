// small-view.h: a cache of two layers with a few positions in host memory, as scorers and the selection see it.

#pragma once

#include "held-tensor.h"
#include "score/view.h"

#include <algorithm>
#include <memory>
#include <random>
#include <vector>

struct small_view {
    static constexpr uint32_t N_LAYER   = 2;
    static constexpr uint32_t N_HEAD    = 4;
    static constexpr uint32_t N_HEAD_KV = 2;
    static constexpr uint32_t D         = 8;
    static constexpr uint32_t N_POS     = 6;
    static constexpr uint32_t N_CELLS   = 8; // some are not in use

    ggml_backend_t backend = ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, nullptr);

    std::vector<std::unique_ptr<held_tensor>> k, v;
    std::vector<int32_t> cells = { 5, 0, 7, 2, 1, 3 }; // positions lie anywhere

    headkv_observation observation;

    small_view() {
        std::mt19937 rng(11);
        std::normal_distribution<float> normal;
        for (uint32_t i = 0; i < N_LAYER; ++i) {
            for (auto * all : { &k, &v }) {
                all->push_back(std::make_unique<held_tensor>(GGML_TYPE_F32, D*N_HEAD_KV, N_CELLS));
                std::generate_n(all->back()->data<float>(), D*N_HEAD_KV*N_CELLS, [&] { return normal(rng); });
            }
        }
    }

    ~small_view() { ggml_backend_free(backend); }

    static headkv_layer shape(uint32_t i) { return { 10 + i, N_HEAD, N_HEAD_KV, D, D, D*4, D*4 }; }

    const float * row(const held_tensor & t, uint32_t ih, uint32_t p) const { return t.data<float>() + (cells[p]*N_HEAD_KV + ih)*D; }

    headkv_layer_rows rows(uint32_t i) const {
        const auto all = std::make_shared<const std::vector<int32_t>>(cells);
        return { 10 + i, headkv_rows(backend, k[i]->t, N_HEAD_KV, all), headkv_rows(backend, v[i]->t, N_HEAD_KV, all), ggml_backend_cpu_buffer_type() };
    }

    headkv_view view() const {
        headkv_view res { N_POS, {}, {}, observation, {} };
        for (uint32_t i = 0; i < N_LAYER; ++i) {
            res.layers.push_back({ shape(i), rows(i), nullptr });
        }
        return res;
    }

    static std::vector<headkv_observed> observed() {
        return { { shape(0), N_CELLS, ggml_backend_cpu_buffer_type() }, { shape(1), N_CELLS, ggml_backend_cpu_buffer_type() } };
    }

    void observe(uint32_t n_tokens, headkv_observe_what what) {
        observation.stop();
        observation.start({ (int32_t) (N_POS - n_tokens), n_tokens }, what, observed(), {});
        observation.see((int32_t) (N_POS - n_tokens), n_tokens);
    }
};
