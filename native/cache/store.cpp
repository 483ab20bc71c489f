#include "cache/store.h"
#include "attend/attn.h"
#include "cache/select.h"
#include "cache/support.h"
#include "cache/tail.h"
#include "core/error.h"
#include "score/observe.h"
#include "score/scorers.h"

#include "llama-context.h"
#include "llama-graph.h"
#include "llama-impl.h"
#include "llama-model.h"

#include <algorithm>

#if defined(__GLIBC__)
#include <malloc.h>
#endif

// the tail starts with so many cells and grows by as many at least, and by an eighth of what is needed: a copy of the tail
// every 64 tokens at first, less and less often later
static constexpr uint32_t N_CELLS_STEP = 64;

uint32_t headkv_store::pad_cells(uint32_t n, bool is_stock) {
    return is_stock && n > N_CELLS_STOCK ? GGML_PAD(n, N_CELLS_STOCK) : GGML_PAD(n, N_CELLS_STEP);
}

// large caches go back to the system at once; small ones stay in malloc's free lists without this
void headkv_store::return_memory_to_system() {
#if defined(__GLIBC__)
    malloc_trim(0);
#endif
}

static headkv_layer shape_of(const llama_kv_cache & kv, uint32_t il) {
    const auto        & hparams = headkv_access::hparams(kv);
    const ggml_tensor * v       = headkv_access::v(kv, il);

    headkv_layer res;
    res.il            = il;
    res.n_head        = hparams.n_head(res.il);
    res.n_head_kv     = hparams.n_head_kv(res.il);
    res.n_embd_head_k = hparams.n_embd_head_k(res.il);
    res.n_embd_head_v = hparams.n_embd_head_v(res.il);
    res.row_bytes_k   = ggml_row_size(headkv_access::k(kv, il)->type, res.n_embd_head_k);
    res.row_bytes_v   = v ? ggml_row_size(v->type, res.n_embd_head_v) : 0;
    return res;
}

headkv_store::headkv_store(llama_kv_cache & kv, uint32_t n_cells_max) : kv(kv), n_cells_max(n_cells_max), bufts(headkv_access::bufts(kv)) {
    for (size_t i = 0; i < headkv_access::n_layer(kv); ++i) {
        const uint32_t il = headkv_access::il(kv, i);
        if (headkv_access::hparams(kv).n_head_kv(il) == 0) {
            continue; // upstream caches nothing for it, in an empty tensor
        }
        for (const auto & [reader, owner] : headkv_access::layer_ids(kv)) {
            if (owner == (int32_t) i) {
                index_of[reader] = shapes.size();
            }
        }
        shapes.push_back(shape_of(kv, il));
    }
    account();
}

void headkv_store::attach(llama_context & ctx) {
    ctx.synchronize();
    if (n_cells_used() == 0 && kv.get_size() > N_CELLS_STEP) {
        headkv_tail small = headkv_access::make_tail(kv, bufts, N_CELLS_STEP, {});
        headkv_access::swap_tail(kv, small);
        small = {};
        return_memory_to_system();
    }

    // upstream allows only its own code to write this: the graphs find the store through the context's parameters
    lctx = &ctx;
    const_cast<llama_cparams &>(ctx.get_cparams()).headkv = this;
    bump_epoch();
    reset_peak();
}

//
// facts
//

std::vector<uint32_t> headkv_store::n_head_kv() const {
    std::vector<uint32_t> res;
    for (const auto & layer : shapes) {
        res.push_back(layer.n_head_kv);
    }
    return res;
}

uint32_t headkv_store::n_cells_used() const {
    return headkv_access::cells(kv).get_used();
}

uint32_t headkv_store::n_pos() const {
    // the tail may have been cut away whole
    return std::max((uint32_t) (headkv_access::cells(kv).seq_pos_max(0) + 1), hot_rows.n_pos());
}

