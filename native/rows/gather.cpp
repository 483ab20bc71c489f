#include "rows/gather.h"
#include "core/error.h"
#include "rows/buffer.h"

#include "ggml.h"

#include <cstring>

static constexpr size_t WORD = sizeof(int32_t);

std::string headkv_gather_reason(size_t row_bytes) {
    if (row_bytes % WORD != 0) {
        return "rows of " + std::to_string(row_bytes) + " bytes are no multiple of 4: take another cache type";
    }
    return "";
}

void headkv_gather_host(const ggml_tensor * src, size_t row_bytes, const std::vector<int32_t> & index, char * dst) {
    const char * rows = (const char *) src->data;
    for (const int32_t i : index) {
        memcpy(dst, rows + i*row_bytes, row_bytes);
        dst += row_bytes;
    }
}

// the first n rows of t, as words at the same place
static ggml_tensor * alias(ggml_context * ctx, ggml_tensor * t, size_t row_bytes, int64_t n) {
    ggml_tensor * words = ggml_new_tensor_2d(ctx, GGML_TYPE_I32, row_bytes/WORD, n);
    ggml_backend_tensor_alloc(t->buffer, words, t->data);
    return words;
}

void headkv_gather_device(ggml_backend_t backend, const std::vector<headkv_gather> & pairs, const std::vector<int32_t> & index) {
    if (index.empty()) {
        return;
    }
    const auto buft = ggml_backend_buffer_get_type(pairs[0].dst->buffer);

    headkv_buffer rows { ggml_context_ptr(ggml_init({ ggml_tensor_overhead(), nullptr, /*.no_alloc =*/ true })), nullptr };
    ggml_tensor * idx = ggml_new_tensor_1d(rows.ctx.get(), GGML_TYPE_I32, index.size());
    rows.buf = headkv_alloc(rows.ctx.get(), buft);
    ggml_backend_tensor_set(idx, index.data(), 0, ggml_nbytes(idx));

    ggml_context_ptr ctx { ggml_init({ 2*pairs.size()*ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, /*.no_alloc =*/ true }) };
    ggml_cgraph * graph = ggml_new_graph(ctx.get());
    for (const auto & pair : pairs) {
        ggml_tensor * src = alias(ctx.get(), pair.src, pair.row_bytes, ggml_nbytes(pair.src)/pair.row_bytes);
        ggml_tensor * dst = ggml_get_rows(ctx.get(), src, idx); // I32, written to the hot rows themselves
        ggml_backend_tensor_alloc(pair.dst->buffer, dst, pair.dst->data);
        ggml_build_forward_expand(graph, dst);
    }
    if (ggml_backend_graph_compute(backend, graph) != GGML_STATUS_SUCCESS) {
        headkv_fail(HEADKV_STATUS_COMPUTE, "rows could not be gathered on %s", ggml_backend_name(backend));
    }
}
