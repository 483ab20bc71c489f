#include "rows/hot.h"
#include "core/parallel.h"
#include "rows/gather.h"

#include <algorithm>

static void make_tensors(ggml_context * ctx, headkv_hot_layer & layer, const headkv_layer_rows & source) {
    const int64_t n_rows = std::max<int64_t>(1, layer.rows.n_rows()); // an empty tensor has no address

    layer.k       = ggml_new_tensor_2d(ctx, source.k.tensor->type, source.k.n_embd_head(), n_rows);
    layer.v       = ggml_new_tensor_2d(ctx, source.v.tensor->type, source.v.n_embd_head(), n_rows);
    layer.row_ptr = ggml_new_tensor_1d(ctx, GGML_TYPE_I32, layer.rows.data().size());

    ggml_format_name(layer.k,       "headkv_k_l%u",       source.il);
    ggml_format_name(layer.v,       "headkv_v_l%u",       source.il);
    ggml_format_name(layer.row_ptr, "headkv_row_ptr_l%u", source.il);
}

// rows of the source in the order of the hot rows
static std::vector<int32_t> row_index(const headkv_hot_layer & layer, const headkv_rows & source) {
    std::vector<int32_t> res;
    res.reserve(layer.rows.n_rows());
    for (uint32_t ih = 0; ih < layer.rows.n_head_kv(); ++ih) {
        for (const int32_t p : layer.pos[ih]) {
            res.push_back(source.row(ih, p));
        }
    }
    return res;
}

headkv_hot::headkv_hot(
        const headkv_plan & plan, headkv_kept_positions pos, const std::vector<headkv_layer_rows> & sources, uint32_t n_threads) :
    n_pos_hot(plan.n_pos_hot()), layers(sources.size()) {
    headkv_buffers fresh(3*layers.size());
    for (size_t i = 0; i < layers.size(); ++i) {
        layers[i].rows = plan.layers[i];
        layers[i].pos  = std::move(pos[i]);
        make_tensors(fresh.ctx_beside(sources[i].k.tensor), layers[i], sources[i]);
    }
    buffers = fresh.alloc();

    const auto pairs = [&](size_t i) -> std::vector<headkv_gather> {
        const headkv_layer_rows & source = sources[i];
        return {
            { source.k.tensor, layers[i].k, source.k.row_bytes() },
            { source.v.tensor, layers[i].v, source.v.row_bytes() },
        };
    };
    const auto is_host = [&](size_t i) { return ggml_backend_buffer_is_host(layers[i].k->buffer); };

    headkv_parallel_for(layers.size(), n_threads, [&](size_t i) {
        if (is_host(i)) {
            headkv_gather_host(pairs(i), row_index(layers[i], sources[i].k));
        }
    });
    for (size_t i = 0; i < layers.size(); ++i) {
        if (!is_host(i)) {
            headkv_gather_device(sources[i].k.backend, pairs(i), row_index(layers[i], sources[i].k));
        }
        const auto & row_ptr = layers[i].rows.data();
        ggml_backend_tensor_set(layers[i].row_ptr, row_ptr.data(), 0, row_ptr.size()*sizeof(row_ptr[0]));
    }
}

uint64_t headkv_hot::n_rows() const {
    uint64_t res = 0;
    for (const auto & layer : layers) {
        res += layer.rows.n_rows();
    }
    return res;
}

void headkv_hot::add_memory(std::map<ggml_backend_buffer_type_t, size_t> & sizes) const {
    for (const auto & buffer : buffers) {
        sizes[ggml_backend_buffer_get_type(buffer.buf.get())] += buffer.size();
    }
}
