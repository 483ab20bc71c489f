// test-metal.cpp: the Metal kernels against float64 attention over the dequantised rows, on the first Metal device there is.
//
// Case number c decides everything: the kernel by c % N_KERNELS, the rest and the data by its seed. So the first N_KERNELS cases try
// each kernel once, and each further round tries other shapes. `test-metal` runs ROUNDS of them, `test-metal C` only case C,
// `test-metal C END` the cases [C, END). Exit code 0: all cases passed; 77: no Metal device.
//
// `test -b NAME` before the numbers is left out of account, and results are printed as upstream's test-backend-ops prints them, so that
// tools made for that program can drive this one.
//
// Prefix rows outside [off, off + len) are poisoned with NaN.

#include "attend/node.h"
#include "attention-problem.h"

#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "ggml.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

static constexpr int ROUNDS = 4;

// of f32 arithmetic, see test-attention.cpp; exp and tanh of a GPU are off by a few 1e-7
static constexpr double NMSE_MAX = 1e-10;

static const ggml_type TYPES[] = { GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0 };
static const int       SIZES[] = { 64, 80, 96, 128, 256 };

// group, tokens: of tiles with 1, 4 and 8 queries. More than 8 tokens only in nodes with sinks
static const int QUERIES[3][7][2] = {
    { { 1, 1 }, { 1, 1 }, { 1, 1 }, { 1, 1 }, { 1, 1 }, { 1, 1 }, { 1, 1 } },
    { { 4, 1 }, { 3, 1 }, { 1, 4 }, { 2, 2 }, { 1, 3 }, { 2, 1 }, { 1, 2 } },
    { { 8, 1 }, { 7, 1 }, { 4, 2 }, { 3, 5 }, { 1, 8 }, { 3, 8 }, { 5, 11 } },
};
static constexpr int N_KERNELS = 4*5*3;

static const int LONG_LENGTHS[][3] = { { 0, 900, 17 }, { 400, 3, 500 }, { 5, 0, 1300 } }; // several chunks of a head

static test_case make_case(int c) {
    test_case t = {};
    int x = c;
    const auto digit = [&](int n) { const int d = x % n; x /= n; return d; };
    const int tile = digit(3);
    t.type_k = t.type_v = TYPES[digit(size(TYPES))];
    t.n_k    = t.n_v    = SIZES[digit(size(SIZES))];

    std::mt19937 rng(c + 1); // the rest is drawn
    const int * queries = QUERIES[tile][rng() % 7];
    t.group = queries[0];
    t.n_tok = queries[1];
    if (rng() % 3) {
        draw_lengths(t, rng);
    } else {
        t.len = LONG_LENGTHS[rng() % size(LONG_LENGTHS)];
    }
    draw_tail(t, rng);
    t.has_sinks = t.has_sinks || t.n_tok > 8;
    return t;
}

static bool is_possible(const test_case & t) {
    return t.n_k % ggml_blck_size(t.type_k) == 0;
}

// a graph of attention nodes on the device; data is set after alloc()
struct device_graph {
    ggml_backend_t          backend;
    ggml_context_ptr        ctx { ggml_init({ 64*ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, /*.no_alloc =*/ true }) };
    ggml_backend_buffer_ptr buf;
    ggml_tensor * q, * k, * v, * mask = nullptr, * sinks = nullptr, * k_hot, * v_hot, * row_ptr;

    device_graph(ggml_backend_t backend, const test_case & t) : backend(backend) {
        int n = 0;
        for (int gap : GAPS) { n += gap; }
        for (int ih = 0; ih < N_HEAD_KV; ih++) { n += t.len[ih]; }
        q        = ggml_new_tensor_3d(ctx.get(), GGML_TYPE_F32, t.n_k, t.group*N_HEAD_KV, t.n_tok);
        k        = ggml_new_tensor_3d(ctx.get(), t.type_k, t.n_k, N_HEAD_KV, t.n_kv);
        v        = ggml_new_tensor_3d(ctx.get(), t.type_v, t.n_v, N_HEAD_KV, t.n_kv);
        k_hot    = ggml_new_tensor_2d(ctx.get(), t.type_k, t.n_k, n);
        v_hot    = ggml_new_tensor_2d(ctx.get(), t.type_v, t.n_v, n);
        row_ptr  = ggml_new_tensor_1d(ctx.get(), GGML_TYPE_I32, N_HEAD_KV + 1);
        mask     = t.mask == MASK_NONE ? nullptr : ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F16, t.n_kv, t.n_tok);
        sinks    = t.has_sinks ? ggml_new_tensor_1d(ctx.get(), GGML_TYPE_F32, t.group*N_HEAD_KV) : nullptr;
    }

    ggml_tensor * node(const test_case & t, float scale) {
        const auto heads = [&](ggml_tensor * x) { return ggml_permute(ctx.get(), x, 0, 2, 1, 3); };
        ggml_tensor * fa = ggml_flash_attn_ext(ctx.get(), heads(q), heads(k), heads(v), mask, scale, 0.0f, t.has_softcap ? SOFTCAP : 0.0f);
        fa->src[HEADKV_SRC_SINKS]   = sinks;
        fa->src[HEADKV_SRC_K_HOT]   = k_hot;
        fa->src[HEADKV_SRC_V_HOT]   = v_hot;
        fa->src[HEADKV_SRC_ROW_PTR] = row_ptr;
        return fa;
    }

    void alloc() { buf.reset(ggml_backend_alloc_ctx_tensors(ctx.get(), backend)); }

    template <class T> static void set(ggml_tensor * t, const std::vector<T> & data) {
        ggml_backend_tensor_set(t, data.data(), 0, ggml_nbytes(t));
    }

    static std::vector<uint8_t> cells(const problem & p, const std::vector<rows> & all) {
        std::vector<uint8_t> data;
        for (int cell = 0; cell < p.t.n_kv; cell++) {
            for (int ih = 0; ih < N_HEAD_KV; ih++) {
                const size_t bytes = all[ih].bytes();
                const auto   row   = all[ih].data.begin() + (p.t.len[ih] + cell)*bytes;
                data.insert(data.end(), row, row + bytes);
            }
        }
        return data;
    }

    void set_data(const problem & p) {
        set(q, p.q);
        set(k, cells(p, p.k));
        set(v, cells(p, p.v));
        set(k_hot, hot(p, p.k));
        set(v_hot, hot(p, p.v));
        set(row_ptr, ::row_ptr(p));
        if (mask) {
            std::vector<ggml_fp16_t> x(p.mask.size());
            ggml_fp32_to_fp16_row(p.mask.data(), x.data(), (int64_t) x.size());
            set(mask, x);
        }
        if (sinks) {
            set(sinks, p.sinks);
        }
    }
};

