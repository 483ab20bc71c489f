// score/observation.h: what the observing tokens tell of themselves and of the positions before them: where it is gathered, and how
// much of it there is. Graph nodes write it (score/observe.h), scorers read it.

#pragma once

#include "headkv.h"
#include "rows/buffer.h"
#include "score/expected.h"
#include "score/keys.h"

#include <cstdint>
#include <vector>

// a layer whose tokens are to observe
struct headkv_observed {
    headkv_layer  shape;
    ggml_tensor * k; // of the cache: [n_embd_gqa, n_cells]
};

class headkv_observation {
public:
    struct layer {
        // attention, summed or its maximum, F32 [n_cells, n_head]; or sums over the queries (moments), F32 [n_embd_head_k,
        // n_embd_head_k + 1, n_head]; or the queries, F32 [n_embd_head_k, n_head, n_tokens]
        ggml_tensor * gathered = nullptr;

        // the way queries meet keys, as the graph tells it
        headkv_rotation rotation;
        bool            is_rotation_known = false;
        headkv_logits   logits;
    };

    bool          is_on()     const { return n_wanted > 0; }
    uint32_t      n_tokens()  const { return n_wanted; } // that are to observe
    uint32_t      n_seen()    const { return n_done; }   // of them evaluated
    headkv_observe_what what()      const { return kind; }
    size_t        bytes()     const { return headkv_bytes(buffers); }

    // may only be called where is_on() is false; throws headkv_error NO_MEMORY, then nothing is observed
    void start(uint32_t n_tokens, headkv_observe_what what, const std::vector<headkv_observed> & layers);

    // frees what was gathered
    void stop();

    // tokens at positions from pos on are being evaluated
    void see(int32_t pos, uint32_t n);

    // positions that were seen are removed: what was gathered is of no use any more
    void spoil() { pos_first = -1; }

    // throws headkv_error WRONG_STATE unless all of the tokens were seen, they are the last of n_pos positions, and they told what
    // is needed; the mean stands for the maximum too
    void check_complete(uint32_t n_pos, headkv_observe_what needed) const;

    layer       & at(size_t i)       { return layers[i]; }
    const layer & at(size_t i) const { return layers[i]; }

    std::vector<float> read(size_t i) const; // what was gathered in a layer

private:
    uint32_t      n_wanted  = 0;
    uint32_t      n_done    = 0;
    int32_t       pos_first = -1; // of the first token seen
    headkv_observe_what kind      = HEADKV_OBSERVE_ATTN_MEAN;

    std::vector<layer>         layers;
    std::vector<headkv_buffer> buffers;
};
