#include "rows/hot.h"
#include "rows/gather.h"
#include "core/select.h"
#include "cache/store.h"
#include "cache/tail.h"

#include <algorithm>

void headkv_prefix_tensors(ggml_context * ctx, headkv_layer_store & layer, ggml_type type_k, ggml_type type_v) {
    const int64_t n_rows = std::max<int64_t>(1, layer.rows.n_rows()); // an empty tensor has no address

    layer.k    = ggml_new_tensor_2d(ctx, type_k, layer.shape.n_embd_head_k, n_rows);
    layer.v    = ggml_new_tensor_2d(ctx, type_v, layer.shape.n_embd_head_v, n_rows);
    layer.meta = ggml_new_tensor_1d(ctx, GGML_TYPE_I32, 2*layer.shape.n_head_kv);

    ggml_format_name(layer.k,    "headkv_k_l%u",    layer.shape.il);
    ggml_format_name(layer.v,    "headkv_v_l%u",    layer.shape.il);
    ggml_format_name(layer.meta, "headkv_meta_l%u", layer.shape.il);
}

// rows of a cache with n_head_kv of them in a cell, in the order of the prefix
static std::vector<int32_t> row_index(const headkv_layer_store & layer, const std::vector<uint32_t> & cell_of) {
    std::vector<int32_t> res;
    res.reserve(layer.rows.n_rows());
    for (uint32_t ih = 0; ih < layer.shape.n_head_kv; ++ih) {
        for (const int32_t p : layer.pos[ih]) {
            res.push_back(cell_of[p]*layer.shape.n_head_kv + ih);
        }
    }
    return res;
}

static void set_meta(const headkv_layer_store & layer) {
    std::vector<int32_t> meta(layer.rows.indptr.begin(), layer.rows.indptr.end() - 1);
    meta.insert(meta.end(), layer.rows.len.begin(), layer.rows.len.end());
    ggml_backend_tensor_set(layer.meta, meta.data(), 0, ggml_nbytes(layer.meta));
}

void headkv_prefix_fill(
        const headkv_store & store, const std::vector<headkv_layer_store> & fresh, const std::vector<uint32_t> & cell_of,
        uint32_t n_threads) {
    const auto pairs = [&](size_t i) -> std::vector<headkv_gather> {
        return {
            { headkv_access::k(store.kv, fresh[i].shape.il), fresh[i].k, fresh[i].shape.row_bytes_k },
            { headkv_access::v(store.kv, fresh[i].shape.il), fresh[i].v, fresh[i].shape.row_bytes_v },
        };
    };
    const auto is_host = [&](size_t i) { return ggml_backend_buffer_is_host(fresh[i].k->buffer); };

    headkv_parallel_for(fresh.size(), n_threads, [&](size_t i) {
        if (is_host(i)) {
            headkv_gather_host(pairs(i), row_index(fresh[i], cell_of));
        }
    });
    for (size_t i = 0; i < fresh.size(); ++i) {
        if (!is_host(i)) {
            headkv_gather_device(store.backend_of(fresh[i].k), pairs(i), row_index(fresh[i], cell_of));
        }
        set_meta(fresh[i]);
    }
}
