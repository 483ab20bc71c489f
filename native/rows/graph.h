// rows/graph.h: a small graph that is made, computed once on one backend, and read. For what is computed from the rows of a
// cache where they lie; the caller takes a piece of the positions at a time, so that no copy of the cache exists.

#pragma once

#include "rows/buffer.h"
#include "rows/source.h"

#include "ggml-alloc.h"
#include "ggml-backend.h"

#include <cstdint>
#include <vector>

class headkv_graph {
public:
    explicit headkv_graph(ggml_backend_t backend);

    ggml_context * ctx() const { return context.get(); }

    // values that are put in before the graph is computed; they must live until then. F32 [ne0, ne1, ne2]
    ggml_tensor * input(const std::vector<float> & values, int64_t ne0, int64_t ne1, int64_t ne2);
    // I32 [n]
    ggml_tensor * input(const int32_t * values, int64_t n);

    // rows of the positions [first, first + n) as numbers, F32 [n_embd_head, n, n_head_kv]; source must live until they are computed
    ggml_tensor * rows(const headkv_rows & source, int64_t first, int64_t n);

    // those of one KV head at some positions, F32 [n_embd_head, number of positions]
    ggml_tensor * rows_of_head(const headkv_rows & source, const std::vector<int32_t> & pos, uint32_t ih);

    // the elements of res, F32; throws headkv_error NO_MEMORY, UNSUPPORTED, COMPUTE. To be called once
    std::vector<float> compute(ggml_tensor * res);

private:
    struct value {
        ggml_tensor * tensor;
        const void  * data;
    };

    ggml_tensor * add_input(ggml_tensor * t, const void * data);

    ggml_backend_t     backend;
    ggml_context_ptr   context;
    std::vector<value> values;

    std::vector<std::vector<int32_t>> indices; // that were made here
};
