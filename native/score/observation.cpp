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
        case HEADKV_OBSERVE_QUERIES:     return ggml_new_tensor_3d(ctx, GGML_TYPE_F32, d, n_head, n_tokens);
        default:                         return ggml_new_tensor_2d(ctx, GGML_TYPE_F32, layer.n_cells, n_head);
    }
}

void headkv_observation::start(
        headkv_window window, headkv_observe_what what, const std::vector<headkv_observed> & observed, const headkv_place & place) {
    headkv_buffers     fresh(observed.size());
    std::vector<layer> fresh_layers(observed.size());
    for (size_t i = 0; i < observed.size(); ++i) {
        ggml_tensor * t = new_gathered(fresh.ctx_on(observed[i].buft), observed[i], what, window.n);
        ggml_format_name(t, "headkv_observed_l%u", observed[i].shape.il);
        fresh_layers[i].gathered  = t;
        fresh_layers[i].n_readers = observed[i].n_readers;
        if (place) {
            place(i, t);
        }
    }
    buffers = fresh.alloc();
    layers  = std::move(fresh_layers);
    all     = window;
    kind    = what;
}

void headkv_observation::stop() {
    layers.clear();
    buffers.clear();
    all        = {};
    n_done     = 0;
    is_spoiled = false;
}

void headkv_observation::see(int32_t pos, uint32_t n) {
    const int32_t next = all.begin + (int32_t) n_done;
    if (pos == next) {
        n_done += n;
    } else if (pos < all.begin || pos + (int32_t) n > next) { // tokens between are missing
        spoil();
    }
}

static const char * name_of(headkv_observe_what what) {
    switch (what) {
        case HEADKV_OBSERVE_QUERY_STATS: return "query statistics";
        case HEADKV_OBSERVE_QUERIES: return "queries";
        default:                    return "attention";
    }
}

void headkv_observation::check_complete(uint32_t n_pos, headkv_observe_what needed) const {
    if (all.n == 0 || is_spoiled || n_done != all.n || all.end() != (int32_t) n_pos) {
        headkv_fail(HEADKV_STATUS_WRONG_STATE,
            "the last %u positions were not all observed: %u of %u tokens were decoded, from position %d on%s",
            all.n, n_done, all.n, all.begin, is_spoiled ? ", and some of them removed" : "");
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
