#include "cache/transition.h"

headkv_transition headkv_transition_grow(const llama_kv_cache & kv, uint32_t n_cells) {
    std::vector<uint32_t> keep;
    for (uint32_t c = 0; c < kv.get_size(); ++c) {
        if (!headkv_access::cells(kv).is_empty(c)) {
            keep.push_back(c);
        }
    }
    return { std::nullopt, headkv_access::make_tail(kv, n_cells, keep) };
}

headkv_transition headkv_transition_compress(
        const llama_kv_cache & kv, const headkv_plan & plan, headkv_kept_positions pos, const std::vector<headkv_layer_rows> & sources,
        uint32_t n_cells, uint32_t n_threads) {
    headkv_transition res;
    res.hot  = headkv_hot(plan, std::move(pos), sources, n_threads);
    res.tail = headkv_access::make_tail(kv, n_cells, headkv_access::cells_of(kv, plan.n_pos_hot(), plan.n_pos));
    return res;
}
