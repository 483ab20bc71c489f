// test-cut.cpp: a graph is cut where one tensor alone is needed behind, or refused with what crosses; and its parts, computed one
// after the other, are the whole graph: every node in one of them, and the same bits.

#include "cache/cut.h"
#include "refused.h"
#include "small-graph.h"

#include <algorithm>
#include <map>
#include <set>

static bool is_look(const ggml_tensor * t) {
    return t->op == GGML_OP_VIEW || t->op == GGML_OP_RESHAPE || t->op == GGML_OP_PERMUTE || t->op == GGML_OP_TRANSPOSE;
}

static bool is_finite(const std::vector<uint8_t> & bytes) {
    const float * x = (const float *) bytes.data();
    return std::all_of(x, x + bytes.size()/sizeof(float), [](float v) { return std::isfinite(v); });
}

// the definition of a place to cut, spelt out for each tensor
struct oracle {
    const small_graph & g;
    std::vector<ggml_tensor *> nodes;
    std::set<const ggml_tensor *> constants; // nodes made of inputs and weights alone

    explicit oracle(const small_graph & g) : g(g) {
        for (int j = 0; j < ggml_graph_n_nodes(g.graph); ++j) {
            ggml_tensor * t = ggml_graph_node(g.graph, j);
            nodes.push_back(t);
            if (is_computed(t) && layers_of(t).empty() && std::all_of(t->src, t->src + GGML_MAX_SRC, [&](const ggml_tensor * s) {
                    return !s || s == t || s->op == GGML_OP_NONE || constants.count(s);
                })) {
                constants.insert(t);
            }
        }
    }

    static bool is_computed(const ggml_tensor * t) { return t->flags & GGML_TENSOR_FLAG_COMPUTE; }

    // layers of the cache that a node touches itself
    std::set<size_t> layers_of(const ggml_tensor * t) const {
        std::set<size_t> res;
        const auto add = [&](const ggml_tensor * x) {
            const ggml_tensor * root = x->view_src ? x->view_src : x;
            for (size_t i = 0; i < g.layers.size(); ++i) {
                if (root == g.layers[i].k || root == g.layers[i].v) {
                    res.insert(i);
                }
            }
        };
        add(t);
        for (const ggml_tensor * s : t->src) {
            if (s) {
                add(s);
            }
        }
        return res;
    }

    bool may_be_again(const ggml_tensor * t) const { return constants.count(t) || is_look(t); }

    static const ggml_tensor * looked_at(const ggml_tensor * t) {
        while (is_look(t)) {
            t = t->src[0];
        }
        return t;
    }

    // what is needed behind the first n nodes of what they compute
    std::set<const ggml_tensor *> needed_behind(size_t n) const {
        const std::set<const ggml_tensor *> before(nodes.begin(), nodes.begin() + n);
        std::set<const ggml_tensor *> res;
        for (size_t j = n; j < nodes.size(); ++j) {
            for (const ggml_tensor * s : nodes[j]->src) {
                if (s && is_computed(nodes[j]) && !is_look(nodes[j]) && before.count(looked_at(s)) && !constants.count(looked_at(s))) {
                    res.insert(looked_at(s));
                }
            }
        }
        return res;
    }

    bool can_be_cut() const {
        std::vector<size_t> first(g.layers.size(), nodes.size()), last(g.layers.size(), 0);
        for (size_t j = 0; j < nodes.size(); ++j) {
            for (const size_t i : layers_of(nodes[j])) {
                first[i] = std::min(first[i], j);
                last [i] = j;
            }
        }
        for (size_t i = 0; i + 1 < first.size(); ++i) {
            bool is_found = false;
            for (size_t n = last[i] + 1; n <= first[i + 1]; ++n) {
                is_found = is_found || needed_behind(n).size() == 1;
            }
            if (!is_found) {
                return false;
            }
        }
        return true;
    }
};

// nodes of all parts: those that may be computed again at least once, all others once
static void check_nodes(const oracle & whole, const std::map<const ggml_tensor *, int> & n_parts, int line) {
    for (const ggml_tensor * t : whole.nodes) {
        const auto it = n_parts.find(t);
        const int  n  = it == n_parts.end() ? 0 : it->second;
        if (!oracle::is_computed(t) ? n != 0 : whole.may_be_again(t) ? n < 1 : n != 1) {
            check_equal(std::string(ggml_get_name(t)) + " in " + std::to_string(n) + " parts", std::string("once"), "node", line);
        }
    }
}

