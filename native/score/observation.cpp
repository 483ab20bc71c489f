#include "score/observation.h"
#include "core/error.h"

#include "ggml-backend.h"
#include "ggml.h"

#include <cstring>

static ggml_tensor * new_gathered(ggml_context * ctx, const headkv_observed & layer, headkv_observe_what what, uint32_t n_tokens) {
    const int64_t d      = layer.shape.n_embd_head_k;
    const int64_t n_head = layer.shape.n_head;
    switch (what) {
        case HEADKV_OBSERVE_QUERY_STATS: return ggml_new_tensor_3d(ctx, GGML_TYPE_F32, d, d + 1, n_head);
        case HEADKV_OBSERVE_QUERIES: return ggml_new_tensor_3d(ctx, GGML_TYPE_F32, d, n_head, n_tokens);
        default:                    return ggml_new_tensor_2d(ctx, GGML_TYPE_F32, layer.k->ne[1], n_head);
    }
}

void headkv_observation::start(uint32_t n_tokens, headkv_observe_what what, const std::vector<headkv_observed> & observed) {
    headkv_buffers     fresh(observed.size());
    std::vector<layer> fresh_layers(observed.size());
    for (size_t i = 0; i < observed.size(); ++i) {
        fresh_layers[i].gathered = new_gathered(fresh.ctx_beside(observed[i].k), observed[i], what, n_tokens);
        ggml_format_name(fresh_layers[i].gathered, "headkv_observed_l%u", observed[i].shape.il);
    }
    buffers  = fresh.alloc();
    layers   = std::move(fresh_layers);
    n_wanted = n_tokens;
    kind     = what;
}

void headkv_observation::stop() {
    layers.clear();
    buffers.clear();
    n_wanted  = 0;
    n_done    = 0;
    pos_first = -1;
}

void headkv_observation::see(int32_t pos, uint32_t n) {
    if (n_done == 0) {
        pos_first = pos;
    }
    n_done += n;
}

static const char * name_of(headkv_observe_what what) {
    switch (what) {
        case HEADKV_OBSERVE_QUERY_STATS: return "query statistics";
        case HEADKV_OBSERVE_QUERIES: return "queries";
        default:                    return "attention";
    }
}

void headkv_observation::check_complete(uint32_t n_pos, headkv_observe_what needed) const {
    if (n_wanted == 0 || n_done != n_wanted || pos_first + (int32_t) n_wanted != (int32_t) n_pos) {
        headkv_fail(HEADKV_STATUS_WRONG_STATE,
            "the last %u positions were not all observed: %u of %u tokens were decoded, from position %d on",
            n_wanted, n_done, n_wanted, pos_first);
    }
    if (strcmp(name_of(kind), name_of(needed)) != 0) {
        headkv_fail(HEADKV_STATUS_WRONG_STATE, "observed for %s, but these scores need %s", name_of(kind), name_of(needed));
    }
}

std::vector<float> headkv_observation::read(size_t i) const {
    std::vector<float> res(ggml_nelements(layers[i].gathered));
    ggml_backend_tensor_get(layers[i].gathered, res.data(), 0, ggml_nbytes(layers[i].gathered));
    return res;
}
