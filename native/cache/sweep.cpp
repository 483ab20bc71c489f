#include "cache/sweep.h"
#include "core/error.h"

#include "llama-batch.h"
#include "llama-context.h"
#include "llama-graph.h"
#include "llama-memory.h"
#include "llama-model.h"

#include <algorithm>

static constexpr size_t MAX_UNUSED   = 2;
static constexpr size_t UNUSED_BYTES = 64;

headkv_sweep::headkv_sweep(
        llama_context & lctx, const std::vector<headkv_cut_layer> & layers, const std::vector<ggml_backend_buffer_type_t> & bufts, uint32_t n_block) :
    lctx(lctx), layers(layers), bufts(bufts), n_block(n_block),
    unused(headkv_alloc(UNUSED_BYTES, ggml_backend_cpu_buffer_type())) {}

// tokens of a graph that is only looked at
static constexpr uint32_t N_PROBED = 2;

// what upstream keeps to itself
struct headkv_sweep_access {
    // how it builds a graph. The scheduler has not seen this one, and put no copies between its nodes
    static ggml_cgraph * build(llama_context & lctx, llm_graph_result & res) {
        llama_batch_allocr balloc(lctx.model.hparams.n_pos_per_embd());
        const llama_ubatch ubatch = balloc.ubatch_reserve(N_PROBED, /*.n_seqs =*/ 1);
        const auto         full   = lctx.memory->init_full();
        res.reset();
        ggml_backend_sched_reset(lctx.sched.get());
        return lctx.model.build_graph(lctx.graph_params(&res, ubatch, full.get(), LLM_GRAPH_TYPE_DECODER));
    }

    // what it counts, when nothing is computed: tokens of prompts, single ones, and the time of these
    struct counts {
        int32_t n_prompt;
        int32_t n_single;
        int64_t us_single;
    };

    static counts count(const llama_context & lctx) { return { lctx.n_p_eval, lctx.n_eval, lctx.t_eval_us }; }

    // n tokens since then, whatever was counted for each layer; the time is that of all layers
    static void count_once(const llama_context & lctx, const counts & before, uint32_t n) {
        const bool is_single = n == 1;
        if (!is_single) {
            lctx.t_p_eval_us += lctx.t_eval_us - before.us_single;
            lctx.t_eval_us    = before.us_single;
        }
        lctx.n_p_eval = before.n_prompt + (is_single ? 0 : (int32_t) n);
        lctx.n_eval   = before.n_single + (is_single ? 1 : 0);
    }
};

uint32_t headkv_sweep::block_size(uint32_t n_embd, size_t bytes_hidden) {
    const size_t n = (bytes_hidden ? bytes_hidden : DEFAULT_BYTES_HIDDEN)/(n_embd*sizeof(float));
    return (uint32_t) std::clamp<size_t>(n, 1, INT32_MAX);
}

std::string headkv_sweep::reason(llama_context & lctx, const std::vector<headkv_cut_layer> & layers) {
    const llama_cparams & cparams = lctx.get_cparams();
    const auto is_on = [](bool x) { return x; };
    if (cparams.embeddings_nextn || std::any_of(cparams.embeddings_layer_inp.begin(), cparams.embeddings_layer_inp.end(), is_on)) {
        return "hidden states of the layers are to be put out";
    }
    if (lctx.get_model().arch == LLM_ARCH_CHAMELEON) { // an assertion of its graph fails without outputs, and ends the process
        return "its last layer cannot be computed for tokens without logits";
    }
    try {
        llm_graph_result graph(lctx.graph_max_nodes(N_PROBED));
        const headkv_cut cut(headkv_sweep_access::build(lctx, graph), layers);
        return "";
    } catch (const headkv_error & err) {
        return err.what();
    }
}

//
// computing
//

