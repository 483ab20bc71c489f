// cache/sweep.h: reads tokens layer by layer: a layer for all of them before the next one begins, so that the rows of one layer are
// in use at a time.
//
//               batch 0     batch 1     ...
//   layer 0     -------------------------->   its rows are complete; hidden states [n_embd, n_tokens]
//   layer 1     -------------------------->
//   ...
//   layer n-1   -------------------------->   logits
//
// Upstream's decode() computes. It is given the same batches once for each layer, and the graph that it builds for a ubatch is cut to
// the nodes of the layer (cache/cut.h) before it is computed. Slots, masks, splits and outputs are upstream's, and so are the bits.
// What a layer leaves to the next is copied into the hidden states, on the device where the layer's cache belongs.

#pragma once

#include "cache/cut.h"
#include "rows/buffer.h"

#include <cstdint>
#include <exception>
#include <functional>
#include <string>
#include <vector>

class llama_kv_cache;
class llm_graph_result;
struct llama_context;

struct headkv_sweep_tokens {
    const int32_t * tokens;
    uint32_t        n;
    uint32_t        n_outputs; // the last ones have logits
    int32_t         pos;       // of the first
};

// what the caller does between the layers
struct headkv_sweep_steps {
    std::function<void(size_t i, int32_t pos)>              begin_layer; // the rows of positions before pos are to be there
    std::function<void(size_t i, int32_t pos, int32_t end)> end_batch;   // those of [pos, end) are there
    std::function<void(size_t i, int32_t pos, int32_t end)> end_layer;   // those of [pos, end) are complete
    std::function<bool(uint64_t n_done, uint64_t n_total)> progress; // tokens times layers; false: stop
};

class headkv_sweep {
public:
    // layers of the cache, and where each one's rows belong. n_block: tokens whose hidden states exist at once
    headkv_sweep(llama_context & lctx, const std::vector<headkv_cut_layer> & layers, const std::vector<ggml_backend_buffer_type_t> & bufts, uint32_t n_block);

    // tokens whose hidden states take at most so many bytes; 0: DEFAULT_BYTES_HIDDEN
    static uint32_t block_size(uint32_t n_embd, size_t bytes_hidden);

    static constexpr size_t DEFAULT_BYTES_HIDDEN = 256*1024*1024;

    // why the model's graph cannot be cut, or "". The last graph cannot be used again
    static std::string reason(llama_context & lctx, const std::vector<headkv_cut_layer> & layers);

    // reads tokens behind those in the cache, of which every cell up to there is in use. Logits of the last ones are found where
    // llama_decode() leaves them. Throws headkv_error COMPUTE, NO_MEMORY: the cells hold some of the tokens then
    void run(const headkv_sweep_tokens & tokens, const headkv_sweep_steps & steps);

    // upstream has built a graph for n_tokens: it is cut to the nodes of the layer that is being computed. false: it cannot be, and why
    // is thrown by run()
    bool cut(llm_graph_result & graph, uint32_t n_tokens) noexcept;

private:
    llama_context & lctx;

    const std::vector<headkv_cut_layer>           layers;
    const std::vector<ggml_backend_buffer_type_t> bufts;
    const uint32_t                                n_block;

    size_t   layer = 0; // that is being computed
    uint32_t first = 0; // token of the block that the next ubatch begins with

    ggml_backend_buffer_ptr hidden;      // of the tokens of a block, one after the other, as the layer finds them
    ggml_backend_buffer_ptr hidden_next; // as it leaves them, where that cannot be in place

    ggml_backend_buffer_ptr unused; // of leaves that nothing reads

    ggml_context_ptr   ctx;   // of the last cut graph
    std::exception_ptr error; // of the last cut

    void compute_layer(const headkv_sweep_tokens & tokens, uint32_t begin, uint32_t end, const std::function<void(uint32_t begin, uint32_t end)> & on_batch);
    uint32_t batch_size(const headkv_sweep_tokens & tokens, uint32_t begin) const;
    void     decode(const headkv_sweep_tokens & tokens, uint32_t begin, uint32_t end);
    void cut_or_throw(llm_graph_result & graph, uint32_t n_tokens);
    ggml_backend_buffer_ptr & hidden_out(size_t row_bytes);
    void add_unused_leaves(ggml_cgraph * graph) const;
};