// all parts, computed one after the other, give what the whole graph gives. Returns the nodes of each part
static std::vector<std::multiset<std::string>> check_parts(small_graph & g, ggml_tensor * result, int line, uint32_t seed = 1) {
    std::vector<std::multiset<std::string>> res;

    g.expand(result);
    g.alloc(seed);
    const oracle whole(g);
    const auto   before = g.caches();
    g.compute(g.graph);
    const auto want        = g.bytes(result);
    const auto want_caches = g.caches();
    check_equal(is_finite(want), true, "the whole graph is computed", line);
    check_equal(want_caches == before, false, "caches are those before", line);
    g.set_caches(before);

    const headkv_cut cut(g.graph, g.layers);
    check_equal(cut.n_parts(), g.layers.size(), "parts", line);
    std::map<const ggml_tensor *, int> n_parts;
    for (size_t i = 0; i < cut.n_parts(); ++i) {
        g.forget(i > 0 ? cut.out(i - 1) : nullptr);
        ggml_context_ptr ctx { ggml_init({ ggml_graph_overhead(), nullptr, /*.no_alloc =*/ true }) };
        ggml_cgraph * part = cut.part(ctx.get(), i, nullptr);
        res.emplace_back();
        for (int j = 0; j < ggml_graph_n_nodes(part); ++j) {
            n_parts[ggml_graph_node(part, j)]++;
            res.back().insert(ggml_get_name(ggml_graph_node(part, j)));
        }
        g.compute(part);
        if (i > 0) {
            check_equal((bool) (cut.out(i - 1)->flags & GGML_TENSOR_FLAG_INPUT), true, "what comes in is an input", line);
        }
    }
    check_equal(cut.out(cut.n_parts() - 1) == nullptr, true, "the last part leaves nothing", line);
    check_nodes(whole, n_parts, line);
    check_equal(g.bytes(result) == want, true, "bits of the result are the same", line);
    check_equal(g.caches() == want_caches, true, "bits of the rows are the same", line);
    return res;
}

#define CHECK_PARTS(g, result) check_parts(g, result, __LINE__)

static std::string out_of(const small_graph & g, size_t i) { return ggml_get_name(headkv_cut(g.graph, g.layers).out(i)); }

static void test_plain_layers() {
    small_graph g;
    ggml_tensor * x = g.layer(g.layer(g.layer(g.embd)));
    g.expand(x);
    CHECK_EQUAL(out_of(g, 0), "out-0");
    CHECK_EQUAL(out_of(g, 1), "out-1");
    const auto parts = CHECK_PARTS(g, x);
    CHECK(parts[0].count("embd") == 1 && parts[1].count("embd") == 0);
    for (const auto & part : parts) {
        CHECK(part.count("mask") == 1); // computed again
    }
}

static void test_one_layer() {
    small_graph g;
    const auto parts = CHECK_PARTS(g, g.layer(g.embd));
    CHECK_EQUAL(parts.size(), (size_t) 1);
    CHECK_EQUAL(parts[0].size(), (size_t) ggml_graph_n_nodes(g.graph));
}

static void test_no_values() {
    small_graph g;
    CHECK_PARTS(g, g.layer(g.layer(g.embd, /*.has_v =*/ false), /*.has_v =*/ false));
}

static void test_embeddings_everywhere() {
    small_graph g;
    ggml_tensor * x = g.layer(g.embd);
    const auto parts = CHECK_PARTS(g, ggml_add(g.c, g.layer(x), ggml_scale(g.c, g.embd, 0.5f)));
    CHECK(parts[1].count("embd") == 1);
}

// the next layer's norm and projections belong to it, unless nothing else is needed of what comes in
static void test_latest_place() {
    small_graph g;
    ggml_tensor * x    = g.layer(g.embd);
    ggml_tensor * next = g.named(g.norm(x), "next");
    ggml_tensor * y    = ggml_add(g.c, next, g.attention(next)); // no residual around the norm
    g.expand(y);
    CHECK_EQUAL(out_of(g, 0), "next");
    CHECK_PARTS(g, y);
}

