#include "cache/cut.h"
#include "core/error.h"

#include <algorithm>
#include <string>
#include <unordered_map>

// whether a node computes nothing: its values are those of its source
static bool is_look(const ggml_tensor * t) {
    return t->op == GGML_OP_VIEW || t->op == GGML_OP_RESHAPE || t->op == GGML_OP_PERMUTE || t->op == GGML_OP_TRANSPOSE;
}

// of several ways to the same tensor a graph may have nodes of all, and compute one (ggml_build_forward_select())
static bool is_computed(const ggml_tensor * t) {
    return t->flags & GGML_TENSOR_FLAG_COMPUTE;
}

static const ggml_tensor * root_of(const ggml_tensor * t) {
    return t->view_src ? t->view_src : t;
}

namespace {

// a graph as the search sees it
struct walk {
    static constexpr int NONE = -1;

    explicit walk(ggml_cgraph * graph, const std::vector<headkv_cut_layer> & layers) : n(ggml_graph_n_nodes(graph)) {
        for (size_t i = 0; i < layers.size(); ++i) {
            layer_of[layers[i].k] = (int) i;
            if (layers[i].v) {
                layer_of[layers[i].v] = (int) i;
            }
        }
        first.assign(layers.size(), NONE);
        last .assign(layers.size(), NONE);
        last_use.assign(n, NONE);
        is_constant.assign(n, true);
        nodes.reserve(n);
        for (int j = 0; j < n; ++j) {
            add(j, ggml_graph_node(graph, j));
        }
    }

    const int n;
    std::unordered_map<const ggml_tensor *, int> index; // of the nodes
    std::vector<ggml_tensor *> nodes;
    std::vector<int>  first, last;  // nodes that touch a layer's rows
    std::vector<int>  last_use;     // of what a node computes
    std::vector<bool> is_constant;  // made of inputs and weights alone

private:
    std::unordered_map<const ggml_tensor *, int> layer_of;

    int index_of(const ggml_tensor * t) const {
        const auto it = index.find(t);
        return it == index.end() ? NONE : it->second;
    }

    void touch(int j, const ggml_tensor * t) {
        const auto it = layer_of.find(root_of(t));
        if (it == layer_of.end()) {
            return;
        }
        is_constant[j] = false;
        if (first[it->second] == NONE) {
            first[it->second] = j;
        }
        last[it->second] = j;
    }

    // node j reads s
    void use(int j, const ggml_tensor * s) {
        touch(j, s);
        if (const int i = index_of(s); i != NONE && !is_constant[i]) {
            is_constant[j] = false;
        }
        if (is_look(nodes[j])) {
            return; // whoever reads it reads its source
        }
        while (index_of(s) != NONE && is_look(s)) {
            s = s->src[0];
        }
        if (const int i = index_of(s); i != NONE) {
            last_use[i] = j;
        }
    }

    void add(int j, ggml_tensor * t) {
        nodes.push_back(t);
        index[t] = j;
        if (!is_computed(t)) {
            return;
        }
        touch(j, t);
        for (const ggml_tensor * s : t->src) {
            if (s) {
                use(j, s);
            }
        }
    }
};

} // namespace

// names of the tensors that are needed behind node c of those before it
static std::string needed_behind(const walk & w, int c) {
    std::string res;
    int n = 0;
    for (int j = 0; j <= c; ++j) {
        if (!w.is_constant[j] && w.last_use[j] > c) {
            if (n < 3) {
                res += (n ? ", " : "") + std::string(ggml_get_name(w.nodes[j]));
            }
            n++;
        }
    }
    return n > 3 ? res + " and " + std::to_string(n - 3) + " more" : res;
}

headkv_cut::headkv_cut(ggml_cgraph * graph, const std::vector<headkv_cut_layer> & layers) : graph(graph) {
    walk w(graph, layers);

    // for each node: how many tensors are needed of those up to it, and the sum of their numbers: the number where there is one
    std::vector<int>     n_needed(w.n + 1);
    std::vector<int64_t> sum     (w.n + 1);
    is_free.resize(w.n);
    for (int j = 0; j < w.n; ++j) {
        is_free[j] = w.is_constant[j] || is_look(w.nodes[j]);
        if (!w.is_constant[j] && w.last_use[j] != walk::NONE) {
            n_needed[j]++;
            sum     [j] += j;
            n_needed[w.last_use[j]]--;
            sum     [w.last_use[j]] -= j;
        }
    }
    for (int j = 1; j < w.n; ++j) {
        n_needed[j] += n_needed[j - 1];
        sum     [j] += sum     [j - 1];
    }

    for (size_t i = 0; i + 1 < layers.size(); ++i) {
        if (w.last[i] == walk::NONE || w.last[i] >= w.first[i + 1]) {
            headkv_fail(HEADKV_STATUS_UNSUPPORTED, "the rows of layer %zu of the cache are used beside those of layer %zu", i, i + 1);
        }
        int c = w.first[i + 1] - 1;
        while (c >= w.last[i] && n_needed[c] != 1) {
            c--;
        }
        if (c < w.last[i]) {
            headkv_fail(HEADKV_STATUS_UNSUPPORTED, "behind layer %zu of the cache more than one tensor is needed: %s", i,
                needed_behind(w, w.first[i + 1] - 1).c_str());
        }
        ggml_tensor * out = w.nodes[sum[c]];
        if (out->type != GGML_TYPE_F32 || !ggml_is_contiguous(out) || root_of(out) != out) {
            headkv_fail(HEADKV_STATUS_UNSUPPORTED, "what layer %zu of the cache leaves to the next is no F32 tensor of its own: %s", i,
                ggml_get_name(out));
        }
        ends.push_back(c + 1);
        outs.push_back(out);
    }
    ends.push_back(w.n);
    index = std::move(w.index);
}

ggml_cgraph * headkv_cut::part(ggml_context * ctx, size_t i, ggml_tensor * extra) const {
    const int begin = i > 0 ? ends[i - 1] : 0;

    if (i > 0) {
        ggml_tensor * in = outs[i - 1];
        in->op = GGML_OP_NONE;
        std::fill(std::begin(in->src), std::end(in->src), nullptr);
        ggml_set_input(in);
    }

    ggml_cgraph * res = ggml_new_graph_custom(ctx, ggml_graph_size(graph), /*.grads =*/ false);
    int n_nodes = 0;
    for (int j = begin; j < ends[i]; ++j) {
        if (ggml_tensor * t = ggml_graph_node(graph, j); is_computed(t)) {
            ggml_build_forward_expand(res, t);
            n_nodes++;
        }
    }
    // each node of the part once, and beside them only what may be computed again
    int n_own = 0;
    for (int j = 0; j < ggml_graph_n_nodes(res); ++j) {
        const int k = index.at(ggml_graph_node(res, j));
        if (k >= begin && k < ends[i]) {
            n_own++;
        } else if (!is_free[k]) {
            headkv_fail(HEADKV_STATUS_COMPUTE, "layer %zu of the cache would compute %s again", i, ggml_get_name(ggml_graph_node(res, j)));
        }
    }
    if (n_own != n_nodes) {
        headkv_fail(HEADKV_STATUS_COMPUTE, "layer %zu of the cache has %d of %d nodes", i, n_own, n_nodes);
    }
    if (extra) {
        ggml_build_forward_expand(res, extra);
    }
    return res;
}
