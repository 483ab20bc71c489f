#include "cache/store.h"
#include "rows/hot.h"
#include "cache/tail.h"

#include "llama-arch.h"
#include "llama-context.h"
#include "llama-impl.h"
#include "llama-model.h"

#include "ggml-backend.h"

#include <algorithm>

#if defined(__GLIBC__)
#include <malloc.h>
#endif

// the tail starts with so many cells and grows by as many at least, and by an eighth of what is needed: a copy of the tail
// every 64 tokens at first, less and less often later
static constexpr uint32_t N_CELLS_STEP = 64;

// upstream's attention looks at multiples of so many cells. A cache without a prefix keeps to them, so that its sums are
// split among threads as stock's are, bit for bit
static constexpr uint32_t N_CELLS_STOCK = 256;

static uint32_t pad_cells(uint32_t n, bool is_stock) {
    return is_stock && n > N_CELLS_STOCK ? GGML_PAD(n, N_CELLS_STOCK) : GGML_PAD(n, N_CELLS_STEP);
}

// large caches go back to the system at once; small ones stay in malloc's free lists without this
static void return_memory_to_system() {
#if defined(__GLIBC__)
    malloc_trim(0);
#endif
}

//
// attach
//

std::string headkv_store::unsupported_reason(const llama_kv_cache & kv, const llama_context & lctx) {
    const auto & cparams = lctx.get_cparams();
    const auto & hparams = headkv_access::hparams(kv);

    if (!cparams.flash_attn) {
        return "flash attention is off: create the context with flash attention on";
    }
    if (cparams.n_seq_max != 1) {
        return format("the context holds %u sequences, 1 is supported: make a context for each", cparams.n_seq_max);
    }
    if (cparams.ctx_other || cparams.ctx_type != LLAMA_CONTEXT_TYPE_DEFAULT) {
        return "the context belongs to a draft model or shares another context's cache";
    }
    if (!hparams.causal_attn || headkv_access::model(kv).arch == LLM_ARCH_LLAMA_EMBED) {
        return "the model attends to later tokens too, and reads no cache";
    }
    if (hparams.is_mla()) {
        return "the model uses latent attention (MLA), which has no KV heads";
    }
    if (hparams.n_rel_attn_bkts > 0) {
        return "the model adds a position bias to its attention, which flash attention does not take";
    }
    if (hparams.router_layer >= 0) {
        return "the model keeps in its cache which adapter each token chose";
    }
    if (hparams.use_alibi || hparams.f_max_alibi_bias > 0.0f) {
        return "the model uses ALiBi, whose bias needs every position";
    }
    if (hparams.n_pos_per_embd() != 1) {
        return "the model uses multi-dimensional positions (M-RoPE)";
    }
    if (hparams.ple_n_heads > 0) {
        return "the model reads the tokens of earlier positions from the cache";
    }
    if (!headkv_access::is_plain(kv)) {
        return "the cache is not a plain one (several streams, sliding window or shared layers)";
    }
    return "";
}

headkv_store::headkv_store(llama_kv_cache & kv, uint32_t n_cells_max) : kv(kv), n_cells_max(n_cells_max) {
    const auto & hparams = headkv_access::hparams(kv);

    for (uint32_t i = 0; i < headkv_access::n_layer(kv); ++i) {
        const uint32_t il = headkv_access::il(kv, i);
        if (hparams.n_head_kv(il) == 0) {
            continue; // upstream caches nothing for it, in an empty tensor
        }

        headkv_layer_store layer;
        layer.shape.il            = il;
        layer.shape.n_head        = hparams.n_head(il);
        layer.shape.n_head_kv     = hparams.n_head_kv(il);
        layer.shape.n_embd_head_k = hparams.n_embd_head_k(il);
        layer.shape.n_embd_head_v = hparams.n_embd_head_v(il);
        layer.shape.row_bytes_k   = ggml_row_size(kv.type_k(), layer.shape.n_embd_head_k);
        const ggml_tensor * v = headkv_access::v(kv, il);
        layer.shape.row_bytes_v   = v ? ggml_row_size(v->type, layer.shape.n_embd_head_v) : 0;

        layer_of[il] = layers.size();
        layers.push_back(std::move(layer));
    }
    account();
}

