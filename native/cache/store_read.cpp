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
    const bool is_by_layer = params.compress && !is_archive_kept && !archive && !params.compress->vote_weights && !params.compress->scores && n <= block_size(params);
    is_by_layer ? read_and_compress(tokens, n, params) : read_into_archive(tokens, n, params);
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

static headkv_window window_of(uint32_t n_past, uint32_t n, const headkv_read_params & params) {
    return { (int32_t) (n_past + n + params.n_ahead - params.n_observe), params.n_observe };
}

//
// into the archive
//

void headkv_store::read_into_archive(const int32_t * tokens, uint32_t n, const headkv_read_params & params) {
    const uint32_t n_past = n_pos();

    std::optional<headkv_transition> before; // what the cache was
    if (!archive) {
        before = headkv_transition_archive(kv, n_cells_max, params.dir ? params.dir : "");
        account(before->bytes());
        swap(*before);
    }
    try {
        sweep_into_archive(tokens, n, params);
        if (params.compress) {
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

void headkv_store::sweep_into_archive(const int32_t * tokens, uint32_t n, const headkv_read_params & params) {
    const uint32_t end = n_pos() + n;
    archive->hold(end);
    if (params.n_observe > 0) {
        start_observing(window_of(n_pos(), n, params), (headkv_observe_what) params.what);
    }

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
    };
    steps.end_batch   = [&](size_t i, int32_t pos, int32_t pos_end) { archive->write_behind(index(i), pos, pos_end); };
    steps.end_layer   = [&](size_t i, int32_t pos, int32_t pos_end) {
        scratch.store(index(i), pos, pos_end, [this, i, n_bytes = scratch.bytes()] { give_back(i, n_bytes); });
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
// and compress
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

void headkv_store::read_and_compress(const int32_t * tokens, uint32_t n, const headkv_read_params & params) {
    const headkv_compress_params & how = *params.compress;
    const uint32_t n_past  = n_pos();
    const uint32_t n_cells = std::min(n_cells_max, (uint32_t) GGML_PAD(n_past + n, N_CELLS_STOCK));

    const headkv_plan plan = headkv_plan_make({
        n_past + n, how.score.n_obs, how.n_sink, how.n_rows, how.n_rows_size, how.spans, how.n_spans,
    }, n_head_kv());

    headkv_transition    fresh = room_for(view(), plan);
    const headkv_scratch scratch(headkv_access::rows(kv), bufts, n_cells, /*.is_for_all =*/ true);
    shared_place         observed;

    const auto there = headkv_access::cells_of(kv, 0, (int32_t) n_past);
    const auto rows  = headkv_access::rows(kv);
    const auto bytes = [&] { return fresh.bytes() + scratch.bytes() + observed.bytes(); };

    // before: while the layers are computed in the scratch, what the cache was
    headkv_transition before { std::nullopt, headkv_access::make_tail(kv, scratch, n_cells, there), nullptr };
    double ms = 0;
    account(bytes());
    swap(before);
    try {
        if (params.n_observe > 0) {
            start_observing(window_of(n_past, n, params), (headkv_observe_what) params.what,
                [&](size_t i, ggml_tensor * t) { return observed(bufts[index(i)], t); });
        }
        headkv_sweep_steps steps;
        steps.begin_layer = [&](size_t i, int32_t) {
            headkv_access::copy_cells(rows[index(i)], there, scratch.at(index(i)));
            if (params.n_observe > 0) {
                ggml_tensor * t = observation.at(i).gathered;
                ggml_backend_tensor_memset(t, 0, 0, ggml_nbytes(t));
            }
        };
        steps.end_layer = [&](size_t i, int32_t, int32_t) {
            const int64_t t_start = ggml_time_us();
            const headkv_view now = view();
            auto pos = headkv_select_layer(now, plan, how, i);
            ms += (ggml_time_us() - t_start)/1000.0;
            headkv_transition_fill(fresh, kv, plan, i, std::move(pos), now.layers[i].rows, how.n_threads);
            account(bytes() + before.bytes());
        };
        run_sweep(tokens, n, params, steps);
        headkv_transition_finish(fresh, kv, plan);
    } catch (...) {
        stop_observing();
        swap(before);
        throw;
    }
    stop_observing();
    swap(fresh);
    ms_select = ms;
}
