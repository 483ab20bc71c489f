#include "cache/tail.h"

#include "rows/layer_archive.h"

#include "llama-hparams.h"

#include <algorithm>

bool headkv_access::is_plain(const llama_kv_cache & kv) {
    return kv.n_stream == 1 && kv.n_seq_max == 1 && is_own(kv) && !kv.v_trans && kv.swa_type == LLAMA_SWA_TYPE_NONE;
}

bool headkv_access::is_own(const llama_kv_cache & kv) { return !kv.other; }

std::vector<uint32_t> headkv_access::cells_of(const llama_kv_cells & cells, int32_t p0, int32_t p1) {
    std::vector<uint32_t> res;
    for (const auto & [pos, cell] : cells.seq_pos_get(0)) {
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
std::vector<headkv_cell_run> headkv_cell_runs(const std::vector<uint32_t> & keep, uint32_t first) {
    std::vector<headkv_cell_run> runs;
    for (uint32_t i = 0; i < keep.size(); ++i) {
        if (!runs.empty() && runs.back().src + runs.back().n == keep[i]) {
            runs.back().n++;
        } else {
            runs.push_back({ keep[i], first + i, 1 });
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

size_t headkv_tail::bytes() const {
    size_t res = 0;
    for (const auto & [ctx, buf] : buffers) {
        res += buf ? ggml_backend_buffer_get_size(buf.get()) : 0;
    }
    return res;
}

std::vector<ggml_backend_buffer_type_t> headkv_access::bufts(const llama_kv_cache & kv) {
    std::vector<ggml_backend_buffer_type_t> res;
    for (const auto & layer : kv.layers) {
        res.push_back(ggml_backend_buffer_get_type(layer.k->buffer));
    }
    return res;
}

// n_cells empty cells, and tensors for them without memory, layer i of them in the context and buffer number of[i]
static headkv_tail new_tail(const std::vector<headkv_kv> & like, uint32_t n_cells, const std::vector<size_t> & of) {
    headkv_tail tail;
    for (size_t i = 0; i < like.size(); ++i) {
        while (tail.buffers.size() <= of[i]) {
            tail.buffers.emplace_back(ggml_init({ 4*like.size()*ggml_tensor_overhead(), nullptr, /*.no_alloc =*/ true }), nullptr);
        }
        ggml_context * ctx = tail.buffers[of[i]].first.get();

        ggml_tensor * k = new_cells(ctx, like[i].k, n_cells);
        ggml_tensor * v = new_cells(ctx, like[i].v, n_cells);
        tail.layers.push_back({ k, v, view_cells(ctx, k), view_cells(ctx, v) });
    }
    tail.cells.resize(n_cells);
    return tail;
}

std::vector<headkv_kv> headkv_access::rows(const llama_kv_cache & kv) {
    std::vector<headkv_kv> res;
    for (const auto & layer : kv.layers) {
        res.push_back({ layer.k, layer.v });
    }
    return res;
}

void headkv_access::copy_cells(const headkv_kv & from, const std::vector<uint32_t> & cells, const headkv_kv & to, uint32_t first) {
    const auto runs = headkv_cell_runs(cells, first);
    copy_runs(runs, from.k, to.k);
    if (from.v) {
        copy_runs(runs, from.v, to.v);
    }
}

void headkv_access::set_tokens(headkv_tail & tail, const int32_t * tokens, uint32_t n) {
    for (uint32_t c = 0; c < n; ++c) {
        llama_kv_cell_ext ext;
        ext.tok = tokens[c];
        tail.cells.pos_set(c, (llama_pos) c);
        tail.cells.ext_set(c, ext);
        tail.cells.seq_add(c, 0);
    }
    tail.head = n;
}

void headkv_access::set_cells(headkv_tail & tail, const llama_kv_cache & kv, const std::vector<uint32_t> & cells_kept) {
    tail.cells.set(0, cells(kv).cp(cells_kept));
    tail.head = (uint32_t) cells_kept.size();
}

// all of the given cells, in every layer
static void fill_tail(const llama_kv_cache & kv, const std::vector<uint32_t> & keep, headkv_tail & tail) {
    const auto rows = headkv_access::rows(kv);
    for (size_t i = 0; i < rows.size(); ++i) {
        headkv_access::copy_cells(rows[i], keep, { tail.layers[i].k, tail.layers[i].v });
    }
    headkv_access::set_cells(tail, kv, keep);
}

headkv_tail headkv_access::make_tail(
        const llama_kv_cache & kv, const std::vector<ggml_backend_buffer_type_t> & bufts, uint32_t n_cells, const std::vector<uint32_t> & keep) {
    // as upstream: one context and one buffer per buffer type, all layers of a device in one
    std::vector<ggml_backend_buffer_type_t> all;
    std::vector<size_t> of;
    for (const auto buft : bufts) {
        of.push_back(std::find(all.begin(), all.end(), buft) - all.begin());
        if (of.back() == all.size()) {
            all.push_back(buft);
        }
    }
    headkv_tail tail = new_tail(rows(kv), n_cells, of);
    for (size_t ib = 0; ib < all.size(); ++ib) {
        tail.buffers[ib].second = headkv_alloc(tail.buffers[ib].first.get(), all[ib]);
    }
    fill_tail(kv, keep, tail);
    return tail;
}

headkv_tail headkv_access::make_tail(const llama_kv_cache & kv, headkv_layer_archive & archive, const std::vector<uint32_t> & keep) {
    headkv_tail tail = new_tail(rows(kv), archive.n_cells(), std::vector<size_t>(kv.layers.size(), 0));
    tail.buffers[0].second = archive.buffer();
    archive.hold((uint32_t) keep.size());
    for (size_t i = 0; i < kv.layers.size(); ++i) {
        const auto & layer = tail.layers[i];
        archive.place(i, layer.k, layer.v);
        ggml_backend_view_init(layer.k_stream);
        if (layer.v) {
            ggml_backend_view_init(layer.v_stream);
        }
    }
    fill_tail(kv, keep, tail);
    return tail;
}

headkv_tail headkv_access::make_tail(
        const llama_kv_cache & kv, const headkv_scratch & scratch, uint32_t n_cells, const std::vector<uint32_t> & keep) {
    headkv_tail tail;
    for (size_t i = 0; i < kv.layers.size(); ++i) {
        tail.layers.push_back({ scratch.at(i).k, scratch.at(i).v, nullptr, nullptr });
    }
    tail.cells.resize(n_cells);
    tail.cells.set(0, cells(kv).cp(keep));
    tail.head = (uint32_t) keep.size();
    return tail;
}

void headkv_access::swap_tail(llama_kv_cache & kv, headkv_tail & tail) noexcept {
    std::swap(kv.ctxs_bufs, tail.buffers);
    for (size_t i = 0; i < kv.layers.size(); ++i) {
        std::swap(kv.layers[i].k,           tail.layers[i].k);
        std::swap(kv.layers[i].v,           tail.layers[i].v);
        std::swap(kv.layers[i].k_stream[0], tail.layers[i].k_stream);
        std::swap(kv.layers[i].v_stream[0], tail.layers[i].v_stream);
    }
    std::swap(kv.v_cells[0], tail.cells);
    std::swap(kv.v_heads[0], tail.head);
}
