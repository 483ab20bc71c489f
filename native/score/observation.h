// score/observation.h: what the observing tokens tell of themselves and of the positions before them: where it is gathered, and how
// much of it there is. Graph nodes write it (score/observe.h), scorers read it.

#pragma once

#include "headkv.h"
#include "rows/buffer.h"
#include "score/expected.h"
#include "score/keys.h"

#include <algorithm>
#include <cstdint>
#include <functional>
#include <vector>

// a layer whose tokens are to observe
struct headkv_observed {
    headkv_layer               shape;
    uint32_t                   n_cells; // that they attend to, at most
    ggml_backend_buffer_type_t buft;    // where it is gathered
    uint32_t                   n_readers = 1; // model layers that attend to its rows
};

// the positions that observe: [begin, begin + n)
struct headkv_window {
    int32_t  begin;
    uint32_t n;

    int32_t end() const { return begin + (int32_t) n; }

    // how many of the positions [pos, pos + n_tokens) are in the window: the last ones. None where it ends before these do
    uint32_t overlap(int32_t pos, uint32_t n_tokens) const {
        const int32_t last = pos + (int32_t) n_tokens;
        return last > begin && last <= end() ? (uint32_t) (last - std::max(pos, begin)) : 0;
    }
};

// gives a tensor for layer i memory that holds zeros, which is not the observation's own; false: it does not
using headkv_place = std::function<bool(size_t i, ggml_tensor * t)>;

class headkv_observation {
public:
    struct layer {
        // attention, summed or its maximum, F32 [n_cells, n_head]; or sums over the queries (moments), F32 [n_embd_head_k,
        // n_embd_head_k + 1, n_head]; or the queries, F32 [n_embd_head_k, n_head, n of the window]
        ggml_tensor * gathered = nullptr;

        uint32_t n_readers = 1; // model layers whose attention is gathered

        // the way queries meet keys, as the graph tells it
        headkv_rotation rotation;
        bool            is_rotation_known = false;
        headkv_logits   logits;
    };

    bool                  is_on()  const { return all.n > 0; }
    const headkv_window & window() const { return all; }
    headkv_observe_what   what()   const { return kind; }
    size_t                bytes()  const { return headkv_bytes(buffers); } // of memory of its own

    // may only be called where is_on() is false; throws headkv_error NO_MEMORY, then nothing is observed
    void start(headkv_window window, headkv_observe_what what, const std::vector<headkv_observed> & layers, const headkv_place & place);

    // frees what was gathered
    void stop();

    // tokens at positions [pos, pos + n) are being evaluated. A layer after the other may tell of the same tokens
    void see(int32_t pos, uint32_t n);

    // positions that were seen are removed: what was gathered is of no use any more
    void spoil() { is_spoiled = true; }

    bool has_seen() const { return n_done > 0; }

    // throws headkv_error WRONG_STATE unless all of the window was seen, it is the last of n_pos positions, and it told what is
    // needed; the mean stands for the maximum too
    void check_complete(uint32_t n_pos, headkv_observe_what needed) const;

    layer       & at(size_t i)       { return layers[i]; }
    const layer & at(size_t i) const { return layers[i]; }

    std::vector<float> read(size_t i) const; // what was gathered in a layer

private:
    headkv_window       all        = {};
    uint32_t            n_done     = 0; // of the window, from its beginning on
    bool                is_spoiled = false;
    headkv_observe_what kind       = HEADKV_OBSERVE_ATTN_MEAN;

    std::vector<layer>         layers;
    std::vector<headkv_buffer> buffers;
};