static void test_views_of_hidden_states() {
    small_graph g;
    ggml_tensor * x     = g.layer(g.embd);
    ggml_tensor * heads = g.named(ggml_reshape_3d(g.c, x, g.D/2, 2, g.N_TOK), "heads");
    ggml_tensor * half  = g.named(ggml_permute(g.c, ggml_view_3d(g.c, heads, g.D/2, 1, g.N_TOK, heads->nb[1], heads->nb[2], heads->nb[1]), 0, 1, 2, 3), "half");
    g.expand(half); // in the part of the first layer
    ggml_tensor * y = ggml_add(g.c, ggml_reshape_2d(g.c, heads, g.D, g.N_TOK), ggml_pad(g.c, ggml_reshape_2d(g.c, ggml_cont(g.c, half), g.D/2, g.N_TOK), g.D/2, 0, 0, 0));
    y = g.layer(y);
    g.expand(y);
    CHECK_PARTS(g, y);

    small_graph whole; // nothing but a view is read on
    x = whole.layer(whole.embd);
    x = ggml_reshape_2d(whole.c, ggml_reshape_3d(whole.c, x, whole.D/2, 2, whole.N_TOK), whole.D, whole.N_TOK);
    x = whole.layer(x);
    whole.expand(x);
    CHECK_EQUAL(out_of(whole, 0), "out-0");
    CHECK_PARTS(whole, x);
}

static void test_layer_without_attention() {
    small_graph g;
    ggml_tensor * x = g.layer(g.embd);
    x = ggml_add(g.c, x, g.mlp(g.norm(x)));
    x = g.named(ggml_add(g.c, x, g.mlp(g.norm(x))), "between");
    x = g.layer(x);
    g.expand(x);
    CHECK_EQUAL(out_of(g, 0), "between");
    CHECK_PARTS(g, x);
}

static void test_parallel_residual() {
    small_graph g;
    ggml_tensor * x = g.embd;
    for (int i = 0; i < 2; ++i) {
        ggml_tensor * n = g.norm(x);
        x = ggml_add(g.c, ggml_add(g.c, g.attention(n), g.mlp(n)), x);
    }
    CHECK_PARTS(g, x);
}

// a graph has two, and computes one of them: the other is in no part, and may read across them
static void test_what_is_not_computed() {
    small_graph g;
    ggml_tensor * x = g.layer(g.embd);
    ggml_tensor * either[] = { g.named(ggml_scale(g.c, x, 3.0f), "this"), g.named(ggml_scale(g.c, ggml_add(g.c, x, g.embd), 2.0f), "that") };
    ggml_build_forward_select(g.graph, either, 2, 0);
    ggml_tensor * y = g.layer(either[0]);
    ggml_tensor * last[] = { y, g.named(ggml_add(g.c, x, y), "neither") };
    ggml_build_forward_select(g.graph, last, 2, 0);
    for (const auto & part : CHECK_PARTS(g, y)) {
        CHECK(part.count("that") == 0 && part.count("neither") == 0);
    }
}

// a copy of what a part leaves, as the last node
static void test_extra() {
    small_graph g;
    ggml_tensor * x = g.layer(g.embd);
    ggml_tensor * y = g.layer(x);
    ggml_tensor * elsewhere = ggml_new_tensor_2d(g.c, GGML_TYPE_F32, g.D, g.N_TOK);
    g.expand(y);
    g.alloc();
    g.compute(g.graph);
    const auto want = g.bytes(x);
    g.forget(nullptr);

    const headkv_cut cut(g.graph, g.layers);
    ggml_context_ptr ctx { ggml_init({ 2*ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, /*.no_alloc =*/ true }) };
    ggml_tensor * copy = ggml_cpy(ctx.get(), cut.out(0), elsewhere);
    CHECK(ggml_backend_view_init(copy) == GGML_STATUS_SUCCESS);
    ggml_cgraph * part = cut.part(ctx.get(), 0, copy);
    CHECK(ggml_graph_node(part, -1) == copy);
    g.compute(part);
    CHECK(g.bytes(elsewhere) == want);
}