uint64_t headkv_store::bytes_tail() const {
    return archive ? archive->bytes_resident() : headkv_access::bytes(kv);
}

std::string headkv_store::beside_reason() const {
    const bool is_alone = !lctx || lctx->get_memory() == &kv; // before attach() nothing is known
    return is_alone ? "" : "other layers of the model have memory of their own (sliding windows or recurrent states)";
}

static uint64_t bytes_of(const llama_memory_i & memory) {
    uint64_t res = 0;
    for (const auto & [buft, n_bytes] : memory.memory_breakdown()) {
        res += n_bytes;
    }
    return res;
}

uint64_t headkv_store::bytes_beside() const {
    return beside_reason().empty() ? 0 : bytes_of(*lctx->get_memory()) - bytes_of(kv);
}

size_t headkv_store::index(size_t i) const { return headkv_access::index(kv, shapes[i].il); }

std::vector<headkv_cut_layer> headkv_store::cut_layers() const {
    std::vector<headkv_cut_layer> res;
    for (const auto & layer : shapes) {
        res.push_back({ headkv_access::k(kv, layer.il), headkv_access::v(kv, layer.il) });
    }
    return res;
}

headkv_bufts headkv_store::cut_bufts() const {
    headkv_bufts res;
    for (size_t i = 0; i < shapes.size(); ++i) {
        res.push_back(bufts[index(i)]);
    }
    return res;
}

headkv_view headkv_store::view() {
    const auto used  = headkv_access::cells_of(kv, 0, n_pos());
    const auto cells = std::make_shared<const std::vector<int32_t>>(used.begin(), used.end());

    headkv_view res { n_pos(), {}, headkv_access::hadamard_v(kv), observation, {}, {} };
    if (archive) {
        res.prefetch  = [this](size_t i, bool is_rows) { prefetch(i, is_rows ? n_pos() : 0); };
        res.give_back = [this](size_t i) { give_back(i); };
    }
    for (size_t i = 0; i < shapes.size(); ++i) {
        const auto & layer = shapes[i];
        const auto rows_of = [&](ggml_tensor * t) {
            return headkv_rows(headkv_backend_of(lctx->get_sched(), t), t, layer.n_head_kv, cells);
        };
        res.layers.push_back({
            layer,
            { layer.il, rows_of(headkv_access::k(kv, layer.il)), rows_of(headkv_access::v(kv, layer.il)), bufts[index(i)] },
            headkv_access::model(kv).layers[layer.il].wo,
        });
    }
    return res;
}

// graphs that were built before the epoch are not used again
void headkv_store::bump_epoch() noexcept {
    if (lctx) {
        const_cast<llama_cparams &>(lctx->get_cparams()).headkv_epoch++;
    }
}

// bytes_extra: buffers that exist at this moment besides those of the store and the tail
void headkv_store::account(size_t bytes_extra) {
    account_peak(bytes_tail() + bytes_extra);
}

// bytes: besides hot rows and what is observed
void headkv_store::account_peak(uint64_t bytes) {
    const uint64_t now = hot_rows.bytes() + observation.bytes() + bytes;
    for (uint64_t peak = bytes_peak; peak < now && !bytes_peak.compare_exchange_weak(peak, now);) {}
}

void headkv_store::prefetch(size_t i, uint32_t n_cells) const noexcept {
    if (archive) {
        archive->prefetch(index(i), n_cells);
    }
}

void headkv_store::give_back(size_t i, size_t bytes_extra) {
    if (archive) {
        account_peak(archive->bytes_resident(index(i)) + bytes_extra);
        archive->give_back(index(i));
    }
}

void headkv_store::reset_peak() {
    bytes_peak = 0;
    account();
}

