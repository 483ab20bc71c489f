// bench-attention.cpp: the fused CPU kernel against stock flash attention with as many rows, in turns, in one process.
//
//     bench-attention [n_threads] [filter]
//
// A graph holds as many layers as a 512 MiB cache has, each with rows of its own, so that rows come from memory as in a
// real model, not from a cache that a single layer would stay in. Stock: [cells][n_head_kv][n_embd_head] as llama.cpp
// stores them, no cell masked. Ours: the same number of rows, N_TAIL of them in the tail, the others hot, shared
// evenly or unevenly (one KV head of each layer has 100 times the rows of the others). Medians and best over RUNS.
//
// On a busy machine set OMP_WAIT_POLICY=passive: a thread that spins at a barrier takes the core from the one it waits for,
// and both sides then measure the scheduler (8 ms for every node).

#include "attend/node.h"

#include "ggml-cpu.h"
#include "ggml.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

static constexpr int    N_TAIL      = 64;
static constexpr int    RUNS        = 11;
static constexpr size_t CACHE_BYTES = 512u << 20;

struct model {
    const char * name;
    int n_head, n_head_kv, n_embd_head, n_layer;
};

static const model MODELS[] = {
    { "smollm2-135m", 9,  3, 64,  30 },
    { "llama-8b",     32, 8, 128, 32 },
    { "qwen2.5-7b",   28, 4, 128, 28 },
};

struct bench {
    const model & m;
    ggml_type     type;
    int           n_rows; // per KV head, mean
    int           n_tok;
    int           n_layer;
    ggml_context * ctx;
    ggml_cgraph *  graph;

    bench(const model & m, ggml_type type, int n_rows, int n_tok) : m(m), type(type), n_rows(n_rows), n_tok(n_tok) {
        const size_t layer_bytes = 2*ggml_row_size(type, m.n_embd_head)*m.n_head_kv*n_rows;
        n_layer = (int) std::min<size_t>(m.n_layer, 1 + CACHE_BYTES/layer_bytes);
        const size_t per_layer = layer_bytes + (4*sizeof(float)*m.n_embd_head*m.n_head + 4*(size_t) n_rows)*n_tok + (1u << 20);
        ctx   = ggml_init({ per_layer*n_layer + (16u << 20), nullptr, false });
        graph = ggml_new_graph(ctx);
    }
    bench(const bench &) = delete;
    ~bench() { ggml_free(ctx); }

    ggml_tensor * rows(int64_t n) { // random bits that are small numbers in every type
        ggml_tensor * t = ggml_new_tensor_2d(ctx, type, m.n_embd_head, n);
        std::vector<float> x(1 << 16);
        for (size_t i = 0; i < x.size(); i++) { x[i] = (float) ((i*2654435761u >> 8) % 1000)/500 - 1; }
        const int64_t chunk = (int64_t) x.size()/m.n_embd_head;
        for (int64_t r = 0; r < n; r += chunk) {
            ggml_quantize_chunk(type, x.data(), (uint8_t *) t->data + r*t->nb[1], 0, std::min(chunk, n - r), m.n_embd_head, nullptr);
        }
        return t;
    }

    ggml_tensor * cells(int n) {
        return ggml_permute(ctx, ggml_reshape_3d(ctx, rows((int64_t) n*m.n_head_kv), m.n_embd_head, m.n_head_kv, n), 0, 2, 1, 3);
    }

