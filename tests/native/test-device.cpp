// test-device.cpp: the fused kernel of a device, where there is one, against float64 attention.
//
// `test-device [NAME [C [END [STEP]]]]`: NAME as ggml names it (CUDA0), or GPU for the first one. Case number c decides everything,
// as in test-cuda. Exit code 0: all cases passed; 77: no such device. Prefix rows outside [off, off + len) are poisoned with NaN; cells
// that every token masks stay zero. Rounding is the device's: f16 queries, keys, values and weights.

#include "attention-problem.h"
#include "device-node.h"

#include <string>

static constexpr double NMSE_MAX = 5e-6; // f16 operands, at logits of some tens

static const ggml_type TYPES[] = { GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0 };
static const int SIZES[]  = { 64, 80, 96, 128, 256 };
static const int GROUPS[] = { 1, 3, 4, 8, 16 };
static const int TOKENS[] = { 1, 2, 5, 8, 70 };

static constexpr int EXIT_SKIPPED = 77;

static test_case make_case(int c) {
    test_case t = {};
    int x = c;
    const auto digit = [&](int n) { const int d = x % n; x /= n; return d; };
    t.type_k = t.type_v = TYPES[digit(size(TYPES))];
    t.n_k    = t.n_v    = SIZES[digit(size(SIZES))];
    t.group  = GROUPS[digit(size(GROUPS))];
    t.n_tok  = TOKENS[digit(size(TOKENS))];

    std::mt19937 rng(c);
    draw_lengths(t, rng);
    draw_tail(t, rng);
    return t;
}

static std::vector<uint8_t> tail(const problem & p, const std::vector<rows> & all) {
    const size_t bytes = all[0].bytes();
    std::vector<uint8_t> data((size_t) p.t.n_kv*N_HEAD_KV*bytes);
    for (int cell = 0; cell < p.t.n_kv; cell++) {
        for (int ih = 0; ih < N_HEAD_KV && p.is_visible(cell); ih++) {
            std::copy_n(&all[ih].data[(p.t.len[ih] + cell)*bytes], bytes, &data[(size_t) (cell*N_HEAD_KV + ih)*bytes]);
        }
    }
    return data;
}

template <class T> static void set(ggml_tensor * t, const std::vector<T> & data) {
    device_node::set(t, data.data(), data.size()*sizeof(T));
}

// false: the device does not take the node
static bool compute(ggml_backend_t backend, const problem & p, std::vector<float> & out) {
    const test_case & t = p.t;
    const int64_t n_rows = row_ptr(p).back() + GAPS[1];

    device_node n(backend, { t.type_k, t.type_v, t.n_k, t.n_v, N_HEAD_KV, t.group, t.n_tok, t.n_kv, n_rows,
        t.mask != MASK_NONE, t.has_sinks, p.scale, t.has_softcap ? SOFTCAP : 0.0f });
    if (!n.is_supported) {
        return false;
    }
    set(n.q, p.q);
    set(n.k, tail(p, p.k));
    set(n.v, tail(p, p.v));
    set(n.k_hot, hot(p, p.k));
    set(n.v_hot, hot(p, p.v));
    set(n.row_ptr, row_ptr(p));
    if (n.mask) {
        std::vector<ggml_fp16_t> mask(p.mask.size());
        ggml_fp32_to_fp16_row(p.mask.data(), mask.data(), mask.size());
        set(n.mask, mask);
    }
    if (n.sinks) {
        set(n.sinks, p.sinks);
    }
    out.assign(ggml_nelements(n.node), NAN); // what is not written shows
    set(n.node, out);
    n.compute();
    ggml_backend_synchronize(backend);
    ggml_backend_tensor_get(n.node, out.data(), 0, ggml_nbytes(n.node));
    return true;
}

int main(int argc, char ** argv) {
    const char * name  = argc > 1 ? argv[1] : "GPU";
    const int    begin = argc > 2 ? atoi(argv[2]) : 0;
    const int    end   = argc > 3 ? atoi(argv[3]) : argc > 2 ? begin + 1 : size(TYPES)*size(SIZES)*size(GROUPS)*size(TOKENS);
    const int    step  = argc > 4 ? atoi(argv[4]) : 1;

    ggml_backend_t backend = open_device(name);
    if (!backend) {
        printf("device: 0 cases, skipped: there is no device %s\n", name);
        return EXIT_SKIPPED;
    }
    int n_run = 0, n_skipped = 0, n_failed = 0;
    double worst = 0;
    for (int c = begin; c < end; c += step) {
        const test_case t = make_case(c);
        if (t.n_k % ggml_blck_size(t.type_k) != 0) {
            n_skipped++;
            continue;
        }
        const problem p = make_problem(t, c);
        std::vector<float> out;
        const bool   is_supported = compute(backend, p, out);
        const double e  = is_supported ? nmse(out, reference(p)) : INFINITY;
        const bool   ok = e <= NMSE_MAX;

        n_run++;
        worst = std::max(worst, e);
        if (!ok) { n_failed++; }
        if (!ok || end == begin + 1) {
            printf("%s case %d: %s x %d, group %d, tokens %d, hot %d/%d/%d, tail %d, mask %d, softcap %d, sinks %d: %s, nmse %g\n",
                    ok ? "ok" : "FAILED", c, ggml_type_name(t.type_k), t.n_k, t.group, t.n_tok, t.len[0], t.len[1], t.len[2], t.n_kv,
                    t.mask, t.has_softcap, t.has_sinks, is_supported ? "computed" : "refused by the device", e);
        }
    }
    printf("%s: %d cases, %d failed, %d skipped (block of the type does not divide the head size), worst nmse %.1e\n",
            ggml_backend_name(backend), n_run, n_failed, n_skipped, worst);
    ggml_backend_free(backend);
    return n_failed == 0 && n_run > 0 ? 0 : 1;
}
