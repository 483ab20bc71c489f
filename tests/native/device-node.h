// device-node.h: attention nodes with and without hot rows in the memory of any backend's device. For the test and the benchmark of
// kernels that run on one.

#pragma once

#include "attend/node.h"

#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "ggml.h"

#include <cstdio>
#include <cstdlib>
#include <string>

// the device by name, or the first GPU for "GPU"; null if there is none
static ggml_backend_t open_device(const char * name) {
    ggml_backend_load_all();
    ggml_backend_dev_t dev = ggml_backend_dev_by_name(name);
    if (!dev && std::string(name) == "GPU") {
        dev = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_GPU);
    }
    return dev ? ggml_backend_dev_init(dev, nullptr) : nullptr;
}

struct node_shape {
    ggml_type type_k, type_v;
    int64_t   n_k, n_v, n_head_kv, group, n_tok;
    int64_t   n_kv;   // tail cells
    int64_t   n_rows; // hot rows; 0: stock attention
    bool      has_mask, has_sinks;
    float     scale, softcap;
};

// one attention node; all its tensors are allocated, and zero
class device_node {
public:
    device_node(ggml_backend_t backend, const node_shape & s) : backend(backend) {
        ctx.reset(ggml_init({ 32*ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, /*.no_alloc =*/ true }));
        ggml_context * c = ctx.get();

        q     = ggml_new_tensor_3d(c, GGML_TYPE_F32, s.n_k, s.n_head_kv*s.group, s.n_tok);
        k     = ggml_new_tensor_3d(c, s.type_k, s.n_k, s.n_head_kv, s.n_kv);
        v     = ggml_new_tensor_3d(c, s.type_v, s.n_v, s.n_head_kv, s.n_kv);
        mask  = s.has_mask  ? ggml_new_tensor_2d(c, GGML_TYPE_F16, s.n_kv, s.n_tok)            : nullptr;
        sinks = s.has_sinks ? ggml_new_tensor_1d(c, GGML_TYPE_F32, s.n_head_kv*s.group)        : nullptr;

        node = ggml_flash_attn_ext(c, ggml_permute(c, q, 0, 2, 1, 3), ggml_permute(c, k, 0, 2, 1, 3), ggml_permute(c, v, 0, 2, 1, 3),
            mask, s.scale, 0.0f, s.softcap);
        ggml_flash_attn_ext_add_sinks(node, sinks);
        ggml_prec_set_acc(node, GGML_PREC_F32);
        if (s.n_rows > 0) {
            k_hot   = node->src[HEADKV_SRC_K_HOT]   = ggml_new_tensor_2d(c, s.type_k, s.n_k, s.n_rows);
            v_hot   = node->src[HEADKV_SRC_V_HOT]   = ggml_new_tensor_2d(c, s.type_v, s.n_v, s.n_rows);
            row_ptr = node->src[HEADKV_SRC_ROW_PTR] = ggml_new_tensor_1d(c, GGML_TYPE_I32, s.n_head_kv + 1);
        }
        is_supported = ggml_backend_supports_op(backend, node);
        buf.reset(ggml_backend_alloc_ctx_tensors(c, backend));
        if (!buf) {
            fprintf(stderr, "out of device memory\n");
            exit(2);
        }
        ggml_backend_buffer_clear(buf.get(), 0);
        graph = ggml_new_graph(c);
        ggml_build_forward_expand(graph, node);
    }

    // the backend's stream has it when this returns; ggml_backend_synchronize() waits for it
    void compute() {
        if (ggml_backend_graph_compute_async(backend, graph) != GGML_STATUS_SUCCESS) {
            fprintf(stderr, "the node could not be computed\n");
            exit(2);
        }
    }

    static void set(ggml_tensor * t, const void * data, size_t bytes) { ggml_backend_tensor_set(t, data, 0, bytes); }

    ggml_tensor * q, * k, * v, * mask, * sinks, * node;
    ggml_tensor * k_hot = nullptr, * v_hot = nullptr, * row_ptr = nullptr;

    bool is_supported;

private:
    ggml_backend_t          backend;
    ggml_context_ptr        ctx;
    ggml_backend_buffer_ptr buf;
    ggml_cgraph *           graph;
};