void headkv_store::attach(llama_context & ctx) {
    ctx.synchronize();
    if (n_cells_used() == 0 && kv.get_size() > N_CELLS_STEP) {
        headkv_access::swap_tail(kv, headkv_access::make_tail(kv, N_CELLS_STEP, {}));
        return_memory_to_system();
    }

    // what upstream allows only its own code to write: the graphs find the store through the context's parameters
    lctx = &ctx;
    const_cast<llama_cparams &>(ctx.get_cparams()).headkv = this;
    bump_epoch();
    reset_peak();
}

const headkv_layer_store * headkv_store::layer(int il) const {
    const auto it = layer_of.find(il);
    return it == layer_of.end() ? nullptr : &layers[it->second];
}

std::vector<uint32_t> headkv_store::n_head_kv() const {
    std::vector<uint32_t> res;
    for (const auto & layer : layers) {
        res.push_back(layer.shape.n_head_kv);
    }
    return res;
}

uint32_t headkv_store::n_cells_used() const {
    return headkv_access::cells(kv).get_used();
}

uint32_t headkv_store::n_pos() const {
    // the tail may have been cut away whole
    return std::max((uint32_t) (headkv_access::cells(kv).seq_pos_max(0) + 1), n_pos_prefix);
}

// graphs that were built before the epoch are not used again
void headkv_store::bump_epoch() {
    if (lctx) {
        const_cast<llama_cparams &>(lctx->get_cparams()).headkv_epoch++;
    }
}

//
// size of the tail
//

void headkv_store::reserve(uint32_t n_cells) {
    if (n_cells > n_cells_max) {
        throw headkv_error { HEADKV_STATUS_INVALID_ARGUMENT, format("%u cells are more than the context's %u", n_cells, n_cells_max) };
    }
    if (n_cells <= kv.get_size()) {
        return;
    }

    n_cells_wanted = std::min(pad_cells(n_cells, !has_prefix()), n_cells_max);
    lctx->memory_update(/*.optimize =*/ true);

    if (kv.get_size() < n_cells) {
        throw headkv_error { HEADKV_STATUS_NO_MEMORY, format("out of memory: the cache could not grow to %u cells", n_cells) };
    }
}

uint32_t headkv_store::n_cells_to_grow(uint32_t n_need) const {
    return std::min(pad_cells(n_need + n_need/8, !has_prefix()), n_cells_max);
}

bool headkv_store::grow() {
    const uint32_t n_cells = n_cells_wanted;
    n_cells_wanted = 0;

    std::vector<uint32_t> keep;
    for (uint32_t c = 0; c < kv.get_size(); ++c) {
        if (!headkv_access::cells(kv).is_empty(c)) {
            keep.push_back(c);
        }
    }

    try {
        auto tail = headkv_access::make_tail(kv, n_cells, keep);
        account(headkv_bytes(tail.buffers));

        bump_epoch();
        headkv_access::swap_tail(kv, std::move(tail));
    } catch (const headkv_error & err) {
        LLAMA_LOG_ERROR("%s: %s\n", __func__, err.message.c_str());
        return false;
    } catch (const std::exception & err) {
        LLAMA_LOG_ERROR("%s: %s\n", __func__, err.what());
        return false;
    }
    n_grow++;

    return true;
}

//
// scores
//

void headkv_store::arm(uint32_t n, headkv_reduce how) {
    if (has_prefix()) {
        throw headkv_error { HEADKV_STATUS_WRONG_STATE, "the cache is compressed already" };
    }
    disarm();
    if (n == 0) {
        return;
    }

    const uint32_t n_cells = n_cells_used() + n;
    reserve(n_cells);

    headkv_buffers buffers(layers.size());
    for (size_t i = 0; i < layers.size(); ++i) {
        auto & layer = layers[i];
        const int64_t d = layer.shape.n_embd_head_k;

        ggml_context * ctx = buffers.ctx_beside(headkv_access::k(kv, layer.shape.il));
        switch (how) {
            case HEADKV_REDUCE_MOMENTS: layer.score = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, d, d + 1, layer.shape.n_head); break;
            case HEADKV_REDUCE_QUERIES: layer.score = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, d, layer.shape.n_head, n);     break;
            default: layer.score = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, kv.get_size(), layer.shape.n_head);               break;
        }
        ggml_format_name(layer.score, "headkv_score_l%u", layer.shape.il);
    }
    try {
        scores = buffers.alloc();
    } catch (...) {
        for (auto & layer : layers) {
            layer.score = nullptr;
        }
        throw;
    }

    n_armed = n;
    reduce  = how;
    account();
    bump_epoch();
}

