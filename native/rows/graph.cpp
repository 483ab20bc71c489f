#include "rows/graph.h"
#include "core/error.h"

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

ggml_tensor * headkv_graph::rows(const headkv_rows & source, int64_t first, int64_t n) {
    ggml_tensor * all = ggml_view_2d(ctx(), source.tensor, source.tensor->ne[0], source.tensor->ne[1], source.tensor->nb[1], 0);

    ggml_tensor * res = ggml_get_rows(ctx(), all, input(source.cells() + first, n)); // F32 [n_embd_gqa, n]
    res = ggml_reshape_3d(ctx(), res, source.n_embd_head(), source.n_head_kv, n);
    return ggml_cont(ctx(), ggml_permute(ctx(), res, 0, 2, 1, 3));
}

ggml_tensor * headkv_graph::rows_of_head(const headkv_rows & source, const std::vector<int32_t> & pos, uint32_t ih) {
    std::vector<int32_t> index;
    index.reserve(pos.size());
    for (const int32_t p : pos) {
        index.push_back(source.row(ih, p));
    }
    indices.push_back(std::move(index));

    ggml_tensor * all = ggml_view_2d(ctx(), source.tensor, source.n_embd_head(), source.n_head_kv*source.tensor->ne[1], source.row_bytes(), 0);
    return ggml_get_rows(ctx(), all, input(indices.back().data(), indices.back().size()));
}

// the backend would end the process
static void check_supported(ggml_backend_t backend, ggml_cgraph * graph) {
    for (int i = 0; i < ggml_graph_n_nodes(graph); ++i) {
        ggml_tensor * node = ggml_graph_node(graph, i);
        if (!ggml_backend_supports_op(backend, node)) {
            headkv_fail(HEADKV_STATUS_UNSUPPORTED,
                "%s cannot compute %s, which these scores need", ggml_backend_name(backend), ggml_op_desc(node));
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
        headkv_fail(HEADKV_STATUS_NO_MEMORY, "out of memory: rows could not be looked at");
    }
    for (const auto & value : values) {
        ggml_backend_tensor_set(value.tensor, value.data, 0, ggml_nbytes(value.tensor));
    }
    if (ggml_backend_graph_compute(backend, graph) != GGML_STATUS_SUCCESS) {
        headkv_fail(HEADKV_STATUS_COMPUTE, "rows could not be looked at on %s", ggml_backend_name(backend));
    }

    std::vector<float> out(ggml_nelements(res));
    ggml_backend_tensor_get(res, out.data(), 0, ggml_nbytes(res));
    return out;
}
