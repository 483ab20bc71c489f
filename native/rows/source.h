// rows/source.h: where rows come from: K or V of one layer by position, as scores are computed from them and as they are gathered.
//
// The tensor lies as upstream's cache has it, [n_embd_gqa, n_cells]: looked at as [n_embd_head, n_head_kv*n_cells], the row of
// position p of KV head ih is cell(p)*n_head_kv + ih.

#pragma once

#include "ggml-backend.h"
#include "ggml.h"

#include <cstdint>
#include <memory>
#include <vector>

class headkv_rows {
public:
    // cells: of all positions, in their order. backend: works where the tensor lies
    headkv_rows(
            ggml_backend_t backend, ggml_tensor * tensor, int64_t n_head_kv, std::shared_ptr<const std::vector<int32_t>> cells) :
        backend(backend), tensor(tensor), n_head_kv(n_head_kv), n_pos((int64_t) cells->size()), all(std::move(cells)) {}

    ggml_backend_t backend;
    ggml_tensor  * tensor; // cache type [n_embd_gqa, n_cells]
    int64_t        n_head_kv;
    int64_t        n_pos;

    const int32_t * cells() const { return all->data() + first; } // [n_pos]

    int32_t row(uint32_t ih, int32_t p) const { return (int32_t) (cells()[p]*n_head_kv + ih); }

    int64_t n_embd_head() const { return tensor->ne[0]/n_head_kv; }
    size_t  row_bytes()   const { return ggml_row_size(tensor->type, n_embd_head()); }

    // the positions [begin, begin + n), numbered from 0
    headkv_rows slice(int64_t begin, int64_t n) const {
        headkv_rows res = *this;
        res.first += begin;
        res.n_pos  = n;
        return res;
    }

private:
    std::shared_ptr<const std::vector<int32_t>> all;
    int64_t first = 0; // of all
};