headkv_stats headkv_store::stats() const {
    uint64_t n_heads = 0;
    for (const auto & layer : shapes) {
        n_heads += layer.n_head_kv;
    }

    headkv_stats res = {};
    res.n_pos         = n_pos();
    res.n_pos_hot     = hot_rows.n_pos();
    res.n_cells       = kv.get_size();
    res.n_cells_used  = n_cells_used();
    res.n_rows_full   = n_pos()*n_heads;
    res.n_rows_hot    = hot_rows.n_rows();
    res.n_rows_tail   = n_cells_used()*n_heads;
    res.bytes_hot     = hot_rows.bytes();
    res.bytes_tail    = bytes_tail();
    res.bytes_observed = observation.bytes();
    res.bytes_beside  = bytes_beside();
    res.bytes_archive = archive ? archive->bytes() : parked ? parked->archive->bytes() : 0;
    res.n_pos_archive = archive ? n_pos() : parked ? parked->n_pos : 0;
    res.bytes_peak    = bytes_peak;
    res.n_grow        = n_grow;
    res.ms_select     = ms_select;
    return res;
}

//
// size of the tail
//

void headkv_store::reserve(uint32_t n_cells) {
    if (n_cells > n_cells_max) {
        headkv_fail(HEADKV_STATUS_INVALID_ARGUMENT, "%u cells are more than the context's %u", n_cells, n_cells_max);
    }
    if (n_cells <= kv.get_size()) {
        return;
    }

    n_cells_wanted = std::min(pad_cells(n_cells, !hot_rows.exist()), n_cells_max);
    lctx->memory_update(/*.optimize =*/ true);

    if (kv.get_size() < n_cells) {
        headkv_fail(HEADKV_STATUS_NO_MEMORY, "out of memory: the cache could not grow to %u cells", n_cells);
    }
}

bool headkv_store::want_cells(uint32_t n_tokens) {
    const uint32_t n_need = n_cells_used() + n_tokens;
    if (n_need > n_cells_max || (n_need <= kv.get_size() && hold(n_need))) {
        return false;
    }
    // some more than are needed, so that not every token grows the tail
    n_cells_wanted = std::min(pad_cells(n_need + n_need/8, !hot_rows.exist()), n_cells_max);
    return true;
}

// false: the archive has no room for so many cells
bool headkv_store::hold(uint32_t n_cells) noexcept {
    try {
        if (archive) {
            archive->hold(n_cells);
        }
        return true;
    } catch (const std::exception & err) {
        LLAMA_LOG_WARN("%s: %s\n", __func__, err.what());
        return false;
    }
}

bool headkv_store::update() {
    if (n_cells_wanted == 0) {
        return false;
    }
    const uint32_t n_cells = n_cells_wanted;
    n_cells_wanted = 0;
    try {
        commit(headkv_transition_grow(kv, bufts, n_cells));
    } catch (const std::exception & err) {
        LLAMA_LOG_ERROR("%s: %s\n", __func__, err.what());
        return false;
    }
    n_grow++;
    return true;
}

bool headkv_store::make_room(uint32_t n_cells) {
    if (n_cells <= kv.get_size() && hold(n_cells)) {
        return true;
    }
    if (!is_attached() || n_cells > n_cells_max) {
        LLAMA_LOG_ERROR("%s: no room for %u cells (attached: %d, at most %u)\n", __func__, n_cells, is_attached(), n_cells_max);
        return false;
    }
    n_cells_wanted = n_cells;
    return update();
}

//
// observation
//

void headkv_store::observe(uint32_t n_before, uint32_t n_tokens, headkv_observe_what what) {
    if (hot_rows.exist()) {
        headkv_fail(HEADKV_STATUS_WRONG_STATE, "the cache is compressed already");
    }
    stop_observing();
    if (n_tokens == 0) {
        return;
    }
    reserve(n_cells_used() + n_before + n_tokens);
    start_observing({ (int32_t) (n_pos() + n_before), n_tokens }, what);
}