// a part that would not have each of its nodes once is not computed: here the graph is changed behind the cut's back
static void test_a_graph_that_changed() {
    for (const bool is_across : { true, false }) {
        small_graph g;
        ggml_tensor * x = g.layer(g.embd);
        ggml_tensor * y = g.layer(x);
        g.expand(y);
        const headkv_cut cut(g.graph, g.layers);
        ggml_context_ptr ctx { ggml_init({ ggml_graph_overhead(), nullptr, /*.no_alloc =*/ true }) };
        if (is_across) {
            y->src[1] = x->src[0];
            CHECK_REFUSED(cut.part(ctx.get(), 1, nullptr), HEADKV_STATUS_COMPUTE, "layer 1 of the cache would compute ");
        } else {
            y->src[0]->flags &= ~GGML_TENSOR_FLAG_COMPUTE;
            CHECK_REFUSED(cut.part(ctx.get(), 1, nullptr), HEADKV_STATUS_COMPUTE, "layer 1 of the cache has ");
        }
    }
}

//
// graphs that cannot be cut
//

static void check_uncut(small_graph & g, ggml_tensor * result, const char * words, int line) {
    g.expand(result);
    check_refused([&] { headkv_cut(g.graph, g.layers); }, HEADKV_STATUS_UNSUPPORTED, words, line);
}

#define CHECK_UNCUT(g, result, words) check_uncut(g, result, words, __LINE__)

static void test_two_tensors_cross() {
    small_graph g;
    ggml_tensor * x = g.layer(g.embd);
    ggml_tensor * a = g.named(g.attention(g.norm(x)), "paid");
    ggml_tensor * y = g.named(ggml_add(g.c, a, x), "sum");
    CHECK_UNCUT(g, ggml_add(g.c, g.attention(y), ggml_add(g.c, a, y)), "behind layer 1 of the cache more than one tensor is needed: paid, sum");

    small_graph over; // a layer
    a = over.layer(over.embd);
    x = over.layer(a);
    CHECK_UNCUT(over, ggml_add(over.c, over.layer(x), a), "behind layer 1 of the cache more than one tensor is needed: out-0, out-1");

    small_graph many;
    x = many.layer(many.layer(many.embd));
    std::vector<ggml_tensor *> all;
    for (const char * name : { "a", "b", "c", "d", "e" }) {
        all.push_back(many.named(ggml_scale(many.c, x, 2.0f), name));
        many.expand(all.back());
    }
    y = ggml_add(many.c, x, many.attend(1, x));
    for (ggml_tensor * t : all) {
        y = ggml_add(many.c, many.layer(y), t);
    }
    CHECK_UNCUT(many, y, "a, b, c and ");
}

static void test_layers_share_rows() {
    small_graph g;
    ggml_tensor * x = g.layer(g.layer(g.embd));
    CHECK_UNCUT(g, ggml_add(g.c, x, g.attend(0, x)), "the rows of layer 0 of the cache are used beside those of layer 1");

    small_graph values; // V alone
    x = values.layer(values.embd);
    const ggml_tensor * v = values.layers[0].v;
    x = values.layer(x);
    CHECK_UNCUT(values, ggml_add(values.c, x, ggml_view_2d(values.c, const_cast<ggml_tensor *>(v), g.D, g.N_TOK, v->nb[1], 0)), "layer 0");

    small_graph order; // of the cache is not that of the graph
    order.expand(order.layer(order.layer(order.embd)));
    std::swap(order.layers[0], order.layers[1]);
    CHECK_REFUSED(headkv_cut(order.graph, order.layers), HEADKV_STATUS_UNSUPPORTED, "the rows of layer 0 of the cache are used beside");

    small_graph unused; // nobody touches the rows of the first
    unused.layers.push_back({ unused.weight(), nullptr });
    CHECK_UNCUT(unused, unused.layer(unused.embd), "layer 0");
}