void headkv_sweep::run(const headkv_sweep_tokens & tokens, const headkv_sweep_steps & steps) {
    uint32_t n_in_batch = 0;
    for (uint32_t begin = 0; begin < tokens.n; begin += n_in_batch) {
        n_in_batch = batch_size(tokens, begin);
    }
    if (tokens.n_outputs > n_in_batch) {
        headkv_fail(HEADKV_STATUS_INVALID_ARGUMENT, "n_outputs = %u tokens are to have logits: the last batch has %u", tokens.n_outputs, n_in_batch);
    }
    const uint64_t n_total = (uint64_t) tokens.n*layers.size();
    uint64_t       n_done  = 0;

    const auto on_batch = [&](uint32_t begin, uint32_t end) {
        if (steps.end_batch) {
            steps.end_batch(layer, tokens.pos + (int32_t) begin, tokens.pos + (int32_t) end);
        }
        n_done += end - begin;
        if (steps.progress && !steps.progress(n_done, n_total)) {
            headkv_fail(HEADKV_STATUS_COMPUTE, "reading was stopped");
        }
    };
    lctx.synchronize();
    const auto counts = headkv_sweep_access::count(lctx);
    for (uint32_t begin = 0; begin < tokens.n; begin += n_block) {
        const uint32_t end = std::min(begin + n_block, tokens.n);
        for (layer = 0; layer < layers.size(); ++layer) {
            steps.begin_layer(layer, tokens.pos + (int32_t) begin);
            compute_layer(tokens, begin, end, on_batch);
            lctx.synchronize();
            if (hidden_next) {
                hidden = std::move(hidden_next);
            }
            steps.end_layer(layer, tokens.pos + (int32_t) begin, tokens.pos + (int32_t) end);
        }
    }
    headkv_sweep_access::count_once(lctx, counts, tokens.n);
}

void headkv_sweep::compute_layer(
        const headkv_sweep_tokens & tokens, uint32_t begin, uint32_t end, const std::function<void(uint32_t, uint32_t)> & on_batch) {
    // each layer finds the cells as the first one did
    lctx.get_memory()->seq_rm(0, tokens.pos + (int32_t) begin, -1);
    first = 0;
    while (begin < end) {
        const uint32_t n = batch_size(tokens, begin);
        decode(tokens, begin, begin + n);
        on_batch(begin, begin + n);
        begin += n;
    }
}

// of the batch that begins there
uint32_t headkv_sweep::batch_size(const headkv_sweep_tokens & tokens, uint32_t begin) const {
    const uint32_t end = std::min(begin - begin % n_block + n_block, tokens.n); // of the block
    return std::min(lctx.n_batch(), end - begin);
}

void headkv_sweep::decode(const headkv_sweep_tokens & tokens, uint32_t begin, uint32_t end) {
    const uint32_t n = end - begin;

    std::vector<llama_token>    token(tokens.tokens + begin, tokens.tokens + end);
    std::vector<llama_pos>      pos(n);
    std::vector<int32_t>        n_seq(n, 1);
    llama_seq_id                seq = 0;
    std::vector<llama_seq_id *> seqs(n, &seq);
    std::vector<int8_t>         output(n, 0);
    for (uint32_t j = 0; j < n; ++j) {
        pos[j]    = tokens.pos + (int32_t) (begin + j);
        output[j] = begin + j + tokens.n_outputs >= tokens.n;
    }

    llama_batch batch = {};
    batch.n_tokens = (int32_t) n;
    batch.token    = token.data();
    batch.pos      = pos.data();
    batch.n_seq_id = n_seq.data();
    batch.seq_id   = seqs.data();
    batch.logits   = output.data();

    error = nullptr;
    const int32_t status = lctx.decode(batch);
    if (error) {
        std::rethrow_exception(error);
    }
    if (status != 0) {
        headkv_fail(status == -2 ? HEADKV_STATUS_NO_MEMORY : HEADKV_STATUS_COMPUTE,
            "layer %zu of the cache could not be computed at position %d: %s (status %d)", layer, pos[0],
            status == 2 ? "aborted" : "llama_decode failed", status);
    }
}