void headkv_store::start_observing(headkv_window window, headkv_observe_what what, const headkv_place & place) {
    const uint32_t n_cells = std::min(kv.get_size(), (uint32_t) GGML_PAD(window.end(), N_CELLS_STOCK));

    std::vector<headkv_observed> observed;
    for (size_t i = 0; i < shapes.size(); ++i) {
        const auto n_readers = std::count_if(index_of.begin(), index_of.end(), [&](const auto & x) { return x.second == i; });
        observed.push_back({ shapes[i], n_cells, bufts[index(i)], (uint32_t) n_readers });
    }
    observation.start(window, what, observed, place ? place : [&](size_t i, ggml_tensor * t) {
        return archive && ggml_backend_buft_is_host(bufts[index(i)]) && archive->place_observed(index(i), t);
    });
    account();
    bump_epoch();
}

void headkv_store::stop_observing() {
    if (!observation.is_on()) {
        return;
    }
    lctx->synchronize();
    bump_epoch();
    observation.stop();
}

uint32_t headkv_store::n_ubatch_max(uint32_t n_tokens, uint32_t n_ubatch) const {
    return observation.is_on() ? headkv_observe_n_ubatch(observation, (int32_t) n_pos(), n_tokens, n_ubatch) : n_ubatch;
}

//
// scores
//

std::vector<float> headkv_store::attention(size_t i) {
    lctx->synchronize();
    prefetch(i, 0);
    auto res = headkv_score_attention(view(), i, observation.window().n);
    give_back(i);
    return res;
}

std::vector<float> headkv_store::scores(size_t i, const headkv_score_params & params) {
    lctx->synchronize();
    if (headkv_scorer_of(params).needs != HEADKV_OBSERVE_ATTN_MEAN) {
        check_can_compress(params.n_obs);
    }
    prefetch(i, headkv_scorer_of(params).is_parallel ? 0 : n_pos());
    auto res = headkv_score_pooled(view(), i, params);
    give_back(i);
    return res;
}

std::vector<float> headkv_store::semantics(size_t i, uint32_t n_top) {
    lctx->synchronize();
    prefetch(i, n_pos());
    auto res = headkv_score_semantics(view(), i, n_top);
    give_back(i);
    return res;
}

//
// compression
//

void headkv_store::check_can_compress(uint32_t n_obs) const {
    if (hot_rows.exist()) {
        headkv_fail(HEADKV_STATUS_WRONG_STATE, "the cache is compressed already");
    }
    if (headkv_access::cells(kv).get_has_shift()) {
        headkv_fail(HEADKV_STATUS_WRONG_STATE, "a position shift is pending: decode once before compressing");
    }
    if (n_cells_used() != n_pos()) {
        headkv_fail(HEADKV_STATUS_WRONG_STATE,
            "the cache holds %u cells for %u positions: only one sequence without gaps can be compressed", n_cells_used(), n_pos());
    }
    if (n_obs >= n_pos()) {
        headkv_fail(HEADKV_STATUS_INVALID_ARGUMENT, "n_obs = %u leaves nothing to compress of %u positions", n_obs, n_pos());
    }
}

void headkv_store::compress(const headkv_compress_params & params) {
    headkv_select_check(params);
    check_can_compress(params.score.n_obs);

    const headkv_plan plan = headkv_plan_make({
        n_pos(), params.score.n_obs, params.n_sink, params.n_rows, params.n_rows_size, params.spans, params.n_spans,
    }, n_head_kv());

    const int64_t t_start = ggml_time_us();
    lctx->synchronize();
    const headkv_view now = view();
    auto pos = headkv_select(now, plan, params);
    const double ms = (ggml_time_us() - t_start)/1000.0;

    transition(now, plan, std::move(pos), params.n_threads);
    ms_select = ms;
}