void headkv_store::disarm() {
    if (n_armed == 0) {
        return;
    }
    lctx->synchronize();
    bump_epoch();

    for (auto & layer : layers) {
        layer.score = nullptr;
    }
    scores.clear();
    n_armed    = 0;
    n_scored   = 0;
    pos_scored = -1;
}

void headkv_store::forget_scored(int32_t p0) {
    if (n_scored > 0 && p0 < (int32_t) n_pos()) {
        pos_scored = -1;
    }
}

//
// compression
//

void headkv_store::check_can_compress(uint32_t n_obs_wanted) const {
    if (has_prefix()) {
        throw headkv_error { HEADKV_STATUS_WRONG_STATE, "the cache is compressed already" };
    }
    const auto & cells = headkv_access::cells(kv);

    if (cells.get_has_shift()) {
        throw headkv_error { HEADKV_STATUS_WRONG_STATE, "a position shift is pending: decode once before compressing" };
    }
    if (n_cells_used() != n_pos()) {
        throw headkv_error { HEADKV_STATUS_WRONG_STATE,
            format("the cache holds %u cells for %u positions: only one sequence without gaps can be compressed", n_cells_used(), n_pos()) };
    }
    if (n_obs_wanted >= n_pos()) {
        throw headkv_error { HEADKV_STATUS_INVALID_ARGUMENT,
            format("n_obs = %u leaves nothing to compress of %u positions", n_obs_wanted, n_pos()) };
    }
}

void headkv_store::compress(const headkv_compress_params & params) {
    headkv_choose_check(params);
    check_can_compress(params.score.n_obs);

    headkv_plan plan;
    std::string error;
    const headkv_plan_request request {
        n_pos(), params.score.n_obs, params.n_sink, params.n_rows, params.n_rows_size, params.spans, params.n_spans,
    };
    if (!headkv_plan_make(request, n_head_kv(), plan, error)) {
        throw headkv_error { HEADKV_STATUS_INVALID_ARGUMENT, error };
    }

    const int64_t t_start = ggml_time_us();
    lctx->synchronize();

    auto pos = headkv_choose(*this, plan, params);

    const double ms = (ggml_time_us() - t_start)/1000.0;

    build_prefix(plan, std::move(pos), params.n_threads);
    ms_select = ms;
}

void headkv_store::keep(const headkv_plan & plan, const int32_t * pos, uint32_t n_threads) {
    check_can_compress(plan.n_obs);
    lctx->synchronize();

    headkv_positions_by_head rows(layers.size());
    for (size_t i = 0; i < layers.size(); ++i) {
        for (const uint32_t n : plan.layers[i].len) {
            rows[i].emplace_back(pos, pos + n);
            pos += n;
        }
    }
    build_prefix(plan, std::move(rows), n_threads);
    ms_select = 0;
}

ggml_backend_t headkv_store::backend_of(const ggml_tensor * t) const {
    ggml_backend_sched_t     sched = lctx->get_sched();
    const ggml_backend_dev_t dev   = ggml_backend_buft_get_device(ggml_backend_buffer_get_type(t->buffer)); // null: main memory
    for (int i = 0; i < ggml_backend_sched_get_n_backends(sched); ++i) {
        ggml_backend_t backend = ggml_backend_sched_get_backend(sched, i);
        const ggml_backend_dev_t own = ggml_backend_get_device(backend);
        if (dev ? own == dev : ggml_backend_dev_type(own) == GGML_BACKEND_DEVICE_TYPE_CPU) {
            return backend;
        }
    }
    throw headkv_error { HEADKV_STATUS_UNSUPPORTED, format("no backend of the context works on %s", ggml_backend_buffer_name(t->buffer)) };
}

