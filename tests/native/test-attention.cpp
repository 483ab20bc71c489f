// test-attention.cpp: the fused CPU kernel against float64 attention over the dequantised rows.
//
// Case number c decides everything: types, shapes and tokens by its digits, the rest and the data by its seed.
// `test-attention` runs each combination once; `test-attention C` only case C; `test-attention C END` the cases [C, END),
// which may lie beyond the first round. Exit code 0: all cases passed.
//
// Rows that must not be read are poisoned with NaN: rows before the first head's and after the last's, tail cells that every token
// masks. Stock flash attention runs on the same rows (without poison, one mask per query head) as a yardstick.

#include "attend/node.h"
#include "attention-problem.h"

#include "ggml-cpu.h"
#include "ggml.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

// normalised mean square error of f32 arithmetic: (1e-7)^2 for a rounding, some hundred of them add up. Errors of K and V
// types do not count, the reference reads the same dequantised rows
static constexpr double NMSE_MAX = 1e-11;
// exp and tanh are polynomials of some 1e-7 in a logit of up to SOFTCAP
static constexpr double NMSE_MAX_SOFTCAP = 1e-10;

static const ggml_type TYPES[] = {
    GGML_TYPE_F16,  GGML_TYPE_F32,  GGML_TYPE_BF16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0,
    GGML_TYPE_Q4_1, GGML_TYPE_Q5_0, GGML_TYPE_Q5_1, GGML_TYPE_IQ4_NL,
};
static const int SIZES[]   = { 64, 72, 80, 96, 128, 256 };
static const int GROUPS[]  = { 1, 3, 4, 7, 8 };
static const int TOKENS[]  = { 1, 2, 5, 9, 17, 70 };
static const int THREADS[] = { 1, 2, 3, 5 };

static test_case make_case(int c) {
    test_case t;
    int x = c;
    const auto digit = [&](int n) { const int d = x % n; x /= n; return d; };
    const int type = digit(size(TYPES));
    t.n_tok  = TOKENS[digit(size(TOKENS))];
    t.group  = GROUPS[digit(size(GROUPS))];
    t.n_k    = SIZES[digit(size(SIZES))];
    t.type_k = TYPES[type];

    std::mt19937 rng(c); // the rest is drawn
    t.type_v = rng() % 2 ? TYPES[type] : TYPES[rng() % size(TYPES)];
    t.n_v    = rng() % 4 ? t.n_k : 64;
    t.nth    = THREADS[rng() % size(THREADS)];
    draw_lengths(t, rng);
    draw_tail(t, rng);
    return t;
}

static constexpr int n_combinations() {
    return size(TYPES)*size(SIZES)*size(GROUPS)*size(TOKENS);
}

static bool is_possible(const test_case & t) {
    return t.n_k % ggml_blck_size(t.type_k) == 0 && t.n_v % ggml_blck_size(t.type_v) == 0;
}

// a ggml graph of one node, its tensors in ordinary memory
struct graph {
    ggml_context * ctx;

    explicit graph(size_t bytes) : ctx(ggml_init({ bytes + (1 << 20), nullptr, false })) {}
    graph(const graph &) = delete;
    ~graph() { ggml_free(ctx); }

    std::vector<float> compute(ggml_tensor * node, int nth) {
        ggml_cgraph * g = ggml_new_graph(ctx);
        ggml_build_forward_expand(g, node);
        ggml_cplan plan = ggml_graph_plan(g, nth, nullptr);
        std::vector<uint8_t> work(plan.work_size); // exactly, so that sanitizers see a step beyond it
        plan.work_data = work.data();
        memset(node->data, 0xff, ggml_nbytes(node)); // NaN, so that what is not written shows
        if (ggml_graph_compute(g, &plan) != GGML_STATUS_SUCCESS) {
            abort();
        }
        return std::vector<float>((float *) node->data, (float *) node->data + ggml_nelements(node));
    }

    ggml_tensor * queries(const problem & p) { // F32 [n_k, n_tok, n_head], permuted as in llama.cpp
        ggml_tensor * q = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, p.t.n_k, p.n_head(), p.t.n_tok);
        memcpy(q->data, p.q.data(), ggml_nbytes(q));
        return ggml_permute(ctx, q, 0, 2, 1, 3);
    }

    // a cache of n cells, [n_elements, n, N_HEAD_KV], filled by fill(cell, ih, row)
    template <class F> ggml_tensor * cells(ggml_type type, int n_elements, int n, F fill) {
        ggml_tensor * cache = ggml_new_tensor_3d(ctx, type, n_elements, N_HEAD_KV, n);
        for (int cell = 0; cell < n; cell++) {
            for (int ih = 0; ih < N_HEAD_KV; ih++) { fill(cell, ih, (uint8_t *) cache->data + cell*cache->nb[2] + ih*cache->nb[1]); }
        }
        return ggml_permute(ctx, cache, 0, 2, 1, 3);
    }

    ggml_tensor * attention(const problem & p, ggml_tensor * k, ggml_tensor * v, ggml_tensor * mask) {
        ggml_tensor * node = ggml_flash_attn_ext(ctx, queries(p), k, v, mask, p.scale, 0.0f, p.t.has_softcap ? SOFTCAP : 0.0f);
        if (p.t.has_sinks) {
            ggml_tensor * sinks = ggml_new_tensor_1d(ctx, GGML_TYPE_F32, p.n_head());
            memcpy(sinks->data, p.sinks.data(), ggml_nbytes(sinks));
            ggml_flash_attn_ext_add_sinks(node, sinks);
        }
        return node;
    }
};

