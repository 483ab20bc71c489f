#include "cache/transition.h"

#include <algorithm>

size_t headkv_transition::bytes() const {
    return (archive ? archive->bytes_resident() : tail.bytes()) + (hot ? hot->bytes() : 0);
}

static std::vector<uint32_t> used_cells(const llama_kv_cache & kv) {
    std::vector<uint32_t> res;
    for (uint32_t c = 0; c < kv.get_size(); ++c) {
        if (!headkv_access::cells(kv).is_empty(c)) {
            res.push_back(c);
        }
    }
    return res;
}

headkv_transition headkv_transition_grow(const llama_kv_cache & kv, const headkv_bufts & bufts, uint32_t n_cells) {
    return { std::nullopt, headkv_access::make_tail(kv, bufts, n_cells, used_cells(kv)), nullptr };
}

static std::vector<headkv_cell_bytes> cell_bytes(const llama_kv_cache & kv) {
    const auto bytes = [](const ggml_tensor * t) { return t ? t->nb[1] : 0; };
    std::vector<headkv_cell_bytes> res;
    for (const auto & layer : headkv_access::rows(kv)) {
        const auto     & hparams = headkv_access::hparams(kv);
        const uint32_t   il      = headkv_access::il(kv, res.size());
        const size_t     queries = sizeof(float)*hparams.n_embd_head_k(il)*hparams.n_head(il); // the most that is observed
        res.push_back({ bytes(layer.k), bytes(layer.v), queries });
    }
    return res;
}

headkv_transition headkv_transition_archive(const llama_kv_cache & kv, uint32_t n_cells, const std::string & dir) {
    auto archive = std::make_unique<headkv_layer_archive>(cell_bytes(kv), n_cells, dir);
    auto tail    = headkv_access::make_tail(kv, *archive, used_cells(kv));
    return { std::nullopt, std::move(tail), std::move(archive) };
}

headkv_transition headkv_transition_reopen(const llama_kv_cache & kv, headkv_parked & parked, uint32_t n_pos) {
    const int32_t n_parked = (int32_t) std::min(parked.n_pos, n_pos);
    const auto    behind   = headkv_access::cells_of(kv, n_parked, (int32_t) n_pos);

    llama_kv_cells cells = parked.tail.cells;
    for (uint32_t c = 0; c < cells.size(); ++c) {
        if (!cells.is_empty(c) && cells.pos_get(c) >= n_parked) {
            cells.rm(c);
        }
    }
    const uint32_t first = cells.used_max_p1();
    parked.archive->hold(first + (uint32_t) behind.size());
    cells.set(first, headkv_access::cells(kv).cp(behind));

    const auto rows = headkv_access::rows(kv);
    for (size_t i = 0; i < rows.size(); ++i) {
        const auto & layer = parked.tail.layers[i];
        headkv_access::copy_cells(rows[i], behind, { layer.k, layer.v }, first);
        parked.archive->give_back(i);
    }
    parked.tail.cells = std::move(cells);
    parked.tail.head  = first + (uint32_t) behind.size();
    return { headkv_hot(), std::move(parked.tail), std::move(parked.archive) };
}

headkv_transition headkv_transition_room(
        const llama_kv_cache & kv, const headkv_bufts & bufts, const headkv_plan & plan, const std::vector<headkv_layer_rows> & sources,
        uint32_t n_cells) {
    headkv_transition res;
    res.hot.emplace(plan, sources);
    res.tail = headkv_access::make_tail(kv, bufts, n_cells, {});
    return res;
}

static std::vector<uint32_t> window_cells(const llama_kv_cache & kv, const headkv_plan & plan) {
    return headkv_access::cells_of(kv, plan.n_pos_hot(), plan.n_pos);
}

void headkv_transition_fill(
        headkv_transition & fresh, const llama_kv_cache & kv, const headkv_plan & plan, size_t i, std::vector<std::vector<int32_t>> pos,
        const headkv_layer_rows & source, uint32_t n_threads) {
    fresh.hot->fill(i, std::move(pos), source, n_threads);

    const headkv_tail::layer & tail = fresh.tail.layers[headkv_access::index(kv, source.il)];
    headkv_access::copy_cells({ source.k.tensor, source.v.tensor }, window_cells(kv, plan), { tail.k, tail.v });
}

void headkv_transition_finish(headkv_transition & fresh, const llama_kv_cache & kv, const headkv_plan & plan) {
    headkv_access::set_cells(fresh.tail, kv, window_cells(kv, plan));
}
