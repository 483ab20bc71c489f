#include "rows/graph.h"

#include "ggml.h"

// room for so many nodes and inputs
static constexpr size_t N_NODES = 64;

headkv_graph::headkv_graph(ggml_backend_t backend) :
    backend(backend),
    context(ggml_init({ N_NODES*ggml_tensor_overhead() + ggml_graph_overhead_custom(N_NODES, false), nullptr, /*.no_alloc =*/ true })) {}

ggml_tensor * headkv_graph::add_input(ggml_tensor * t, const void * data) {
    ggml_set_input(t);
    values.push_back({ t, data });
    return t;
}

ggml_tensor * headkv_graph::input(const std::vector<float> & values, int64_t ne0, int64_t ne1, int64_t ne2) {
    return add_input(ggml_new_tensor_3d(ctx(), GGML_TYPE_F32, ne0, ne1, ne2), values.data());
}

ggml_tensor * headkv_graph::input(const int32_t * values, int64_t n) {
    return add_input(ggml_new_tensor_1d(ctx(), GGML_TYPE_I32, n), values);
}

ggml_tensor * headkv_graph::rows(ggml_tensor * cache, const int32_t * cells, int64_t n, int64_t n_head_kv) {
    cache = ggml_view_2d(ctx(), cache, cache->ne[0], cache->ne[1], cache->nb[1], 0);

    ggml_tensor * res = ggml_get_rows(ctx(), cache, input(cells, n)); // F32 [n_embd_gqa, n]
    res = ggml_reshape_3d(ctx(), res, res->ne[0]/n_head_kv, n_head_kv, n);
    return ggml_cont(ctx(), ggml_permute(ctx(), res, 0, 2, 1, 3));
}

ggml_tensor * headkv_graph::rows_of_head(ggml_tensor * cache, const std::vector<int32_t> & cells, int64_t n_head_kv, int64_t ih) {
    std::vector<int32_t> index;
    index.reserve(cells.size());
    for (const int32_t cell : cells) {
        index.push_back(cell*n_head_kv + ih);
    }
    indices.push_back(std::move(index));

    const int64_t n_embd_head = cache->ne[0]/n_head_kv;
    cache = ggml_view_2d(ctx(), cache, n_embd_head, n_head_kv*cache->ne[1], ggml_row_size(cache->type, n_embd_head), 0);
    return ggml_get_rows(ctx(), cache, input(indices.back().data(), indices.back().size()));
}

// the backend would end the process
static void check_supported(ggml_backend_t backend, ggml_cgraph * graph) {
    for (int i = 0; i < ggml_graph_n_nodes(graph); ++i) {
        ggml_tensor * node = ggml_graph_node(graph, i);
        if (!ggml_backend_supports_op(backend, node)) {
            throw headkv_error { HEADKV_STATUS_UNSUPPORTED,
                std::string(ggml_backend_name(backend)) + " cannot compute " + ggml_op_desc(node) + ", which these scores need" };
        }
    }
}

std::vector<float> headkv_graph::compute(ggml_tensor * res) {
    ggml_set_output(res);
    ggml_cgraph * graph = ggml_new_graph_custom(ctx(), N_NODES, /*.grads =*/ false);
    ggml_build_forward_expand(graph, res);
    check_supported(backend, graph);

    ggml_gallocr_ptr alloc { ggml_gallocr_new(ggml_backend_get_default_buffer_type(backend)) };
    if (!ggml_gallocr_alloc_graph(alloc.get(), graph)) {
        throw headkv_error { HEADKV_STATUS_NO_MEMORY, "out of memory: rows could not be looked at" };
    }
    for (const auto & value : values) {
        ggml_backend_tensor_set(value.tensor, value.data, 0, ggml_nbytes(value.tensor));
    }
    if (ggml_backend_graph_compute(backend, graph) != GGML_STATUS_SUCCESS) {
        throw headkv_error { HEADKV_STATUS_COMPUTE, std::string("rows could not be looked at on ") + ggml_backend_name(backend) };
    }

    std::vector<float> out(ggml_nelements(res));
    ggml_backend_tensor_get(res, out.data(), 0, ggml_nbytes(res));
    return out;
}
