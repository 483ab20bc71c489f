// cache/store.h: the state of one compressed cache, owned by its llama_kv_cache.
//
//     stock llama_kv_cache                      headkv_store
//     +----------------------------+            +--------------------------------------------+
//     | tail: cells, K/V tensors,  |  1 : 1     | prefix: per layer K rows, V rows, meta     |
//     | masks, slots (upstream)    | ---------> | scores while armed, plan, positions, stats |
//     +----------------------------+            +--------------------------------------------+
//
// The store decides what exists and when; the tail reallocates the stock cache; observe and attn only
// build graph nodes from what is here. All buffers are counted in the accounts, so that the statistics are measured.

#pragma once

#include "headkv.h"
#include "rows/buffer.h"
#include "cache/select.h"
#include "score/expected.h"
#include "score/keys.h"
#include "core/plan.h"
#include "core/select.h"

#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

class llama_kv_cache;
struct llama_context;

// one layer of the cache and its prefix; tensors are null without a prefix
struct headkv_layer_store {
    headkv_layer shape;

    ggml_tensor * k     = nullptr; // cache type [n_embd_head_k, max(1, n_rows)], head-contiguous
    ggml_tensor * v     = nullptr; // cache type [n_embd_head_v, max(1, n_rows)]
    ggml_tensor * meta  = nullptr; // I32 [2*n_head_kv]: first row of each head, then rows of each head
    // only while armed: attention of the observing tokens, summed or its maximum, F32 [n_cells, n_head]; or, for moments,
    // sums over their queries, F32 [n_embd_head_k, n_embd_head_k + 1, n_head]; or these, F32 [n_embd_head_k, n_head, n_armed];
    // and what the graph told of them
    ggml_tensor   * score = nullptr;
    headkv_rotation rotation;
    bool            is_rotation_known = false;
    headkv_logits   logits;

    headkv_layer_rows                 rows { {} };
    std::vector<std::vector<int32_t>> pos; // [n_head_kv] positions of the rows, ascending
};

struct headkv_store {
    headkv_store(llama_kv_cache & kv, uint32_t n_cells_max);

    llama_kv_cache & kv;
    llama_context  * lctx = nullptr; // set when attached

    std::vector<headkv_layer_store>   layers;
    std::unordered_map<int, uint32_t> layer_of; // model layer -> index in layers

    bool is_composed = false; // attention by stock ops instead of the fused kernel

    // observing tokens
    uint32_t n_armed      = 0;  // armed for so many; 0: not armed
    headkv_reduce reduce  = HEADKV_REDUCE_MEAN;
    uint32_t n_scored     = 0;  // of them decoded
    int32_t  pos_scored   = -1; // first scored position

    uint32_t n_pos_prefix = 0;  // 0: no prefix

    // cells wanted by the next memory update; 0: none
    uint32_t n_cells_wanted = 0;
    uint32_t n_cells_max    = 0; // the context's positions: more cells are never needed

    bool is_attached() const { return lctx != nullptr; }
    bool has_prefix()  const { return n_pos_prefix > 0; }

    const headkv_layer_store * layer(int il) const;
    std::vector<uint32_t>      n_head_kv() const; // [n_layer]

    uint32_t n_cells_used() const;
    uint32_t n_pos() const; // positions seen by the sequence

    // why this cache cannot be compressed; "" if it can
    static std::string unsupported_reason(const llama_kv_cache & kv, const llama_context & lctx);

    void attach(llama_context & lctx);

    void reserve(uint32_t n_cells);

    void arm(uint32_t n, headkv_reduce reduce);
    void disarm();

    // positions from p0 on are removed: scores that they added to are of no use any more
    void forget_scored(int32_t p0);

    // throws what speaks against compressing now, n_obs positions left out
    void check_can_compress(uint32_t n_obs) const;

    // the context's own backend for the device on which t lies
    ggml_backend_t backend_of(const ggml_tensor * t) const;

    void compress(const headkv_compress_params & params);
    void keep(const headkv_plan & plan, const int32_t * pos, uint32_t n_threads);

    void drop_prefix();

    void set_composed(bool value);

    headkv_stats stats() const;
    void         add_memory(std::map<ggml_backend_buffer_type_t, size_t> & sizes) const;
    void         reset_peak();

    // cells to allocate when n_need are needed now: some more, so that not every token grows the tail
    uint32_t n_cells_to_grow(uint32_t n_need) const;

    // grow the tail to n_cells_wanted; called from the memory update, when no graph is alive. false: out of memory
    bool grow();

private:
    std::vector<headkv_buffer> scores;
    std::vector<headkv_buffer> prefix;

    uint64_t n_grow       = 0;
    uint64_t bytes_peak   = 0;
    double   ms_select    = 0;
    double   ms_gather    = 0;
    double   ms_shrink    = 0;

    void build_prefix(const headkv_plan & plan, headkv_positions_by_head pos, uint32_t n_threads);
    void bump_epoch();
    void account(size_t bytes_extra = 0);
};
