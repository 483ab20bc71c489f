// store_read.cpp: the store's reading of tokens layer by layer: where the rows of a layer are while it is computed, and where they go
// when it is done.
//
//     read_into_archive   host memory: the tensors lie in the archive itself; device: a scratch, rows travel both ways
//     read_and_compress   a scratch for all; of each layer the hot rows and the window are left

#include "cache/select.h"
#include "cache/store.h"
#include "cache/sweep.h"
#include "cache/tail.h"
#include "core/error.h"

#include "llama-context.h"

#include <algorithm>

std::string headkv_store::sweep_reason() {
    if (const std::string reason = beside_reason(); !reason.empty()) {
        return reason;
    }
    lctx->synchronize();
    bump_epoch();
    return headkv_sweep::reason(*lctx, cut_layers());
}

void headkv_store::read(const int32_t * tokens, uint32_t n, const headkv_read_params & params) {
    if (hot_rows.exist()) {
        headkv_fail(HEADKV_STATUS_WRONG_STATE, "the cache is compressed already");
    }
    const uint32_t n_past = n_pos();
    if (n_cells_used() != n_past) {
        headkv_fail(HEADKV_STATUS_WRONG_STATE,
            "the cache holds %u cells for %u positions: only one sequence without gaps can be read on", n_cells_used(), n_past);
    }
    if (n == 0 || n_past + n > n_cells_max) {
        headkv_fail(HEADKV_STATUS_INVALID_ARGUMENT, "%u tokens after %u: the context has %u", n, n_past, n_cells_max);
    }
    const int64_t begin = (int64_t) n_past + n + params.n_ahead - params.n_observe; // of the window
    if (params.n_observe > 0 && (begin < n_past || begin > n_past + n)) {
        headkv_fail(HEADKV_STATUS_INVALID_ARGUMENT,
            "n_observe = %u of which n_ahead = %u come later, of %u tokens", params.n_observe, params.n_ahead, n);
    }
    if (const std::string reason = sweep_reason(); !reason.empty()) {
        throw headkv_error(HEADKV_STATUS_UNSUPPORTED, reason);
    }
    if (params.n_observe > 0) {
        stop_observing();
    }
    if (params.compress) {
        headkv_select_check(*params.compress);
        if (params.n_ahead > 0) {
            headkv_fail(HEADKV_STATUS_INVALID_ARGUMENT, "n_ahead = %u tokens are to come before the cache is compressed", params.n_ahead);
        }
    }
    const bool is_scored = params.compress && !params.compress->scores && n <= block_size(params); // by layer
    const bool is_alone  = is_scored && !params.compress->vote_weights && !is_archive_kept && !archive;
    is_alone ? read_and_compress(tokens, n, params) : read_into_archive(tokens, n, params, is_scored);
    return_memory_to_system();
}

uint32_t headkv_store::block_size(const headkv_read_params & params) const {
    return headkv_sweep::block_size(headkv_access::hparams(kv).n_embd, params.bytes_hidden);
}

// steps: what is done with the rows of a layer
void headkv_store::run_sweep(const int32_t * tokens, uint32_t n, const headkv_read_params & params, headkv_sweep_steps steps) {
    const uint32_t n_block = std::min(n, block_size(params));
    if (params.progress) {
        steps.progress = [&](uint64_t n_done, uint64_t n_total) { return params.progress(n_done, n_total, params.progress_data); };
    }
    headkv_sweep work(*lctx, cut_layers(), cut_bufts(), n_block);
    if (params.n_fused > 0) {
        no_rows = make_no_rows();
        n_fused = params.n_fused;
    }
    sweep = &work;
    const auto end = [&] {
        sweep   = nullptr;
        n_fused = 0;
        no_rows = headkv_hot();
    };
    try {
        work.run({ tokens, n, std::max(params.n_outputs, 1u), (int32_t) n_pos() }, steps);
    } catch (...) {
        lctx->synchronize(); // nothing is computed any more
        end();
        throw;
    }
    end();
}

bool headkv_store::cut(llm_graph_result & graph, uint32_t n_tokens) noexcept {
    if (!sweep) {
        return true;
    }
    bump_epoch(); // a cut graph is not used again
    return sweep->cut(graph, n_tokens);
}

//
// choosing rows while they are read
//

