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

headkv_hot::headkv_hot(const headkv_plan & plan, const std::vector<headkv_layer_rows> & sources) :
    n_pos_hot(plan.n_pos_hot()), layers(sources.size()) {
    headkv_buffers fresh(3*layers.size());
    for (size_t i = 0; i < layers.size(); ++i) {
        layers[i].rows = plan.layers[i];
        make_tensors(fresh.ctx_on(sources[i].buft), layers[i], sources[i]);
    }
    buffers = fresh.alloc();
    for (const auto & layer : layers) {
        const auto & row_ptr = layer.rows.data();
        ggml_backend_tensor_set(layer.row_ptr, row_ptr.data(), 0, row_ptr.size()*sizeof(row_ptr[0]));
    }
}

// numbers of the source's rows, of one KV head or, as the hot rows have them, of all
static void add_rows(const headkv_rows & source, uint32_t ih, const std::vector<int32_t> & pos, std::vector<int32_t> & index) {
    for (const int32_t p : pos) {
        index.push_back(source.row(ih, p));
    }
}

// rows of all heads at pos, from host memory to host memory
static void fill_host(const headkv_rows & source, const headkv_row_ptr & rows, const std::vector<std::vector<int32_t>> & pos, char * dst, uint32_t n_threads) {
    headkv_parallel_for(pos.size(), n_threads, [&](size_t ih) {
        std::vector<int32_t> index;
        add_rows(source, ih, pos[ih], index);
        headkv_gather_host(source.tensor, source.row_bytes(), index, dst + rows.begin(ih)*source.row_bytes());
    });
}

static bool is_host(const ggml_tensor * t) { return ggml_backend_buffer_is_host(t->buffer); }

// from host memory, to wherever dst lies
static void fill_from_host(
        const headkv_rows & source, const headkv_row_ptr & rows, const std::vector<std::vector<int32_t>> & pos, ggml_tensor * dst, uint32_t n_threads) {
    if (is_host(dst)) {
        fill_host(source, rows, pos, (char *) dst->data, n_threads);
        return;
    }
    std::vector<char> bytes(rows.n_rows()*source.row_bytes());
    fill_host(source, rows, pos, bytes.data(), n_threads);
    ggml_backend_tensor_set(dst, bytes.data(), 0, bytes.size());
}

void headkv_hot::fill(size_t i, std::vector<std::vector<int32_t>> pos, const headkv_layer_rows & source, uint32_t n_threads) {
    headkv_hot_layer & layer = layers[i];
    if (is_host(source.k.tensor)) {
        fill_from_host(source.k, layer.rows, pos, layer.k, n_threads);
        fill_from_host(source.v, layer.rows, pos, layer.v, n_threads);
    } else {
        std::vector<int32_t> index;
        for (size_t ih = 0; ih < pos.size(); ++ih) {
            add_rows(source.k, ih, pos[ih], index);
        }
        headkv_gather_device(source.k.backend, {
            { source.k.tensor, layer.k, source.k.row_bytes() },
            { source.v.tensor, layer.v, source.v.row_bytes() },
        }, index);
    }
    layer.pos = std::move(pos);
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
