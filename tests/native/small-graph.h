// small-graph.h: graphs as models build them, by hand and without a model: layers that write rows into a cache and attend to them.
// Every tensor has memory of its own, so that what a part of the graph leaves out, or takes from elsewhere, is seen.

#pragma once

#include "cache/cut.h"

#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "ggml-cpu.h"
#include "ggml.h"

#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

struct small_graph {
    static constexpr int64_t D       = 8;
    static constexpr int64_t N_TOK   = 3;
    static constexpr int64_t N_CELLS = 5;

    ggml_backend_ptr backend { ggml_backend_cpu_init() };
    ggml_context_ptr ctx     { ggml_init({ 2048*ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, /*.no_alloc =*/ true }) };
    ggml_context *   c     = ctx.get();
    ggml_cgraph *    graph = ggml_new_graph(c);

    std::vector<headkv_cut_layer> layers;

    ggml_tensor * tokens = input(ggml_new_tensor_1d(c, GGML_TYPE_I32, N_TOK), "tokens");
    ggml_tensor * cells  = input(ggml_new_tensor_1d(c, GGML_TYPE_I64, N_TOK), "cells");
    ggml_tensor * seen   = input(ggml_new_tensor_2d(c, GGML_TYPE_F32, N_CELLS, N_TOK), "seen");

    // made of inputs and weights alone
    ggml_tensor * embd = named(ggml_get_rows(c, weight(), tokens), "embd");
    ggml_tensor * mask = named(ggml_cast(c, ggml_scale(c, seen, 2.0f), GGML_TYPE_F32), "mask");

    small_graph() { ggml_backend_cpu_set_n_threads(backend.get(), 1); }

    static ggml_tensor * named(ggml_tensor * t, const std::string & name) { return ggml_set_name(t, name.c_str()); }

    static ggml_tensor * input(ggml_tensor * t, const char * name) {
        ggml_set_input(t);
        return named(t, name);
    }

    ggml_tensor * weight() { return ggml_new_tensor_2d(c, GGML_TYPE_F32, D, D); }

    ggml_tensor * linear(ggml_tensor * x) { return ggml_mul_mat(c, weight(), x); } // [D, N_TOK]

    void write(ggml_tensor * cache, ggml_tensor * rows) { expand(ggml_set_rows(c, cache, rows, cells)); }

    void expand(ggml_tensor * t) { ggml_build_forward_expand(graph, t); }

    // attention over the rows of layer i of the cache
    ggml_tensor * attend(size_t i, ggml_tensor * x) {
        const auto view = [&](const ggml_tensor * t) { return ggml_view_2d(c, const_cast<ggml_tensor *>(t), D, N_CELLS, t->nb[1], 0); };
        ggml_tensor * logits = ggml_add(c, ggml_mul_mat(c, view(layers[i].k), linear(x)), mask); // [N_CELLS, N_TOK]
        ggml_tensor * v      = ggml_cont(c, ggml_transpose(c, view(layers[i].v ? layers[i].v : layers[i].k)));
        return linear(ggml_mul_mat(c, v, ggml_soft_max(c, logits)));
    }

    // rows of x in a new layer of the cache, and attention over them
    ggml_tensor * attention(ggml_tensor * x, bool has_v = true) {
        ggml_tensor * k = ggml_new_tensor_2d(c, GGML_TYPE_F32, D, N_CELLS);
        ggml_tensor * v = has_v ? ggml_new_tensor_2d(c, GGML_TYPE_F32, D, N_CELLS) : nullptr;
        layers.push_back({ k, v });
        write(k, linear(x));
        if (v) {
            write(v, linear(x));
        }
        return attend(layers.size() - 1, x);
    }

    ggml_tensor * mlp(ggml_tensor * x) { return linear(ggml_silu(c, linear(x))); }

    ggml_tensor * norm(ggml_tensor * x) { return ggml_rms_norm(c, x, 1e-5f); }

    ggml_tensor * out_name(ggml_tensor * x) { return named(x, "out-" + std::to_string(layers.size() - 1)); }

    // a layer as most models have it
    ggml_tensor * layer(ggml_tensor * x, bool has_v = true) {
        x = ggml_add(c, x, attention(norm(x), has_v));
        return out_name(ggml_add(c, x, mlp(norm(x))));
    }

    //
    // computing
    //

    // gives all tensors memory, and inputs, weights and caches their numbers
    void alloc(uint32_t seed = 1) {
        buffer.reset(ggml_backend_alloc_ctx_tensors(c, backend.get()));
        for (int j = 0; j < ggml_graph_n_nodes(graph); ++j) {
            if (ggml_tensor * t = ggml_graph_node(graph, j); !t->view_src) {
                computed.push_back(t);
            }
        }
        std::mt19937 rng(seed);
        std::normal_distribution<float> normal(0.0f, 0.5f);
        for (ggml_tensor * t = ggml_get_first_tensor(c); t; t = ggml_get_next_tensor(c, t)) {
            if (t->op != GGML_OP_NONE || t->view_src) {
                continue;
            }
            for (int64_t i = 0; i < ggml_nelements(t); ++i) {
                if (t == tokens) {
                    ((int32_t *) t->data)[i] = (int32_t) i + 2;
                } else if (t == cells) {
                    ((int64_t *) t->data)[i] = (2*i + 1) % N_CELLS; // cells lie anywhere
                } else {
                    ((float *) t->data)[i] = normal(rng);
                }
            }
        }
    }

    // nothing that was computed can be read any more, keep excepted
    void forget(const ggml_tensor * keep) const {
        for (ggml_tensor * t : computed) {
            if (t != keep) {
                memset(t->data, 0xff, ggml_nbytes(t)); // NaN
            }
        }
    }

    void compute(ggml_cgraph * g) const { ggml_backend_graph_compute(backend.get(), g); }

    std::vector<std::vector<uint8_t>> caches() const {
        std::vector<std::vector<uint8_t>> res;
        for (const auto & layer : layers) {
            for (const ggml_tensor * t : { layer.k, layer.v }) {
                if (t) {
                    res.push_back(bytes(t));
                }
            }
        }
        return res;
    }

    void set_caches(const std::vector<std::vector<uint8_t>> & values) const {
        size_t n = 0;
        for (const auto & layer : layers) {
            for (const ggml_tensor * t : { layer.k, layer.v }) {
                if (t) {
                    memcpy(t->data, values[n].data(), values[n].size());
                    n++;
                }
            }
        }
    }

    static std::vector<uint8_t> bytes(const ggml_tensor * t) { return { (uint8_t *) t->data, (uint8_t *) t->data + ggml_nbytes(t) }; }

private:
    ggml_backend_buffer_ptr    buffer;
    std::vector<ggml_tensor *> computed; // with memory of their own
};
