// attention-problem.h: random attention over hot rows and tail, and what float64 says of it. For the tests of the kernels.

#pragma once

#include "ggml.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

static constexpr float SOFTCAP = 30.0f;

static const int LENGTHS[][3] = { // hot rows of the KV heads
    { 97, 1, 17 }, { 0, 0, 0 }, { 0, 200, 0 }, { 17, 0, 97 }, { 64, 63, 65 }, { 1, 1, 1 }, { 128, 0, 0 },
};

enum mask_kind { MASK_CAUSAL, MASK_HOLES, MASK_BIAS, MASK_ALL, MASK_NONE, MASK_KINDS };

static constexpr int N_HEAD_KV = 3;

template <class T, size_t N> static constexpr int size(const T (&)[N]) { return (int) N; }

struct test_case {
    ggml_type type_k, type_v;
    int n_k, n_v, group, n_tok, nth, n_kv;
    const int * len;
    int  mask;
    bool has_softcap, has_sinks;
};

// what the tests draw alike: after the shapes, in this order, so that case numbers keep their meaning
static void draw_lengths(test_case & t, std::mt19937 & rng) {
    t.len = LENGTHS[rng() % size(LENGTHS)];
}

static void draw_tail(test_case & t, std::mt19937 & rng) {
    t.mask = (int) (rng() % MASK_KINDS);
    t.n_kv = t.mask == MASK_CAUSAL ? t.n_tok + (int) (rng() % 130) : 1 + (int) (rng() % 130);
    t.has_softcap = rng() % 3 == 0;
    t.has_sinks   = rng() % 3 == 0;
}

// random rows of one head, in their type and as the numbers they stand for
struct rows {
    ggml_type type;
    int n_elements;
    std::vector<uint8_t> data;   // [n][row bytes]
    std::vector<float>   values; // [n][n_elements]

    size_t bytes() const { return ggml_row_size(type, n_elements); }
};

static rows random_rows(ggml_type type, int n_elements, int n, std::mt19937 & rng) {
    rows r = { type, n_elements, {}, std::vector<float>((size_t) n*n_elements) };
    std::normal_distribution<float> normal;
    for (float & v : r.values) {
        v = normal(rng);
    }
    r.data.resize(n*r.bytes());
    ggml_quantize_chunk(type, r.values.data(), r.data.data(), 0, n, n_elements, nullptr);
    if (type != GGML_TYPE_F32) {
        ggml_get_type_traits(type)->to_float(r.data.data(), r.values.data(), (int64_t) n*n_elements);
    }
    return r;
}

struct problem {
    test_case t;
    std::vector<rows>     k, v; // [N_HEAD_KV], len + n_kv rows each: hot rows first, then the tail
    std::vector<float>    q;    // [n_tok][n_head][n_k]
    std::vector<float>    mask; // [n_tok][n_kv]
    std::vector<float>    sinks;
    float scale;

    int  n_head() const { return N_HEAD_KV*t.group; }
    bool is_visible(int cell) const {
        for (int tok = 0; tok < t.n_tok; tok++) {
            if (mask[tok*t.n_kv + cell] != -INFINITY) { return true; }
        }
        return false;
    }
};

static float mask_value(const test_case & t, int tok, int cell, std::mt19937 & rng) {
    switch (t.mask) {
        case MASK_CAUSAL: return cell <= t.n_kv - t.n_tok + tok ? 0.0f : -INFINITY;
        case MASK_HOLES:  return rng() % 4 ? -INFINITY : 0.0f;
        case MASK_BIAS:   return rng() % 3 ? -(float) (rng() % 8) : -INFINITY;
        case MASK_ALL:    return -INFINITY;
        default:          return 0.0f;
    }
}