namespace {

// memory for what is observed in one layer of each device, in which all of them lie
struct shared_place {
    std::vector<ggml_backend_buffer_ptr> buffers;

    bool operator()(ggml_backend_buffer_type_t buft, ggml_tensor * t) {
        for (const auto & buffer : buffers) {
            if (ggml_backend_buffer_get_type(buffer.get()) == buft && ggml_backend_buffer_get_size(buffer.get()) >= ggml_nbytes(t)) {
                ggml_backend_tensor_alloc(buffer.get(), t, ggml_backend_buffer_get_base(buffer.get()));
                return true;
            }
        }
        buffers.push_back(headkv_alloc(ggml_nbytes(t), buft));
        return (*this)(buft, t);
    }

    size_t bytes() const {
        size_t res = 0;
        for (const auto & buffer : buffers) {
            res += ggml_backend_buffer_get_size(buffer.get());
        }
        return res;
    }
};

} // namespace

// what a cache is compressed to while it is read: of each layer the rows are chosen and gathered as soon as it was computed, or, where
// the heads of all layers vote, scored
struct headkv_store::compressing {
    const headkv_compress_params & how;
    const headkv_plan              plan;
    headkv_transition              fresh;
    shared_place                   observed;

    std::optional<headkv_view> current; // of the cache when a layer was read, the same for all layers

    std::vector<std::vector<float>> scores; // of each layer, for a vote

    double ms = 0; // scoring and choosing

    size_t bytes() const {
        size_t res = fresh.bytes() + observed.bytes();
        for (const auto & layer : scores) {
            res += layer.size()*sizeof(float);
        }
        return res;
    }
};

headkv_store::compressing headkv_store::begin_compressing(uint32_t n, const headkv_compress_params & how) {
    headkv_plan plan = headkv_plan_make({
        n_pos() + n, how.score.n_obs, how.n_sink, how.n_rows, how.n_rows_size, how.spans, how.n_spans,
    }, n_head_kv());
    headkv_transition fresh;
    if (!how.vote_weights) {
        fresh = room_for(view(), plan);
    }
    return { how, std::move(plan), std::move(fresh), {}, {}, {} };
}

// place: memory for what is observed, which a layer has when the one before it is done with
void headkv_store::observe_read_tokens(uint32_t n, const headkv_read_params & params, compressing * now) {
    if (params.n_observe == 0) {
        return;
    }
    headkv_place place;
    if (now) {
        place = [this, now](size_t i, ggml_tensor * t) { return now->observed(bufts[index(i)], t); };
    }
    const int32_t begin = (int32_t) (n_pos() + n + params.n_ahead - params.n_observe);
    start_observing({ begin, params.n_observe }, (headkv_observe_what) params.what, place);
}

void headkv_store::clear_observed(size_t i, const headkv_read_params & params) {
    if (params.n_observe > 0) {
        ggml_tensor * t = observation.at(i).gathered;
        ggml_backend_tensor_memset(t, 0, 0, ggml_nbytes(t));
    }
}

void headkv_store::choose(size_t i, compressing & now) {
    const int64_t t_start = ggml_time_us();
    if (!now.current) {
        now.current.emplace(view());
    }
    const headkv_view & current = *now.current;
    std::vector<std::vector<int32_t>> pos;
    if (now.how.vote_weights) {
        now.scores.push_back(headkv_select_scores(current, now.how, i));
    } else {
        pos = headkv_select_layer(current, now.plan, now.how, i);
    }
    now.ms += (ggml_time_us() - t_start)/1000.0;
    if (!now.how.vote_weights) {
        headkv_transition_fill(now.fresh, kv, now.plan, i, std::move(pos), current.layers[i].rows, now.how.n_threads);
    }
}

// all layers were read
void headkv_store::end_compressing(compressing & now) {
    if (now.how.vote_weights) {
        const int64_t t_start = ggml_time_us();
        const headkv_view current = view();
        auto pos = headkv_select_voted(current, now.plan, now.how, std::move(now.scores));
        now.ms += (ggml_time_us() - t_start)/1000.0;
        now.fresh = room_for(current, now.plan);
        fill(now.fresh, current, now.plan, std::move(pos), now.how.n_threads);
    }
    headkv_transition_finish(now.fresh, kv, now.plan);
    stop_observing();
    commit(std::move(now.fresh));
    ms_select = now.ms;
}

