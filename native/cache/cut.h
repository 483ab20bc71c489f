// cache/cut.h: cuts the graph of a model into parts, one for each layer of the cache, so that a layer can be computed for all
// tokens before the next one begins.
//
//     nodes    | embeddings, layer 0 ......... out | layer 1 ................. out | ... | layer n - 1, logits |
//                                               `------ the only tensor that a part has of those before ------´
//
// No list of names says where a model can be cut. Between the last node that touches the rows of one layer and the first that
// touches those of the next, a place is looked for behind which one tensor alone is still needed of all that was computed from the
// cache. Tensors that are made of inputs and weights alone may be needed too: they are computed again. Where there is no such place,
// as in models whose layers read each other's rows, the graph cannot be cut.

#pragma once

#include "ggml.h"

#include <cstddef>
#include <unordered_map>
#include <vector>

// K and V of one layer of the cache
struct headkv_cut_layer {
    const ggml_tensor * k;
    const ggml_tensor * v; // nullptr: it has K only
};

class headkv_cut {
public:
    // layers: of the cache, in the order in which they are computed. Throws headkv_error UNSUPPORTED: what crosses
    headkv_cut(ggml_cgraph * graph, const std::vector<headkv_cut_layer> & layers);

    size_t n_parts() const { return ends.size(); }

    // what part i leaves to the next one, F32; the last part leaves nothing
    ggml_tensor * out(size_t i) const { return i < outs.size() ? outs[i] : nullptr; }

    // the nodes of part i in ctx, after those that they need of inputs and weights. For i > 0, out(i - 1) becomes an input: whoever
    // calls gives it memory. extra: nodes that are computed after those of the part, or nullptr
    ggml_cgraph * part(ggml_context * ctx, size_t i, ggml_tensor * extra) const;

private:
    ggml_cgraph * graph;

    std::vector<int>           ends; // of each part: the number of the node behind its last one
    std::vector<ggml_tensor *> outs;
    std::vector<bool>          is_free; // of each node: made of inputs and weights alone, or only a look at another

    std::unordered_map<const ggml_tensor *, int> index; // number of each node
};