//
// cutting
//

bool headkv_sweep::cut(llm_graph_result & graph, uint32_t n_tokens) noexcept {
    try {
        cut_or_throw(graph, n_tokens);
        return true;
    } catch (...) {
        error = std::current_exception();
        return false;
    }
}

static void put(const ggml_backend_buffer_ptr & buffer, ggml_tensor * t, size_t offset) {
    t->buffer = nullptr;
    t->data   = nullptr;
    ggml_backend_tensor_alloc(buffer.get(), t, (char *) ggml_backend_buffer_get_base(buffer.get()) + offset);
}

// the hidden states that the layer leaves: in place, unless the next one's are elsewhere
ggml_backend_buffer_ptr & headkv_sweep::hidden_out(size_t row_bytes) {
    const size_t n_bytes = row_bytes*n_block;
    const auto fits = [&](const ggml_backend_buffer_ptr & x) {
        return x && ggml_backend_buffer_get_type(x.get()) == bufts[layer] && ggml_backend_buffer_get_size(x.get()) >= n_bytes;
    };
    if (fits(hidden)) {
        return hidden;
    }
    if (!fits(hidden_next)) {
        hidden_next = headkv_alloc(n_bytes, bufts[layer]);
    }
    return hidden_next;
}

// upstream's allocator takes a graph for the one before if both have as many nodes and leaves, whatever the leaves are. So no layer's
// graph has as many as that of the next layer, and that of the only layer of a model not as many as the whole
void headkv_sweep::add_unused_leaves(ggml_cgraph * graph) const {
    for (size_t i = 0; i <= layer % MAX_UNUSED; ++i) {
        ggml_tensor * leaf = ggml_new_tensor_1d(ctx.get(), GGML_TYPE_F32, 1);
        put(unused, leaf, 0);
        ggml_build_forward_expand(graph, leaf);
    }
}

void headkv_sweep::cut_or_throw(llm_graph_result & graph, uint32_t n_tokens) {
    const headkv_cut cut(graph.gf, layers);

    ctx.reset(ggml_init({ ggml_graph_overhead_custom(ggml_graph_size(graph.gf), false) + (2 + MAX_UNUSED)*ggml_tensor_overhead(), nullptr, /*.no_alloc =*/ true }));

    ggml_tensor * out  = cut.out(layer);
    ggml_tensor * copy = nullptr;
    if (out) {
        const size_t  row_bytes = ggml_nbytes(out)/n_tokens;
        ggml_tensor * rows      = ggml_dup_tensor(ctx.get(), out);
        put(hidden_out(row_bytes), rows, first*row_bytes);
        copy = ggml_cpy(ctx.get(), out, rows);
    }
    ggml_cgraph * part = cut.part(ctx.get(), layer, copy);
    if (layer > 0) {
        ggml_tensor * in = cut.out(layer - 1);
        put(hidden, in, first*(ggml_nbytes(in)/n_tokens));
    }
    // upstream sets all inputs, those too that this layer does not need
    for (ggml_tensor * t = ggml_get_first_tensor(graph.get_ctx()); t; t = ggml_get_next_tensor(graph.get_ctx(), t)) {
        if ((t->flags & GGML_TENSOR_FLAG_INPUT) && t->op == GGML_OP_NONE) {
            ggml_build_forward_expand(part, t);
        }
    }
    add_unused_leaves(part);
    graph.gf = part;
    if (out) { // upstream reads results where there are some
        graph.t_logits = graph.t_embd = graph.t_embd_pooled = graph.t_h_nextn = nullptr;
        for (auto * sampled : { &graph.t_sampled, &graph.t_sampled_probs, &graph.t_sampled_logits, &graph.t_candidates }) {
            sampled->clear();
        }
    }
    first += n_tokens;
}
