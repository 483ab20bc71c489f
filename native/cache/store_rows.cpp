// store_rows.cpp: the store's rows as bytes, out of it and into it again: for files.

#include "cache/store.h"
#include "cache/tail.h"
#include "core/error.h"

#include "llama-context.h"

void headkv_store::check_rows_are_all() const {
    if (const std::string reason = beside_reason(); !reason.empty()) {
        throw headkv_error(HEADKV_STATUS_UNSUPPORTED, "rows alone are not all of the conversation: " + reason);
    }
}

ggml_tensor * headkv_store::whole_rows(size_t i, bool is_k, uint32_t first, uint32_t n, size_t n_bytes, std::vector<uint32_t> & cells) const {
    check_rows_are_all();
    if (hot_rows.exist() && !parked) {
        headkv_fail(HEADKV_STATUS_WRONG_STATE, "the cache is compressed, and no archive was kept of it");
    }
    const uint32_t n_whole = parked ? parked->n_pos : n_pos();
    if (i >= shapes.size() || first + (uint64_t) n > n_whole) {
        headkv_fail(HEADKV_STATUS_INVALID_ARGUMENT,
            "positions %u to %u of layer %zu: there are %u positions and %zu layers", first, first + n, i, n_whole, shapes.size());
    }
    ggml_tensor * t = nullptr;
    if (parked) {
        const auto & layer = parked->tail.layers[index(i)];
        t = is_k ? layer.k : layer.v;
    } else {
        t = is_k ? headkv_access::k(kv, shapes[i].il) : headkv_access::v(kv, shapes[i].il);
    }
    if (!t || n_bytes != n*t->nb[1]) {
        headkv_fail(HEADKV_STATUS_INVALID_ARGUMENT, "%zu bytes for %u rows of %zu", n_bytes, n, t ? t->nb[1] : 0);
    }
    cells = headkv_access::cells_of(parked ? parked->tail.cells : headkv_access::cells(kv), (int32_t) first, (int32_t) (first + n));
    if (cells.size() != n) {
        headkv_fail(HEADKV_STATUS_WRONG_STATE, "the cache holds %zu of %u positions", cells.size(), n);
    }
    return t;
}

void headkv_store::get_rows(size_t i, bool is_k, uint32_t first, uint32_t n, void * dst, size_t n_bytes) {
    lctx->synchronize();
    std::vector<uint32_t> cells;
    const ggml_tensor * t = whole_rows(i, is_k, first, n, n_bytes, cells);
    for (const auto & run : headkv_cell_runs(cells)) {
        ggml_backend_tensor_get(t, (char *) dst + run.dst*t->nb[1], run.src*t->nb[1], run.n*t->nb[1]);
    }
    if (archive || parked) {
        (archive ? archive : parked->archive)->give_back(index(i));
    }
}

void headkv_store::set_rows(size_t i, bool is_k, uint32_t first, uint32_t n, const void * src, size_t n_bytes) {
    if (!archive) {
        headkv_fail(HEADKV_STATUS_WRONG_STATE, "rows can be set in an archive alone");
    }
    lctx->synchronize();
    std::vector<uint32_t> cells;
    ggml_tensor * t = whole_rows(i, is_k, first, n, n_bytes, cells);
    for (const auto & run : headkv_cell_runs(cells)) {
        ggml_backend_tensor_set(t, (const char *) src + run.dst*t->nb[1], run.src*t->nb[1], run.n*t->nb[1]);
    }
    archive->give_back(index(i));
}

void headkv_store::begin_rows(const int32_t * tokens, uint32_t n, const std::string & dir) {
    check_rows_are_all();
    if (n_cells_used() > 0 || hot_rows.exist()) {
        headkv_fail(HEADKV_STATUS_WRONG_STATE, "the cache holds %u positions already", n_pos());
    }
    if (n == 0 || n > n_cells_max) {
        headkv_fail(HEADKV_STATUS_INVALID_ARGUMENT, "%u positions: the context has %u", n, n_cells_max);
    }
    lctx->synchronize();
    headkv_transition whole = headkv_transition_archive(kv, n_cells_max, dir);
    whole.archive->hold(n);
    headkv_access::set_tokens(whole.tail, tokens, n);
    commit(std::move(whole));
}
