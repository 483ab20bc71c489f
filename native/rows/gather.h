// rows/gather.h: copies rows of a cache into hot rows. Raw bytes, so that a quantised cache is not quantised again.
//
// In main memory they are copied one by one. On a device a graph does it, and they never come to the host: both tensors are
// looked at as I32 words, which GET_ROWS copies as they are:
//
//     src    cache   [n_embd_gqa, n_cells]    as I32 [row_bytes/4, n_head_kv*n_cells]   row = cell*n_head_kv + kv head
//     dst    hot     [n_embd_head, n_rows]    as I32 [row_bytes/4, n_rows]

#pragma once

#include "ggml-backend.h"

#include <cstdint>
#include <string>
#include <vector>

// "" if rows of so many bytes can be gathered on a device, else why not
std::string headkv_gather_reason(size_t row_bytes);

struct headkv_gather {
    ggml_tensor * src;
    ggml_tensor * dst;
    size_t        row_bytes;
};

// dst row i = src row index[i], in host memory
void headkv_gather_host(const ggml_tensor * src, size_t row_bytes, const std::vector<int32_t> & index, char * dst);

// the same on the backend's device; throws headkv_error NO_MEMORY, COMPUTE
void headkv_gather_device(ggml_backend_t backend, const std::vector<headkv_gather> & pairs, const std::vector<int32_t> & index);