static void test_what_crosses_is_no_f32_of_its_own() {
    const char * words = "is no F32 tensor of its own: odd";

    small_graph half;
    ggml_tensor * h = half.named(ggml_cast(half.c, half.layer(half.embd), GGML_TYPE_F16), "odd");
    ggml_tensor * y = half.layer(ggml_cast(half.c, h, GGML_TYPE_F32));
    CHECK_UNCUT(half, ggml_add(half.c, y, ggml_cast(half.c, h, GGML_TYPE_F32)), words);

    small_graph in_place;
    ggml_tensor * x = ggml_scale_inplace(in_place.c, in_place.layer(in_place.embd), 2.0f);
    CHECK_UNCUT(in_place, in_place.layer(in_place.named(x, "odd")), words);

    small_graph strides;
    x = strides.named(ggml_scale(strides.c, strides.layer(strides.embd), 2.0f), "odd");
    x->nb[1] *= 2;
    CHECK_UNCUT(strides, strides.layer(x), words);
}

//
// random graphs
//

struct random_graph : small_graph {
    std::mt19937 rng;
    std::vector<ggml_tensor *> old; // hidden states that a later layer may read

    explicit random_graph(uint32_t seed) : rng(seed) {}

    bool is(int percent) { return (int) (rng() % 100) < percent; }

    ggml_tensor * looked_at(ggml_tensor * x) {
        if (is(30)) {
            x = ggml_reshape_2d(c, ggml_reshape_3d(c, x, D/4, 4, N_TOK), D, N_TOK);
        }
        if (is(20)) {
            x = ggml_view_2d(c, x, D, N_TOK, x->nb[1], 0);
        }
        if (is(20)) {
            expand(x);
        }
        return x;
    }

    ggml_tensor * block(ggml_tensor * x, ggml_tensor * (random_graph::*what)(ggml_tensor *)) {
        ggml_tensor * n = is(70) ? norm(x) : x;
        ggml_tensor * y = (this->*what)(looked_at(n));
        y = is(85) ? ggml_add(c, y, looked_at(x)) : y;
        return is(15) ? ggml_add(c, y, ggml_scale(c, embd, 0.25f)) : y;
    }

    ggml_tensor * any_attention(ggml_tensor * x) { return attention(x, is(80)); }
    ggml_tensor * any_mlp      (ggml_tensor * x) { return mlp(x); }

    ggml_tensor * any_layer(ggml_tensor * x) {
        if (is(20)) { // parallel
            ggml_tensor * n = norm(x);
            return ggml_add(c, ggml_add(c, mlp(n), x), any_attention(n));
        }
        x = block(x, &random_graph::any_attention);
        if (is(15) && !old.empty()) {
            x = ggml_add(c, x, old[rng() % old.size()]);
        }
        for (int n = rng() % 3; n > 0; --n) {
            x = block(x, &random_graph::any_mlp);
        }
        return x;
    }

    ggml_tensor * model() {
        ggml_tensor * x = embd;
        for (int n = 1 + rng() % 5; n > 0; --n) {
            if (is(5) && !layers.empty()) {
                x = ggml_add(c, x, attend(rng() % layers.size(), x));
            }
            x = looked_at(any_layer(x));
            old.push_back(x);
        }
        return ggml_add(c, norm(x), embd);
    }
};

static void test_random_graphs() {
    int n_cut = 0, n_refused = 0;
    for (uint32_t seed = 0; seed < 300; ++seed) {
        random_graph g(seed);
        ggml_tensor * result = g.model();
        g.expand(result);
        if (oracle(g).can_be_cut()) {
            const int n_before = n_failed;
            CHECK_PARTS(g, result);
            if (n_failed != n_before) {
                std::cerr << "seed " << seed << "\n";
            }
            n_cut++;
        } else {
            CHECK_REFUSED(headkv_cut(g.graph, g.layers), HEADKV_STATUS_UNSUPPORTED, "of the cache");
            n_refused++;
        }
    }
    CHECK(n_cut > 100);
    CHECK(n_refused > 20);
}

int main() {
    test_plain_layers();
    test_one_layer();
    test_no_values();
    test_embeddings_everywhere();
    test_latest_place();
    test_views_of_hidden_states();
    test_layer_without_attention();
    test_parallel_residual();
    test_what_is_not_computed();
    test_extra();
    test_a_graph_that_changed();
    test_two_tensors_cross();
    test_layers_share_rows();
    test_what_crosses_is_no_f32_of_its_own();
    test_random_graphs();
    return n_failed != 0;
}