    ggml_tensor * node(int n_cells) {
        ggml_tensor * q = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, m.n_embd_head, m.n_head, n_tok);
        for (int64_t i = 0; i < ggml_nelements(q); i++) { ((float *) q->data)[i] = (float) ((i*40503 >> 3) % 1000)/500 - 1; }
        ggml_tensor * mask = ggml_new_tensor_2d(ctx, GGML_TYPE_F16, n_cells, n_tok);
        memset(mask->data, 0, ggml_nbytes(mask));
        return ggml_flash_attn_ext(ctx, ggml_permute(ctx, q, 0, 2, 1, 3), cells(n_cells), cells(n_cells), mask, 0.1f, 0, 0);
    }

    void add_stock() { ggml_build_forward_expand(graph, node(n_rows)); }

    void add_ours(bool is_uneven) {
        const int n_hot = (n_rows - N_TAIL)*m.n_head_kv;
        ggml_tensor * t       = node(N_TAIL);
        ggml_tensor * row_ptr = ggml_new_tensor_1d(ctx, GGML_TYPE_I32, m.n_head_kv + 1);
        int32_t * first = (int32_t *) row_ptr->data;
        const int share = is_uneven ? n_hot/(m.n_head_kv - 1 + 100) : n_hot/m.n_head_kv;
        for (int ih = 0; ih < m.n_head_kv; ih++) {
            first[ih] = ih*share;
        }
        first[m.n_head_kv] = n_hot;
        t->src[HEADKV_SRC_K_HOT]   = rows(n_hot);
        t->src[HEADKV_SRC_V_HOT]   = rows(n_hot);
        t->src[HEADKV_SRC_ROW_PTR] = row_ptr;
        ggml_build_forward_expand(graph, t);
    }

    double run(ggml_threadpool * pool, int n_threads) { // us per layer
        ggml_cplan plan = ggml_graph_plan(graph, n_threads, pool);
        std::vector<uint8_t> work(plan.work_size);
        plan.work_data = work.data();
        const auto t0 = std::chrono::steady_clock::now();
        ggml_graph_compute(graph, &plan);
        return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - t0).count()/n_layer;
    }
};

struct times {
    std::vector<double> us;

    double median() { std::sort(us.begin(), us.end()); return us[us.size()/2]; }
    double best() const { return *std::min_element(us.begin(), us.end()); }
};

static void compare(const model & m, ggml_type type, int n_rows, int n_tok, ggml_threadpool * pool, int n_threads) {
    bench stock(m, type, n_rows, n_tok), even(m, type, n_rows, n_tok), uneven(m, type, n_rows, n_tok);
    for (int il = 0; il < stock.n_layer; il++) {
        stock.add_stock();
        even.add_ours(false);
        uneven.add_ours(true);
    }
    times t_stock, t_even, t_uneven;
    for (int i = 0; i < RUNS + 1; i++) {
        const double us[] = { stock.run(pool, n_threads), even.run(pool, n_threads), uneven.run(pool, n_threads) };
        if (i > 0) { // the first run touches the memory
            t_stock.us.push_back(us[0]);
            t_even.us.push_back(us[1]);
            t_uneven.us.push_back(us[2]);
        }
    }
    const double bytes = 2.0*ggml_row_size(type, m.n_embd_head)*m.n_head_kv*n_rows;
    printf("%-13s %-5s %6d %6d %7d | %9.1f %9.1f | %9.1f %9.1f %6.1f | %6.2f %6.2f | %9.1f %6.2f\n", m.name, ggml_type_name(type),
            n_tok, n_rows, stock.n_layer, t_stock.median(), t_stock.best(), t_even.median(), t_even.best(),
            bytes/t_even.best()*1e-3, t_stock.median()/t_even.median(), t_stock.best()/t_even.best(),
            t_uneven.median(), t_stock.median()/t_uneven.median());
    fflush(stdout);
}

int main(int argc, char ** argv) {
    const int         n_threads = argc > 1 ? atoi(argv[1]) : 2;
    const std::string filter    = argc > 2 ? argv[2] : "";
    ggml_cpu_init();
    ggml_threadpool_params params = ggml_threadpool_params_default(n_threads);
    ggml_threadpool *      pool   = ggml_threadpool_new(&params);

    printf("us per layer, %d threads            |     stock           |      ours                  |    times as fast|     ours, uneven\n"
            "model         type  tokens   rows  layers |    median      best |    median      best   GB/s | median   best |    median median\n",
            n_threads);
    for (const model & m : MODELS) {
        for (ggml_type type : { GGML_TYPE_F16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0 }) {
            for (int n_tok : { 1, 4, 64, 512 }) {
                for (int n_rows : { 512, 2048, 8192, 32768 }) {
                    const bool is_long = n_tok > 4 && (n_rows > 2048 || (type != GGML_TYPE_F16 && n_rows > 512));
                    const std::string name = std::string(m.name) + "/" + ggml_type_name(type) + "/" + std::to_string(n_tok) + "/";
                    if (!is_long && name.find(filter) != std::string::npos) {
                        compare(m, type, n_rows, n_tok, pool, n_threads);
                    }
                }
            }
        }
    }
    ggml_threadpool_free(pool);
    return 0;
}
