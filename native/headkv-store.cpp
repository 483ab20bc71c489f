#include "headkv-store.h"
#include "headkv-gather.h"
#include "headkv-rate.h"
#include "headkv-tail.h"
#include "headkv-vote.h"

#include "llama-arch.h"
#include "llama-context.h"
#include "llama-impl.h"
#include "llama-model.h"

#include "ggml-alloc.h"
#include "ggml-backend.h"

#include <algorithm>
#include <cstring>

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
        return format("the context holds %u sequences, 1 is supported", cparams.n_seq_max);
    }
    if (cparams.ctx_other || cparams.ctx_type != LLAMA_CONTEXT_TYPE_DEFAULT) {
        return "the context belongs to a draft model or shares another context's cache";
    }
    if (hparams.is_mla()) {
        return "the model uses latent attention (MLA), which has no KV heads";
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

        headkv_layer_store layer;
        layer.shape.il            = il;
        layer.shape.n_head        = hparams.n_head(il);
        layer.shape.n_head_kv     = hparams.n_head_kv(il);
        layer.shape.n_embd_head_k = hparams.n_embd_head_k(il);
        layer.shape.n_embd_head_v = hparams.n_embd_head_v(il);
        layer.shape.row_bytes_k   = ggml_row_size(kv.type_k(), layer.shape.n_embd_head_k);
        layer.shape.row_bytes_v   = ggml_row_size(kv.type_v(), layer.shape.n_embd_head_v);

        layers.push_back(std::move(layer));
        layer_of[il] = i;
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

        ggml_context * ctx = buffers.ctx_beside(headkv_access::k(kv, i));
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

static void check_head_params(const headkv_compress_params & params) {
    headkv_rate_check(params.score);
    const std::string error = headkv_vote_error({ params.voters, params.heeds, params.n_rows_size });
    if (!error.empty()) {
        throw headkv_error { HEADKV_STATUS_INVALID_ARGUMENT, error };
    }
    if (params.voters) {
        headkv_rate_check_kernel("vote_kernel", params.vote_kernel);
        const bool is_negative = params.score.kind == HEADKV_SCORE_KNORM || params.score.kind == HEADKV_SCORE_KEYDIFF;
        if (is_negative && !params.scores) {
            throw headkv_error { HEADKV_STATUS_INVALID_ARGUMENT, "heads cannot vote by keys alone: these scores are negative" };
        }
        if (params.score.kind == HEADKV_SCORE_DEFENSIVE && !params.scores) {
            throw headkv_error { HEADKV_STATUS_INVALID_ARGUMENT, "heads cannot vote by defensive scores: the first have no measure" };
        }
    }
    for (uint32_t h = 0; params.pool_kernels && h < params.n_rows_size; ++h) {
        headkv_rate_check_kernel("pool_kernels", params.pool_kernels[h]);
    }
}

std::vector<std::vector<float>> headkv_store::rate(const headkv_plan & plan, const headkv_compress_params & params) const {
    const size_t n = plan.n_pos_prefix();

    std::vector<std::vector<float>> scores(layers.size());
    if (params.scores) {
        const float * src = params.scores;
        for (size_t i = 0; i < layers.size(); ++i) {
            const size_t size = n*layers[i].shape.n_head_kv;
            scores[i].assign(src, src + size);
            src += size;
        }
        return scores;
    }
    // a graph on the context's backend has threads of its own, and there is one backend
    headkv_parallel_for(layers.size(), headkv_rate_is_parallel(params.score) ? params.n_threads : 1, [&](size_t i) {
        scores[i] = headkv_rate_folded(*this, i, params.score);
    });
    return scores;
}

std::vector<std::vector<std::vector<int32_t>>> headkv_store::choose(
        const headkv_plan & plan, const headkv_compress_params & params) const {
    const size_t n           = plan.n_pos_prefix();
    const bool   is_critical = params.score.kind == HEADKV_SCORE_CRITICAL;

    std::vector<std::vector<float>> scores = rate(plan, params);
    std::vector<std::vector<float>> norms(layers.size()); // as the scores
    std::vector<size_t> first = { 0 };                    // of each layer's heads among all
    for (size_t i = 0; i < layers.size(); ++i) {
        first.push_back(first.back() + layers[i].shape.n_head_kv);
        if (is_critical) {
            norms[i] = headkv_rate_projected(*this, i, n);
        }
    }

    // in order and by one thread, so that sums are the same for any number of threads
    std::vector<float> vote(params.voters ? n : 0);
    for (size_t i = 0; params.voters && i < layers.size(); ++i) {
        for (uint32_t ih = 0; ih < layers[i].shape.n_head_kv; ++ih) {
            headkv_vote_add(scores[i].data() + ih*n, n, plan.n_sink, params.voters[first[i] + ih], vote.data());
        }
    }
    headkv_pool_row(headkv_rate_pool(params.score), params.vote_kernel, vote.data(), vote.size());

    std::vector<std::vector<std::vector<int32_t>>> pos(layers.size());
    headkv_parallel_for(layers.size(), params.n_threads, [&](size_t i) {
        for (uint32_t ih = 0; ih < layers[i].shape.n_head_kv; ++ih) {
            const size_t   h      = first[i] + ih;
            const uint32_t kernel = params.pool_kernels ? params.pool_kernels[h] : headkv_rate_kernel(params.score);
            const uint32_t n_keep = plan.layers[i].len[ih];
            float        * score  = scores[i].data() + ih*n;

            headkv_pool_row(headkv_rate_pool(params.score), kernel, score, n);
            if (params.heeds && params.heeds[h] > 0.0f) {
                headkv_vote_heed(score, n, plan.n_sink, params.heeds[h], vote.data());
            }
            pos[i].push_back(is_critical
                ? headkv_select_critical(score, norms[i].data() + ih*n, n, plan.always, n_keep)
                : headkv_select_head(score, n, plan.always, n_keep));
        }
    });
    return pos;
}

void headkv_store::compress(const headkv_compress_params & params) {
    check_head_params(params);
    check_can_compress(params.score.n_obs);

    headkv_plan plan;
    std::string error;
    const headkv_plan_request request {
        n_pos(), params.score.n_obs, params.n_sink, params.n_rows, params.n_rows_size, params.spans, params.n_spans,
    };
    if (!headkv_plan_make(request, n_head_kv(), plan, error)) {
        throw headkv_error { HEADKV_STATUS_INVALID_ARGUMENT, error };
    }

    if (params.scores && params.n_scores != (size_t) params.n_rows_size*plan.n_pos_prefix()) {
        throw headkv_error { HEADKV_STATUS_INVALID_ARGUMENT,
            format("n_scores = %zu, expected %u heads x %u positions", params.n_scores, params.n_rows_size, plan.n_pos_prefix()) };
    }
    if (params.scores && !headkv_all_finite(params.scores, params.n_scores)) {
        throw headkv_error { HEADKV_STATUS_INVALID_ARGUMENT, "scores holds a value that is not finite" };
    }

    const int64_t t_start = ggml_time_us();
    lctx->synchronize();

    auto pos = choose(plan, params);

    const double ms = (ggml_time_us() - t_start)/1000.0;

    build_prefix(plan, std::move(pos), params.n_threads);
    ms_select = ms;
}

void headkv_store::keep(const headkv_plan & plan, const int32_t * pos, uint32_t n_threads) {
    check_can_compress(plan.n_obs);
    lctx->synchronize();

    std::vector<std::vector<std::vector<int32_t>>> rows(layers.size());
    for (size_t i = 0; i < layers.size(); ++i) {
        for (const uint32_t n : plan.layers[i].len) {
            rows[i].emplace_back(pos, pos + n);
            pos += n;
        }
    }
    build_prefix(plan, std::move(rows), n_threads);
    ms_select = 0;
}

// tensors of one layer's prefix, not yet allocated
static void make_prefix_tensors(ggml_context * ctx, headkv_layer_store & layer, ggml_type type_k, ggml_type type_v) {
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

void headkv_store::gather(const std::vector<headkv_layer_store> & fresh, const std::vector<uint32_t> & cell_of, uint32_t n_threads) const {
    const auto pairs = [&](size_t i) -> std::vector<headkv_gather> {
        return {
            { headkv_access::k(kv, i), fresh[i].k, fresh[i].shape.row_bytes_k },
            { headkv_access::v(kv, i), fresh[i].v, fresh[i].shape.row_bytes_v },
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
            headkv_gather_device(backend_of(fresh[i].k), pairs(i), row_index(fresh[i], cell_of));
        }
        set_meta(fresh[i]);
    }
}

void headkv_store::build_prefix(const headkv_plan & plan, std::vector<std::vector<std::vector<int32_t>>> pos, uint32_t n_threads) {
    const int64_t t_start = ggml_time_us();

    const auto cell_of = headkv_access::cells_of(kv, 0, plan.n_pos_prefix());

    // 1. make everything new beside what is there
    std::vector<headkv_layer_store> fresh = layers;

    headkv_buffers buffers(3*layers.size());
    for (size_t i = 0; i < fresh.size(); ++i) {
        fresh[i].rows  = plan.layers[i];
        fresh[i].pos   = std::move(pos[i]);
        fresh[i].score = nullptr;
        make_prefix_tensors(buffers.ctx_beside(headkv_access::k(kv, i)), fresh[i], kv.type_k(), kv.type_v());
    }
    std::vector<headkv_buffer> fresh_prefix = buffers.alloc();

    gather(fresh, cell_of, n_threads);
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
