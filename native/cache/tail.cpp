#include "cache/tail.h"

#include "llama-hparams.h"

#include <algorithm>

bool headkv_access::is_plain(const llama_kv_cache & kv) {
    return kv.n_stream == 1 && kv.n_seq_max == 1 && !kv.other && !kv.v_trans && kv.swa_type == LLAMA_SWA_TYPE_NONE &&
           kv.layers.size() == kv.map_layer_ids.size();
}

std::vector<uint32_t> headkv_access::cells_of(const llama_kv_cache & kv, int32_t p0, int32_t p1) {
    std::vector<uint32_t> res;
    for (const auto & [pos, cell] : cells(kv).seq_pos_get(0)) {
        if (pos >= p0 && pos < p1) {
            res.push_back(cell);
        }
    }
    return res;
}

std::vector<float> headkv_access::hadamard_v(const llama_kv_cache & kv) {
    static constexpr int64_t N_MIXED = 64; // build_input_v_rot()
    return kv.attn_rot_v ? kv.attn_rot_hadamard.at(N_MIXED) : std::vector<float>();
}

size_t headkv_access::bytes(const llama_kv_cache & kv) {
    size_t res = 0;
    for (const auto & [ctx, buf] : kv.ctxs_bufs) {
        res += ggml_backend_buffer_get_size(buf.get());
    }
    return res;
}

// neighbouring cells are copied together; a cache that was filled from empty is one run
static std::vector<headkv_cell_run> find_runs(const std::vector<uint32_t> & keep) {
    std::vector<headkv_cell_run> runs;
    for (uint32_t dst = 0; dst < keep.size(); ++dst) {
        if (!runs.empty() && runs.back().src + runs.back().n == keep[dst]) {
            runs.back().n++;
        } else {
            runs.push_back({ keep[dst], dst, 1 });
        }
    }
    return runs;
}

static void copy_runs(const std::vector<headkv_cell_run> & runs, ggml_tensor * src, ggml_tensor * dst) {
    for (const auto & run : runs) {
        ggml_context_ptr ctx { ggml_init({ 2*ggml_tensor_overhead(), nullptr, /*.no_alloc =*/ true }) };

        ggml_tensor * from = ggml_view_2d(ctx.get(), src, src->ne[0], run.n, src->nb[1], run.src*src->nb[1]); // [n_embd_gqa, n]
        ggml_tensor * to   = ggml_view_2d(ctx.get(), dst, dst->ne[0], run.n, dst->nb[1], run.dst*dst->nb[1]);
        ggml_backend_view_init(from);
        ggml_backend_view_init(to);

        ggml_backend_tensor_copy(from, to);
    }
}

// like t, which may be missing, with n_cells cells
static ggml_tensor * new_cells(ggml_context * ctx, const ggml_tensor * t, uint32_t n_cells) {
    return t ? ggml_set_name(ggml_new_tensor_3d(ctx, t->type, t->ne[0], n_cells, 1), t->name) : nullptr;
}

static ggml_tensor * view_cells(ggml_context * ctx, ggml_tensor * t) {
    return t ? ggml_view_2d(ctx, t, t->ne[0], t->ne[1], t->nb[1], 0) : nullptr;
}

headkv_tail headkv_access::make_tail(const llama_kv_cache & kv, uint32_t n_cells, const std::vector<uint32_t> & keep) {
    headkv_tail tail;

    // as upstream: one context and one buffer per buffer type, all layers of a device in one
    std::vector<ggml_backend_buffer_type_t> bufts;

    for (const auto & layer : kv.layers) {
        const auto buft = ggml_backend_buffer_get_type(layer.k->buffer);

        const size_t ib = std::find(bufts.begin(), bufts.end(), buft) - bufts.begin();
        if (ib == bufts.size()) {
            bufts.push_back(buft);
            tail.buffers.push_back({ ggml_context_ptr(ggml_init({ 4*kv.layers.size()*ggml_tensor_overhead(), nullptr, /*.no_alloc =*/ true })), nullptr });
        }
        ggml_context * ctx = tail.buffers[ib].ctx.get();

        ggml_tensor * k = new_cells(ctx, layer.k, n_cells);
        ggml_tensor * v = new_cells(ctx, layer.v, n_cells);
        tail.layers.push_back({ k, v, view_cells(ctx, k), view_cells(ctx, v) });
    }

    for (size_t ib = 0; ib < bufts.size(); ++ib) {
        tail.buffers[ib].buf = headkv_alloc(tail.buffers[ib].ctx.get(), bufts[ib]);
    }

    const auto runs = find_runs(keep);
    for (size_t i = 0; i < kv.layers.size(); ++i) {
        copy_runs(runs, kv.layers[i].k, tail.layers[i].k);
        if (kv.layers[i].v) {
            copy_runs(runs, kv.layers[i].v, tail.layers[i].v);
        }
    }

    tail.cells.resize(n_cells);
    tail.cells.set(0, cells(kv).cp(keep));
    tail.head = (uint32_t) keep.size();

    return tail;
}

std::vector<headkv_buffer> headkv_access::swap_tail(llama_kv_cache & kv, headkv_tail tail) noexcept {
    // the two vectors of buffers have one element per buffer type: the same number
    for (size_t i = 0; i < kv.ctxs_bufs.size(); ++i) {
        std::swap(kv.ctxs_bufs[i].first,  tail.buffers[i].ctx);
        std::swap(kv.ctxs_bufs[i].second, tail.buffers[i].buf);
    }

    for (size_t i = 0; i < kv.layers.size(); ++i) {
        kv.layers[i].k           = tail.layers[i].k;
        kv.layers[i].v           = tail.layers[i].v;
        kv.layers[i].k_stream[0] = tail.layers[i].k_stream;
        kv.layers[i].v_stream[0] = tail.layers[i].v_stream;
    }

    std::swap(kv.v_cells[0], tail.cells);
    kv.v_heads[0] = tail.head;

    return std::move(tail.buffers);
}