void headkv_store::keep(
        uint32_t n_obs, const uint32_t * n_kept, uint32_t n_kept_size, const int32_t * pos, size_t pos_size, uint32_t n_threads) {
    const headkv_plan plan = headkv_plan_make_explicit(n_pos(), n_obs, n_head_kv(), n_kept, n_kept_size, pos, pos_size);
    check_can_compress(n_obs);
    lctx->synchronize();

    headkv_kept_positions rows(shapes.size());
    for (size_t i = 0; i < shapes.size(); ++i) {
        for (uint32_t ih = 0; ih < plan.layers[i].n_head_kv(); ++ih) {
            rows[i].emplace_back(pos, pos + plan.layers[i].len(ih));
            pos += plan.layers[i].len(ih);
        }
    }
    transition(view(), plan, std::move(rows), n_threads);
    ms_select = 0;
}

void headkv_store::transition(const headkv_view & now, const headkv_plan & plan, headkv_kept_positions pos, uint32_t n_threads) {
    headkv_transition fresh = room_for(now, plan);
    fill(fresh, now, plan, std::move(pos), n_threads);
    headkv_transition_finish(fresh, kv, plan);
    commit(std::move(fresh));
    return_memory_to_system();
}

void headkv_store::fill(
        headkv_transition & fresh, const headkv_view & now, const headkv_plan & plan, headkv_kept_positions pos, uint32_t n_threads) {
    for (size_t i = 0; i < now.layers.size(); ++i) {
        prefetch(i, n_pos());
        headkv_transition_fill(fresh, kv, plan, i, std::move(pos[i]), now.layers[i].rows, n_threads);
        give_back(i, fresh.bytes());
    }
}

static std::vector<headkv_layer_rows> rows_of(const headkv_view & now) {
    std::vector<headkv_layer_rows> res;
    for (const auto & layer : now.layers) {
        res.push_back(layer.rows);
    }
    return res;
}

headkv_transition headkv_store::room_for(const headkv_view & now, const headkv_plan & plan) const {
    return headkv_transition_room(kv, bufts, plan, rows_of(now), std::min(pad_cells(plan.n_obs + 1, false), n_cells_max));
}

// nothing fails here. Old graphs are retired before the tensors that they point to are freed
void headkv_store::commit(headkv_transition fresh) {
    account(fresh.bytes());
    if (fresh.hot) {
        stop_observing();
    }
    const uint32_t n = n_pos();
    swap(fresh);
    if (fresh.archive && is_archive_kept) {
        parked = headkv_parked { std::move(fresh.tail), std::move(fresh.archive), n };
    }
}

void headkv_store::swap(headkv_transition & other) noexcept {
    bump_epoch();
    if (other.hot) {
        std::swap(hot_rows, *other.hot);
    }
    headkv_access::swap_tail(kv, other.tail);
    std::swap(archive, other.archive);
}

//
// archive
//

void headkv_store::keep_archive(bool value) {
    is_archive_kept = value;
    if (!value) {
        parked.reset();
    }
}

void headkv_store::reopen(uint32_t n) {
    if (!parked) {
        headkv_fail(HEADKV_STATUS_WRONG_STATE, "no archive was kept of this cache");
    }
    if (n > n_pos()) {
        headkv_fail(HEADKV_STATUS_INVALID_ARGUMENT, "%u positions are more than the %u that there are", n, n_pos());
    }
    lctx->synchronize();
    headkv_transition whole = headkv_transition_reopen(kv, *parked, n);
    parked.reset();
    commit(std::move(whole));
    return_memory_to_system();
}

void headkv_store::clear() {
    if (lctx) {
        lctx->synchronize();
    }
    stop_observing();
    parked.reset();
    if (!hot_rows.exist() && !archive) {
        return;
    }
    bump_epoch();
    hot_rows = headkv_hot();
    if (archive) {
        leave_archive();
    }
    return_memory_to_system();
}

// upstream is about to forget all cells
void headkv_store::leave_archive() noexcept {
    try {
        headkv_transition empty { std::nullopt, headkv_access::make_tail(kv, bufts, N_CELLS_STEP, {}), nullptr };
        swap(empty);
    } catch (const std::exception & err) {
        LLAMA_LOG_WARN("%s: %s\n", __func__, err.what());
    }
}

