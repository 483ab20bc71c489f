#include "score/expected.h"
#include "rows/graph.h"

#include "ggml.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

// positions to come over which rotations are averaged, and the attention that every row is given before its value counts:
// both as in kvpress, which ranks methods by them
static constexpr int32_t N_FUTURE = 512;
static constexpr float   EPSILON  = 1e-2f;

// below this share of the largest mean square a direction holds nothing but rounding: the moments are sums in f32
static constexpr double EPS_VARIANCE = 1e-6;

using doubles = std::vector<double>;

// the mean rotation: pairs of elements (a, b) become (c a - s b, s a + c b)
struct mean_rotation {
    struct pair {
        int64_t a;
        int64_t b;
        double  c;
        double  s;
    };
    std::vector<pair> pairs;

    void apply(double * x) const {
        for (const auto & p : pairs) {
            const double a = x[p.a];
            const double b = x[p.b];
            x[p.a] = p.c*a - p.s*b;
            x[p.b] = p.s*a + p.c*b;
        }
    }
};

// upstream's own rotation is asked, with every kind of scaling that it knows: a vector of ones at each position to come
static mean_rotation average(ggml_backend_t backend, const headkv_rotation & rotation, int64_t n_embd_head, int32_t n_pos) {
    const int32_t n_dims = rotation.rope[1];
    const int32_t mode   = rotation.rope[2];
    const int32_t n_offs = rotation.rope[15]; // elements before those that are rotated
    float params[6]; // freq_base, freq_scale, ext_factor, attn_factor, beta_fast, beta_slow
    memcpy(params, rotation.rope + 5, sizeof(params));

    const std::vector<float> ones(n_embd_head*N_FUTURE, 1.0f);
    std::vector<int32_t> pos(N_FUTURE);
    std::iota(pos.begin(), pos.end(), n_pos);

    headkv_graph graph(backend);
    ggml_tensor * rope = ggml_rope_ext(graph.ctx(),
        graph.input(ones, n_embd_head, 1, N_FUTURE), graph.input(pos.data(), N_FUTURE), rotation.factors,
        n_dims, mode, rotation.rope[4], params[0], params[1], params[2], params[3], params[4], params[5]);
    const std::vector<float> turned = graph.compute(ggml_rope_set_offset(rope, n_offs));

    doubles mean(n_embd_head, 0.0);
    for (int32_t p = 0; p < N_FUTURE; ++p) {
        for (int64_t i = 0; i < n_embd_head; ++i) {
            mean[i] += turned[p*n_embd_head + i]/N_FUTURE;
        }
    }

    mean_rotation res;
    for (int64_t i = 0; i < n_dims/2; ++i) {
        const int64_t a = n_offs + (mode == GGML_ROPE_TYPE_NEOX ? i : 2*i);
        const int64_t b = a      + (mode == GGML_ROPE_TYPE_NEOX ? n_dims/2 : 1);
        res.pairs.push_back({ a, b, (mean[a] + mean[b])/2, (mean[b] - mean[a])/2 });
    }
    return res;
}

// multiply by the Walsh-Hadamard matrix, blocks of n elements, as upstream does before it quantises
static void hadamard(double * x, int64_t n_embd_head, int64_t n) {
    for (int64_t half = 1; half < n; half *= 2) {
        for (int64_t i = 0; i < n_embd_head; ++i) {
            if (i & half) {
                continue;
            }
            const double a = x[i];
            const double b = x[i + half];
            x[i]        = (a + b)*M_SQRT1_2;
            x[i + half] = (a - b)*M_SQRT1_2;
        }
    }
}

