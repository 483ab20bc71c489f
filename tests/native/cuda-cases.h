// cuda-cases.h: the cases of the CUDA kernels against float64 attention, for programs that run them in ways of their own (run()):
// test-cuda.cpp, and tests/cuda/test-ptx.cpp.
//
// Case number c decides everything: type, size, group and tokens by its digits, the rest and the data by its seed.
//
// The reference reads queries, keys and values as the matrix units get them, rounded to f16; what is left is the rounding of weights
// and sums. Hot rows outside of the heads', parts and output are poisoned with NaN; tail cells that every token masks
// hold large numbers, since the kernel may read them (headkv-cuda.h).

#pragma once

#include "attention-problem.h"

#include "headkv-cuda-attend.cuh"
#include "headkv-cuda-combine.cuh"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>

// both kernels of a node; args: pointers to host memory, without the parts. Each program has its own
template <class Row, int D, int N_Q16> static void run(headkv::attn_args args);

// weights are f16: an error of up to 2^-11 each, 1.2e-4 quadratic mean of what counts, alike in numerator and output
static constexpr double NMSE_MAX = 1e-7;

static const ggml_type TYPES[] = { GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0 };
static const int SIZES[]  = { 64, 80, 96, 128, 256 };
static const int GROUPS[] = { 1, 3, 4, 8, 16 };
static const int TOKENS[] = { 1, 2, 5, 8 };
static const int BLOCKS[] = { 1, 2, 3, 7, 40 };

static test_case make_case(int c) {
    test_case t = {};
    int x = c;
    const auto digit = [&](int n) { const int d = x % n; x /= n; return d; };
    t.type_k = t.type_v = TYPES[digit(size(TYPES))];
    t.n_k    = t.n_v    = SIZES[digit(size(SIZES))];
    t.group  = GROUPS[digit(size(GROUPS))];
    t.n_tok  = TOKENS[digit(size(TOKENS))];

    std::mt19937 rng(c);
    t.nth    = BLOCKS[rng() % size(BLOCKS)];
    draw_lengths(t, rng);
    draw_tail(t, rng);
    return t;
}

static constexpr int n_combinations() {
    return size(TYPES)*size(SIZES)*size(GROUPS)*size(TOKENS);
}

static float to_half(float x) {
    return ggml_fp16_to_fp32(ggml_fp32_to_fp16(x));
}

// what the matrix units see
static problem rounded(problem p) {
    const float scale = p.t.has_softcap ? p.scale/SOFTCAP : p.scale; // as the kernel takes it
    for (float & x : p.q) {
        x = to_half(x*scale)/scale;
    }
    for (auto * all : { &p.k, &p.v }) {
        for (rows & r : *all) {
            for (float & x : r.values) { x = to_half(x); }
        }
    }
    return p;
}

// [n_kv][N_HEAD_KV] rows
static std::vector<uint8_t> tail(const problem & p, const std::vector<rows> & all, std::mt19937 & rng) {
    const size_t bytes = all[0].bytes();
    const rows   large = random_rows(all[0].type, all[0].n_elements, 1, rng);
    std::vector<uint8_t> data;
    for (int cell = 0; cell < p.t.n_kv; cell++) {
        for (int ih = 0; ih < N_HEAD_KV; ih++) {
            const uint8_t * row = p.is_visible(cell) ? &all[ih].data[(p.t.len[ih] + cell)*bytes] : large.data.data();
            data.insert(data.end(), row, row + bytes);
        }
    }
    return data;
}

template <class Row, int D> static void run_for_queries(const headkv::attn_args & args) {
    const int n = (args.n_query() + args.n_tile - 1)/args.n_tile;
    if (n <= 16) {
        run<Row, D, 1>(args);
    } else if (n <= 32) {
        run<Row, D, 2>(args);
    } else {
        run<Row, D, 4>(args);
    }
}

template <class Row> static void run_for_size(const headkv::attn_args & args, int n) {
    switch (n) {
        case  64: run_for_queries<Row,  64>(args); break;
        case  96: run_for_queries<Row,  96>(args); break;
        case 128: run_for_queries<Row, 128>(args); break;
        case 256: run_for_queries<Row, 256>(args); break;
        default:  if constexpr (Row::BLOCK == 1) { run_for_queries<Row, 80>(args); }
    }
}