void headkv_store::add_memory(std::map<ggml_backend_buffer_type_t, size_t> & sizes) const {
    hot_rows.add_memory(sizes);
    if (archive) { // upstream has counted its addresses
        size_t & n = sizes[ggml_backend_buffer_get_type(headkv_access::k(kv, shapes[0].il)->buffer)];
        n = n - archive->bytes_reserved() + archive->bytes_resident();
    }
}

// whether a token at position p finds all that it attends to in layers with a sliding window, which forget what is older
bool headkv_store::has_window_before(int32_t p) const {
    const llama_kv_cache * window = lctx && p < (int32_t) n_pos() ? headkv_window_cache(lctx->get_memory()) : nullptr;
    if (!window) {
        return true;
    }
    const int32_t first = std::max(0, p + 1 - (int32_t) headkv_access::n_window(*window));
    return headkv_access::cells_of(*window, first, p).size() == (size_t) (p - first);
}

bool headkv_store::remove(int32_t p0, int32_t p1) {
    if (sweep) {
        return true; // cells alone
    }
    p0 = std::max(p0, 0); // as upstream reads it
    if (!has_window_before(p0)) {
        LLAMA_LOG_DEBUG("%s: positions [%d, %d): the window before them is gone: refused\n", __func__, p0, p1);
        return false;
    }
    if (parked) {
        parked->n_pos = std::min(parked->n_pos, (uint32_t) p0);
    }

    const uint32_t n_pos_hot = hot_rows.n_pos();
    const bool is_end = p1 < 0 || p1 >= (int32_t) n_pos();
    if (p0 == 0 && is_end && archive && n_pos() > 0) { // without rows it holds memory alone, and would be parked beside what comes
        clear();
        return true;
    }
    if (p0 >= (int32_t) n_pos_hot) {
        if (observation.has_seen() && p0 < (int32_t) n_pos()) {
            observation.spoil();
        }
        return true;
    }
    if (p0 > 0 && is_end && parked) {
        try {
            reopen((uint32_t) p0);
            return true;
        } catch (const std::exception & err) {
            LLAMA_LOG_WARN("%s: %s\n", __func__, err.what());
            return false;
        }
    }
    if (p0 > 0 || !is_end) {
        LLAMA_LOG_DEBUG("%s: positions [%d, %d) start inside the hot rows' [0, %u): refused\n", __func__, p0, p1, n_pos_hot);
        return false;
    }
    clear();
    return true;
}

//
// attention
//

headkv_hot headkv_store::make_no_rows() {
    headkv_plan plan;
    for (const uint32_t n : n_head_kv()) {
        plan.layers.emplace_back(std::vector<uint32_t>(n, 0));
    }
    return headkv_hot(plan, rows_of(view()));
}

void headkv_store::set_unfused(bool value) {
    is_unfused = value;
    bump_epoch();
}

ggml_tensor * headkv_store::attend(const llm_graph_context & g, ggml_tensor * fa, int il) {
    const auto it = index_of.find(il);
    if (it == index_of.end()) {
        return fa;
    }
    // queries are those of the layer that has the rows; the attention of others that read them counts as much as its own
    if (observation.is_on() && (headkv_observes_attention(observation.what()) || shapes[it->second].il == (uint32_t) il)) {
        headkv_observe_build(*g.res, observation, it->second, fa, g.ubatch);
    }
    if (hot_rows.exist()) {
        return headkv_attn_build(*g.res, hot_rows.layer(it->second), fa, is_unfused);
    }
    const bool is_whole_fused = g.n_tokens <= n_fused && ggml_backend_buft_is_host(bufts[index(it->second)]);
    return is_whole_fused ? headkv_attn_build(*g.res, no_rows.layer(it->second), fa, /*.is_unfused =*/ false) : fa;
}