// largest NMSE of two equal nodes of one graph: they run at the same time and must not write into each other's scratch
static double run_case(ggml_backend_t backend, const test_case & t, int seed) {
    const problem p = make_problem(t, seed);
    const auto ref  = reference(p);

    device_graph g(backend, t);
    ggml_tensor * nodes[2] = { g.node(t, p.scale), g.node(t, p.scale) };
    g.alloc();
    g.set_data(p);
    ggml_cgraph * graph = ggml_new_graph(g.ctx.get());
    for (ggml_tensor * node : nodes) {
        if (!ggml_backend_supports_op(backend, node)) {
            return INFINITY;
        }
        ggml_build_forward_expand(graph, node);
    }
    if (ggml_backend_graph_compute(backend, graph) != GGML_STATUS_SUCCESS) {
        return INFINITY;
    }
    double worst = 0;
    for (ggml_tensor * node : nodes) {
        std::vector<float> out(ggml_nelements(node));
        ggml_backend_tensor_get(node, out.data(), 0, ggml_nbytes(node));
        const double error = nmse(out, ref);
        worst = error <= worst ? worst : error; // NaN is the worst
    }
    return worst;
}

// nodes that are refused: the composed graph or upstream's backend does them
static bool test_refusals(ggml_backend_t backend) {
    const int len[] = { 5, 5, 5 };
    const test_case good = { GGML_TYPE_F16, GGML_TYPE_F16, 64, 64, 3, 1, 1, 40, len, MASK_CAUSAL, false, false };
    const auto is_supported = [&](const test_case & t) {
        device_graph g(backend, t);
        return ggml_backend_supports_op(backend, g.node(t, 1.0f));
    };
    test_case nine = good, nine_sinks = good, type = good, size = good;
    nine.n_tok       = 9;
    nine_sinks.n_tok = 9;
    nine_sinks.has_sinks = true;
    type.type_k = type.type_v = GGML_TYPE_F32;
    size.n_k    = size.n_v    = 72;
    const bool ok = is_supported(good) && !is_supported(nine) && is_supported(nine_sinks) && !is_supported(type) && !is_supported(size);
    printf("  refusals(): %s\n", ok ? "\033[1;32mOK\033[0m" : "\033[1;31mFAIL\033[0m");
    return ok;
}

static ggml_backend_t open_metal() {
    ggml_backend_load_all();
    for (size_t i = 0; i < ggml_backend_dev_count(); i++) {
        ggml_backend_dev_t dev = ggml_backend_dev_get(i);
        if (strcmp(ggml_backend_reg_name(ggml_backend_dev_backend_reg(dev)), "MTL") == 0) {
            return ggml_backend_dev_init(dev, nullptr);
        }
    }
    return nullptr;
}

int main(int argc, char ** argv) {
    std::vector<int> numbers;
    for (int i = 1; i < argc; i++) {
        if (argv[i][0] >= '0' && argv[i][0] <= '9') { numbers.push_back(atoi(argv[i])); }
    }
    const int first = numbers.empty() ? 0 : numbers[0];
    const int end   = numbers.size() > 1 ? numbers[1] : numbers.empty() ? ROUNDS*N_KERNELS : first + 1;

    ggml_backend_ptr backend { open_metal() };
    if (!backend) {
        printf("no Metal device\n");
        return 77;
    }
    int n = 1, n_passed = test_refusals(backend.get());
    for (int c = first; c < end; c++) {
        const test_case t = make_case(c);
        if (!is_possible(t)) { continue; }
        const double error = run_case(backend.get(), t, c);
        const bool   ok    = error <= NMSE_MAX;
        n++;
        n_passed += ok;
        printf("  attention(case=%d,type=%s,size=%d,group=%d,tokens=%d,rows=%d/%d/%d,cells=%d,mask=%d,softcap=%d,sinks=%d,nmse=%.1e): %s\n",
            c, ggml_type_name(t.type_k), t.n_k, t.group, t.n_tok, t.len[0], t.len[1], t.len[2], t.n_kv, t.mask, t.has_softcap, t.has_sinks,
            error, ok ? "\033[1;32mOK\033[0m" : "\033[1;31mFAIL\033[0m");
        fflush(stdout);
    }
    printf("  %d/%d tests passed\n", n_passed, n);
    return n_passed == n ? 0 : 1;
}