static ggml_tensor * to_tensor(ggml_tensor * t, const void * data) {
    memcpy(t->data, data, ggml_nbytes(t));
    return t;
}

static ggml_tensor * hot_tensor(graph & g, const problem & p, const std::vector<rows> & all) {
    const std::vector<uint8_t> data = hot(p, all);
    return to_tensor(ggml_new_tensor_2d(g.ctx, all[0].type, all[0].n_elements, data.size()/all[0].bytes()), data.data());
}

static std::vector<float> ours(const problem & p) {
    const test_case & t = p.t;
    graph g(64u << 20);
    const auto tail = [&](const std::vector<rows> & r) {
        return g.cells(r[0].type, r[0].n_elements, t.n_kv, [&](int cell, int ih, uint8_t * row) {
            if (p.is_visible(cell)) {
                memcpy(row, &r[ih].data[(t.len[ih] + cell)*r[ih].bytes()], r[ih].bytes());
            } else {
                memset(row, 0xff, r[ih].bytes());
            }
        });
    };
    ggml_tensor * mask = nullptr;
    if (t.mask != MASK_NONE) {
        mask = ggml_new_tensor_2d(g.ctx, GGML_TYPE_F16, t.n_kv, t.n_tok);
        ggml_fp32_to_fp16_row(p.mask.data(), (ggml_fp16_t *) mask->data, ggml_nelements(mask));
    }
    ggml_tensor * node = g.attention(p, tail(p.k), tail(p.v), mask);
    node->src[HEADKV_SRC_K_HOT]   = hot_tensor(g, p, p.k);
    node->src[HEADKV_SRC_V_HOT]   = hot_tensor(g, p, p.v);
    node->src[HEADKV_SRC_ROW_PTR] = to_tensor(ggml_new_tensor_1d(g.ctx, GGML_TYPE_I32, N_HEAD_KV + 1), row_ptr(p).data());
    return g.compute(node, t.nth);
}

// upstream's kernel: all heads have as many cells as the longest needs, one mask for each query head
static std::vector<float> stock(const problem & p) {
    const test_case & t = p.t;
    const int n = *std::max_element(t.len, t.len + N_HEAD_KV) + t.n_kv;
    graph g(128u << 20);
    const auto all = [&](const std::vector<rows> & r) {
        return g.cells(r[0].type, r[0].n_elements, n, [&](int cell, int ih, uint8_t * row) {
            memset(row, 0, r[ih].bytes());
            if (cell < t.len[ih] + t.n_kv) { memcpy(row, &r[ih].data[cell*r[ih].bytes()], r[ih].bytes()); }
        });
    };
    ggml_tensor * mask = ggml_new_tensor_3d(g.ctx, GGML_TYPE_F16, n, t.n_tok, p.n_head());
    for (int h = 0; h < p.n_head(); h++) {
        const int len = t.len[h/t.group];
        for (int tok = 0; tok < t.n_tok; tok++) {
            for (int cell = 0; cell < n; cell++) {
                const float m = cell < len ? 0.0f : cell < len + t.n_kv ? p.mask[tok*t.n_kv + cell - len] : -INFINITY;
                ((ggml_fp16_t *) mask->data)[((size_t) h*t.n_tok + tok)*n + cell] = ggml_fp32_to_fp16(m);
            }
        }
    }
    return g.compute(g.attention(p, all(p.k), all(p.v), mask), t.nth);
}

int main(int argc, char ** argv) {
    const int begin = argc > 1 ? atoi(argv[1]) : 0;
    const int end   = argc > 2 ? atoi(argv[2]) : argc > 1 ? begin + 1 : n_combinations();
    int n_run = 0, n_skipped = 0, n_failed = 0;
    double worst = 0, worst_stock = 0;

    for (int c = begin; c < end; c++) {
        const test_case t = make_case(c);
        if (!is_possible(t)) {
            n_skipped++;
            continue;
        }
        const problem p = make_problem(t, c);
        const std::vector<double> ref = reference(p);
        const double e       = nmse(ours(p), ref);
        const double e_stock = nmse(stock(p), ref);
        const bool   ok      = e <= (t.has_softcap ? NMSE_MAX_SOFTCAP : NMSE_MAX);

        n_run++;
        worst       = std::max(worst, e);
        worst_stock = std::max(worst_stock, e_stock);
        if (!ok) { n_failed++; }
        if (!ok || end == begin + 1) {
            printf("%s case %d: K %s x %d, V %s x %d, group %d, tokens %d, threads %d, hot %d/%d/%d, tail %d, mask %d, "
                    "softcap %d, sinks %d: nmse %g, stock %g\n", ok ? "ok" : "FAILED", c, ggml_type_name(t.type_k), t.n_k,
                    ggml_type_name(t.type_v), t.n_v, t.group, t.n_tok, t.nth, t.len[0], t.len[1], t.len[2], t.n_kv, t.mask,
                    t.has_softcap, t.has_sinks, e, e_stock);
        }
    }
    printf("attention: %d cases, %d failed, %d skipped (block of the type does not divide the head size), "
            "worst nmse %.1e, stock %.1e\n", n_run, n_failed, n_skipped, worst, worst_stock);
    return n_failed == 0 && n_run > 0 ? 0 : 1;
}