// R with R^T R = m, [n][n], m positive semidefinite but for noise: the direction with the most variance left comes first, and
// none follows below `least`. In the order of the elements, a pivot of noise would be divided by, and the rows behind it grow
static doubles cholesky(const doubles & m, int64_t n, double least) {
    doubles left(n);
    for (int64_t i = 0; i < n; ++i) {
        left[i] = m[i*n + i];
    }
    doubles res(n*n, 0.0);
    for (int64_t r = 0; r < n; ++r) {
        const int64_t p = std::max_element(left.begin(), left.end()) - left.begin();
        if (!(left[p] > least)) {
            break;
        }
        double * row = res.data() + r*n;
        std::copy_n(m.begin() + p*n, n, row);
        for (int64_t q = 0; q < r; ++q) {
            const double * other = res.data() + q*n;
            for (int64_t i = 0; i < n; ++i) {
                row[i] -= other[p]*other[i];
            }
        }
        const double root = std::sqrt(left[p]);
        for (int64_t i = 0; i < n; ++i) {
            row[i]  /= root;
            left[i] -= row[i]*row[i];
        }
        left[p] = 0.0;
    }
    return res;
}

headkv_expected headkv_expect(
        ggml_backend_t backend, const headkv_moments & moments, const headkv_rotation & rotation, int32_t n_pos, float logit_scale) {
    const int64_t d = moments.n_embd_head;

    const mean_rotation turn  = average(backend, rotation, d, n_pos);
    const double        scale = (double) rotation.scale*logit_scale;

    const auto transform = [&](double * x) {
        turn.apply(x);
        hadamard(x, d, rotation.n_hadamard);
    };

    headkv_expected res;
    res.linear .resize(moments.n_head*d);
    res.chol_cov.resize(moments.n_head*d*d);
    for (int64_t h = 0; h < moments.n_head; ++h) {
        const float * second = moments.sums.data() + h*(d + 1)*d;

        doubles mean(second + d*d, second + (d + 1)*d);
        doubles covariance(second, second + d*d);
        for (auto & m : mean) {
            m /= moments.n_tokens;
        }
        double largest = 0.0;
        for (int64_t i = 0; i < d*d; ++i) {
            covariance[i] /= moments.n_tokens;
            largest = std::max(largest, covariance[i]);
            covariance[i] -= mean[i/d]*mean[i % d];
        }

        doubles rows = cholesky(covariance, d, EPS_VARIANCE*largest);
        for (int64_t i = 0; i < d; ++i) {
            transform(rows.data() + i*d);
        }
        transform(mean.data());

        for (int64_t i = 0; i < d; ++i) {
            res.linear[h*d + i] = (float) (scale*mean[i]);
        }
        for (int64_t i = 0; i < d*d; ++i) {
            res.chol_cov[h*d*d + i] = (float) (scale*M_SQRT1_2*rows[i]);
        }
    }
    return res;
}

std::vector<float> headkv_expect_scores(const std::vector<float> & logits, const std::vector<float> & norms, int64_t n_head_kv) {
    const int64_t n_pos = norms.size()/n_head_kv;
    const int64_t n_gqa = logits.size()/norms.size();

    std::vector<float> res(norms.size());
    for (int64_t ih = 0; ih < n_head_kv; ++ih) {
        const float * x = logits.data() + ih*n_pos*n_gqa;

        doubles share(n_pos, 0.0);
        for (int64_t g = 0; g < n_gqa; ++g) {
            float max = x[g];
            for (int64_t p = 1; p < n_pos; ++p) {
                max = std::max(max, x[p*n_gqa + g]);
            }
            double sum = 0.0;
            for (int64_t p = 0; p < n_pos; ++p) {
                sum += std::exp((double) x[p*n_gqa + g] - max);
            }
            for (int64_t p = 0; p < n_pos; ++p) {
                share[p] += std::exp((double) x[p*n_gqa + g] - max)/(sum*n_gqa);
            }
        }
        for (int64_t p = 0; p < n_pos; ++p) {
            res[ih*n_pos + p] = (float) ((share[p] + EPSILON)*norms[ih*n_pos + p]);
        }
    }
    return res;
}