//
// into the archive
//

void headkv_store::read_into_archive(const int32_t * tokens, uint32_t n, const headkv_read_params & params, bool is_by_layer) {
    const uint32_t n_past = n_pos();

    std::optional<headkv_transition> before; // what the cache was
    std::optional<compressing>       now;
    if (!archive) {
        before = headkv_transition_archive(kv, n_cells_max, params.dir ? params.dir : "");
        account(before->bytes());
        swap(*before);
    }
    try {
        if (is_by_layer) {
            now.emplace(begin_compressing(n, *params.compress));
        }
        sweep_into_archive(tokens, n, params, now ? &*now : nullptr);
        if (now) {
            end_compressing(*now);
        } else if (params.compress) {
            compress(*params.compress);
        }
    } catch (...) {
        stop_observing();
        if (before) {
            swap(*before);
        } else {
            kv.seq_rm(0, (int32_t) n_past, -1);
        }
        bump_epoch();
        throw;
    }
}

void headkv_store::sweep_into_archive(const int32_t * tokens, uint32_t n, const headkv_read_params & params, compressing * now) {
    const uint32_t end = n_pos() + n;
    archive->hold(end);
    observe_read_tokens(n, params, now);

    const auto rows = headkv_access::rows(kv);
    headkv_scratch scratch(rows, bufts, std::min(kv.get_size(), (uint32_t) GGML_PAD(end, N_CELLS_STOCK)), /*.is_for_all =*/ false);
    const auto use = [&](bool in_scratch) noexcept {
        for (size_t i = 0; i < rows.size(); ++i) {
            headkv_access::set_rows(kv, i, in_scratch ? scratch.at(i) : rows[i]);
        }
    };

    headkv_sweep_steps steps;
    steps.begin_layer = [&](size_t i, int32_t pos) {
        prefetch(i, pos);
        scratch.load(index(i), 0, pos);
        if (now) {
            clear_observed(i, params);
        }
    };
    steps.end_batch   = [&](size_t i, int32_t pos, int32_t pos_end) { archive->write_behind(index(i), pos, pos_end); };
    steps.end_layer   = [&](size_t i, int32_t pos, int32_t pos_end) {
        if (now) {
            choose(i, *now);
        }
        const size_t n_bytes = scratch.bytes() + (now ? now->bytes() : 0);
        scratch.store(index(i), pos, pos_end, [this, i, n_bytes] { give_back(i, n_bytes); });
    };
    use(true);
    try {
        run_sweep(tokens, n, params, steps);
        scratch.wait();
    } catch (...) {
        use(false);
        throw;
    }
    use(false);
    bump_epoch();
}

//
// into a scratch
//

void headkv_store::read_and_compress(const int32_t * tokens, uint32_t n, const headkv_read_params & params) {
    const uint32_t n_past  = n_pos();
    const uint32_t n_cells = std::min(n_cells_max, (uint32_t) GGML_PAD(n_past + n, N_CELLS_STOCK));

    compressing          now = begin_compressing(n, *params.compress);
    const headkv_scratch scratch(headkv_access::rows(kv), bufts, n_cells, /*.is_for_all =*/ true);

    const auto there = headkv_access::cells_of(kv, 0, (int32_t) n_past);
    const auto rows  = headkv_access::rows(kv);
    const auto bytes = [&] { return now.bytes() + scratch.bytes(); };

    // before: while the layers are computed in the scratch, what the cache was
    headkv_transition before { std::nullopt, headkv_access::make_tail(kv, scratch, n_cells, there), nullptr };
    account(bytes());
    swap(before);
    try {
        observe_read_tokens(n, params, &now);
        headkv_sweep_steps steps;
        steps.begin_layer = [&](size_t i, int32_t) {
            headkv_access::copy_cells(rows[index(i)], there, scratch.at(index(i)));
            clear_observed(i, params);
        };
        steps.end_layer = [&](size_t i, int32_t, int32_t) {
            choose(i, now);
            account(bytes() + before.bytes());
        };
        run_sweep(tokens, n, params, steps);
        headkv_transition_finish(now.fresh, kv, now.plan);
    } catch (...) {
        stop_observing();
        swap(before);
        throw;
    }
    stop_observing();
    swap(now.fresh);
    ms_select = now.ms;
}