void headkv_store::build_prefix(const headkv_plan & plan, headkv_positions_by_head pos, uint32_t n_threads) {
    const int64_t t_start = ggml_time_us();

    const auto cell_of = headkv_access::cells_of(kv, 0, plan.n_pos_prefix());

    // 1. make everything new beside what is there
    std::vector<headkv_layer_store> fresh = layers;

    headkv_buffers buffers(3*layers.size());
    for (size_t i = 0; i < fresh.size(); ++i) {
        fresh[i].rows  = plan.layers[i];
        fresh[i].pos   = std::move(pos[i]);
        fresh[i].score = nullptr;
        headkv_prefix_tensors(buffers.ctx_beside(headkv_access::k(kv, layers[i].shape.il)), fresh[i], kv.type_k(), kv.type_v());
    }
    std::vector<headkv_buffer> fresh_prefix = buffers.alloc();

    headkv_prefix_fill(*this, fresh, cell_of, n_threads);
    const int64_t t_gathered = ggml_time_us();

    const uint32_t n_cells = std::min(pad_cells(plan.n_obs + 1, false), n_cells_max);
    headkv_tail    tail    = headkv_access::make_tail(kv, n_cells, headkv_access::cells_of(kv, plan.n_pos_prefix(), plan.n_pos));

    account(headkv_bytes(fresh_prefix) + headkv_bytes(tail.buffers));

    // 2. nothing fails from here on. Old graphs are retired before the tensors that they point to are freed
    disarm();
    bump_epoch();
    layers       = std::move(fresh);
    prefix       = std::move(fresh_prefix);
    n_pos_prefix = plan.n_pos_prefix();

    headkv_access::swap_tail(kv, std::move(tail));
    return_memory_to_system();

    ms_gather = (t_gathered - t_start)/1000.0;
    ms_shrink = (ggml_time_us() - t_gathered)/1000.0;
}

void headkv_store::drop_prefix() {
    if (lctx) {
        lctx->synchronize();
    }
    disarm();
    if (!has_prefix()) {
        return;
    }
    bump_epoch();

    for (auto & layer : layers) {
        layer.k = layer.v = layer.meta = nullptr;
        layer.rows = headkv_layer_rows({});
        layer.pos.clear();
    }
    prefix.clear();
    n_pos_prefix = 0;
    return_memory_to_system();
}

void headkv_store::set_composed(bool value) {
    is_composed = value;
    bump_epoch();
}

//
// statistics
//

void headkv_store::add_memory(std::map<ggml_backend_buffer_type_t, size_t> & sizes) const {
    for (const auto & buffer : prefix) {
        sizes[ggml_backend_buffer_get_type(buffer.buf.get())] += buffer.size();
    }
}

// bytes_extra: buffers that exist at this moment besides those of the store and the tail
void headkv_store::account(size_t bytes_extra) {
    bytes_peak = std::max<uint64_t>(bytes_peak, headkv_bytes(prefix) + headkv_access::bytes(kv) + headkv_bytes(scores) + bytes_extra);
}

void headkv_store::reset_peak() {
    bytes_peak = 0;
    account();
}

headkv_stats headkv_store::stats() const {
    uint64_t n_heads = 0;
    uint64_t n_rows  = 0;
    for (const auto & layer : layers) {
        n_heads += layer.shape.n_head_kv;
        n_rows  += layer.rows.n_rows();
    }

    headkv_stats res = {};
    res.n_pos         = n_pos();
    res.n_pos_prefix  = n_pos_prefix;
    res.n_cells       = kv.get_size();
    res.n_cells_used  = n_cells_used();
    res.n_rows_full   = n_pos()*n_heads;
    res.n_rows_prefix = n_rows;
    res.n_rows_tail   = n_cells_used()*n_heads;
    res.bytes_prefix  = headkv_bytes(prefix);
    res.bytes_tail    = headkv_access::bytes(kv);
    res.bytes_scores  = headkv_bytes(scores);
    res.bytes_peak    = bytes_peak;
    res.n_grow        = n_grow;
    res.ms_select     = ms_select;
    res.ms_gather     = ms_gather;
    res.ms_shrink     = ms_shrink;
    return res;
}