static problem make_problem(const test_case & t, int seed) {
    std::mt19937 rng(seed + 1000003);
    std::normal_distribution<float> normal;
    problem p;
    p.t     = t;
    p.scale = 2.0f/sqrtf((float) t.n_k); // sharper than usual, so that maxima move
    for (int ih = 0; ih < N_HEAD_KV; ih++) {
        p.k.push_back(random_rows(t.type_k, t.n_k, t.len[ih] + t.n_kv, rng));
        p.v.push_back(random_rows(t.type_v, t.n_v, t.len[ih] + t.n_kv, rng));
    }
    p.q.resize((size_t) t.n_tok*p.n_head()*t.n_k);
    for (float & x : p.q) { x = normal(rng); }
    for (int i = 0; i < p.n_head() && t.has_sinks; i++) { p.sinks.push_back(2*normal(rng)); }
    for (int tok = 0; tok < t.n_tok; tok++) {
        for (int cell = 0; cell < t.n_kv; cell++) { p.mask.push_back(mask_value(t, tok, cell, rng)); }
    }
    return p;
}

// float64, [n_tok][n_head][n_v]
static std::vector<double> reference(const problem & p) {
    const test_case & t = p.t;
    std::vector<double> out;
    for (int tok = 0; tok < t.n_tok; tok++) {
        for (int h = 0; h < p.n_head(); h++) {
            const int     ih = h/t.group;
            const int     n  = t.len[ih] + t.n_kv;
            const float * q  = &p.q[((size_t) tok*p.n_head() + h)*t.n_k];
            std::vector<double> s(n);
            double top = t.has_sinks ? p.sinks[h] : -INFINITY;
            for (int r = 0; r < n; r++) {
                double x = 0;
                for (int d = 0; d < t.n_k; d++) { x += (double) q[d]*p.k[ih].values[(size_t) r*t.n_k + d]; }
                x *= p.scale;
                x  = t.has_softcap ? SOFTCAP*tanh(x/SOFTCAP) : x;
                x += r < t.len[ih] ? 0.0 : p.mask[tok*t.n_kv + r - t.len[ih]];
                s[r] = x;
                top  = std::max(top, x);
            }
            double sum = t.has_sinks ? exp(p.sinks[h] - top) : 0.0;
            std::vector<double> acc(t.n_v, 0.0);
            for (int r = 0; r < n; r++) {
                if (s[r] == -INFINITY) { continue; }
                const double w = exp(s[r] - top);
                sum += w;
                for (int d = 0; d < t.n_v; d++) { acc[d] += w*p.v[ih].values[(size_t) r*t.n_v + d]; }
            }
            for (double a : acc) { out.push_back(sum == 0 ? 0 : a/sum); }
        }
    }
    return out;
}

static const int GAPS[] = { 3, 5 }; // poisoned rows before the first head and after the last

// hot rows, head after head
[[maybe_unused]] static std::vector<uint8_t> hot(const problem & p, const std::vector<rows> & all) {
    std::vector<uint8_t> data(GAPS[0]*all[0].bytes(), 0xff);
    for (int ih = 0; ih < N_HEAD_KV; ih++) {
        data.insert(data.end(), all[ih].data.begin(), all[ih].data.begin() + p.t.len[ih]*all[ih].bytes());
    }
    data.insert(data.end(), GAPS[1]*all[0].bytes(), 0xff);
    return data;
}

// first row of each head, and the end
[[maybe_unused]] static std::vector<int32_t> row_ptr(const problem & p) {
    std::vector<int32_t> res = { GAPS[0] };
    for (int ih = 0; ih < N_HEAD_KV; ih++) {
        res.push_back(res.back() + p.t.len[ih]);
    }
    return res;
}

// mean square of the error over mean square of the reference; of the error alone where the reference is all zeros
static double nmse(const std::vector<float> & x, const std::vector<double> & ref) {
    double error = 0, norm = 0;
    for (size_t i = 0; i < ref.size(); i++) {
        error += (x[i] - ref[i])*(x[i] - ref[i]);
        norm  += ref[i]*ref[i];
    }
    return norm > 0 ? error/norm : error;
}