static std::vector<float> ours(const problem & p, int seed) {
    const test_case & t = p.t;
    std::mt19937 rng(seed);
    const auto k_hot = hot(p, p.k), v_hot = hot(p, p.v);
    const auto k  = tail(p, p.k, rng), v = tail(p, p.v, rng);
    const auto ptr = row_ptr(p);
    std::vector<ggml_fp16_t> mask(p.mask.size());
    ggml_fp32_to_fp16_row(p.mask.data(), mask.data(), mask.size());
    std::vector<float> dst((size_t) t.n_tok*p.n_head()*t.n_v, std::numeric_limits<float>::quiet_NaN());

    const int64_t bytes = p.k[0].bytes();
    headkv::attn_args args = {};
    args.q           = (const char *) p.q.data();
    args.k           = (const char *) k.data();
    args.v           = (const char *) v.data();
    args.mask        = t.mask == MASK_NONE ? nullptr : (const char *) mask.data();
    args.sinks       = t.has_sinks ? p.sinks.data() : nullptr;
    args.k_hot       = (const char *) k_hot.data();
    args.v_hot       = (const char *) v_hot.data();
    args.row_ptr     = ptr.data();
    args.dst         = dst.data();
    args.nb_q_tok    = (int64_t) p.n_head()*t.n_k*sizeof(float);
    args.nb_q_head   = (int64_t) t.n_k*sizeof(float);
    args.nb_k_row    = args.nb_v_row    = N_HEAD_KV*bytes;
    args.nb_k_head   = args.nb_v_head   = bytes;
    args.nb_k_hot    = args.nb_v_hot    = bytes;
    args.nb_mask     = t.n_kv*sizeof(ggml_fp16_t);
    args.n_kv        = t.n_kv;
    args.n_head_kv   = N_HEAD_KV;
    args.n_gqa       = t.group;
    args.n_tok       = t.n_tok;
    args.n_tile      = (args.n_query() + headkv::MAX_TILE - 1)/headkv::MAX_TILE;
    args.n_block     = t.nth;
    args.softcap     = t.has_softcap ? SOFTCAP : 0.0f;
    args.scale       = t.has_softcap ? p.scale/SOFTCAP : p.scale;

    switch (t.type_k) {
        case GGML_TYPE_F16:  run_for_size<headkv::row_f16> (args, t.n_k); break;
        case GGML_TYPE_BF16: run_for_size<headkv::row_bf16>(args, t.n_k); break;
        case GGML_TYPE_Q8_0: run_for_size<headkv::row_q8_0>(args, t.n_k); break;
        default:             run_for_size<headkv::row_q4_0>(args, t.n_k); break;
    }
    return dst;
}

// `PROGRAM`: every third of the combinations, which has all types, sizes, groups and tokens; `PROGRAM C`: only case C;
// `PROGRAM C END`: the cases [C, END). Returns the exit code, 0: all cases passed
static int run_cases(int argc, char ** argv) {
    const int begin = argc > 1 ? atoi(argv[1]) : 0;
    const int end   = argc > 2 ? atoi(argv[2]) : argc > 1 ? begin + 1 : n_combinations();
    const int step  = argc > 1 ? 1 : 3;
    int n_run = 0, n_skipped = 0, n_failed = 0;
    double worst = 0;

    for (int c = begin; c < end; c += step) {
        const test_case t = make_case(c);
        if (t.n_k % ggml_blck_size(t.type_k) != 0) {
            n_skipped++;
            continue;
        }
        const problem p  = make_problem(t, c);
        const double  e  = nmse(ours(p, c), reference(rounded(p)));
        const bool    ok = e <= NMSE_MAX;

        n_run++;
        worst = std::max(worst, e);
        if (!ok) { n_failed++; }
        if (!ok || end == begin + 1) {
            printf("%s case %d: %s x %d, group %d, tokens %d, blocks %d, hot %d/%d/%d, tail %d, mask %d, softcap %d, sinks %d: "
                    "nmse %g\n", ok ? "ok" : "FAILED", c, ggml_type_name(t.type_k), t.n_k, t.group, t.n_tok, t.nth,
                    t.len[0], t.len[1], t.len[2], t.n_kv, t.mask, t.has_softcap, t.has_sinks, e);
        }
    }
    printf("cuda: %d cases, %d failed, %d skipped (block of the type does not divide the head size), worst nmse %.1e\n",
            n_run, n_failed, n_skipped, worst);
    return n_failed == 0 && n_run > 0 ? 0 : 1;
}
