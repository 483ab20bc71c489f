// test-expected.cpp: queries expected at later positions, against rotations written out pair by pair.

#include "check.h"
#include "score/expected.h"

#include "ggml-backend.h"
#include "ggml.h"

#include <cmath>
#include <cstring>
#include <vector>

static constexpr int64_t D     = 8;
static constexpr int32_t N_POS = 100;
static constexpr float   BASE  = 10000.0f;

static headkv_rotation make_rotation(int32_t n_dims, int32_t mode, int32_t n_offs, float freq_scale = 1.0f) {
    const float params[6] = { BASE, freq_scale, 0.0f, 1.0f, 32.0f, 1.0f };

    headkv_rotation res;
    res.rope[1] = n_dims;
    res.rope[2] = mode;
    res.rope[15] = n_offs;
    memcpy(res.rope + 5, params, sizeof(params));
    return res;
}

// the mean of x over the rotations of the 512 positions from N_POS on
static std::vector<double> turned(const std::vector<double> & x, int32_t n_dims, bool is_neox, int32_t n_offs) {
    std::vector<double> res(x.begin(), x.end());
    for (int32_t i = 0; i < n_dims/2; ++i) {
        const int32_t a = n_offs + (is_neox ? i : 2*i);
        const int32_t b = n_offs + (is_neox ? i + n_dims/2 : 2*i + 1);
        res[a] = res[b] = 0.0;
        for (int32_t p = N_POS; p < N_POS + 512; ++p) {
            const double angle = p*std::pow((double) BASE, -2.0*i/n_dims);
            res[a] += (x[a]*std::cos(angle) - x[b]*std::sin(angle))/512;
            res[b] += (x[a]*std::sin(angle) + x[b]*std::cos(angle))/512;
        }
    }
    return res;
}

// two queries, mean m and difference 2 e: the covariance is e e^T
static void test_mean_and_covariance(ggml_backend_t backend, int32_t n_dims, bool is_neox, int32_t n_offs) {
    std::vector<double> m(D), e(D);
    for (int64_t i = 0; i < D; ++i) {
        m[i] = 0.5 + 0.25*i;
        e[i] = i % 3 - 1.25;
    }
    headkv_moments moments { D, 1, 2, std::vector<float>((D + 1)*D) };
    for (int64_t i = 0; i < D; ++i) {
        for (int64_t j = 0; j < D; ++j) {
            moments.sums[i*D + j] = (float) (2*m[i]*m[j] + 2*e[i]*e[j]);
        }
        moments.sums[D*D + i] = (float) (2*m[i]);
    }
    const float scale = 0.5f;
    const auto  rope  = make_rotation(n_dims, is_neox ? GGML_ROPE_TYPE_NEOX : 0, n_offs);
    const auto  res   = headkv_expect(backend, moments, rope, N_POS, scale);

    const auto m_turned = turned(m, n_dims, is_neox, n_offs);
    const auto e_turned = turned(e, n_dims, is_neox, n_offs);
    for (int64_t i = 0; i < D; ++i) {
        CHECK(std::fabs(res.linear[i] - scale*m_turned[i]) < 1e-4);
        for (int64_t j = 0; j < D; ++j) { // L^T L
            double sum = 0.0;
            for (int64_t r = 0; r < D; ++r) {
                sum += (double) res.chol_cov[r*D + i]*res.chol_cov[r*D + j];
            }
            CHECK(std::fabs(sum - 0.5*scale*scale*e_turned[i]*e_turned[j]) < 1e-4);
        }
    }
}

// fewer queries than elements, in sums that are rounded as those of many tokens are: what is split must be put together again
// with an error of the rounding's size, not of its root
static void test_rounded_sums_of_few_queries(ggml_backend_t backend) {
    constexpr int64_t n_queries = 3;
    constexpr float   rounding  = 3e-7f;

    std::vector<double> truth(D*D, 0.0);
    for (int64_t q = 0; q < n_queries; ++q) {
        for (int64_t i = 0; i < D*D; ++i) {
            truth[i] += std::sin(1.0 + 5.0*q + 3.0*(i/D))*std::sin(1.0 + 5.0*q + 3.0*(i % D))/n_queries;
        }
    }
    for (uint32_t seed = 1; seed <= 50; ++seed) {
        headkv_moments moments { D, 1, n_queries, std::vector<float>((D + 1)*D, 0.0f) }; // their mean is 0
        uint32_t noise = seed;
        for (int64_t i = 0; i < D; ++i) {
            for (int64_t j = 0; j <= i; ++j) {
                noise = noise*1664525u + 1013904223u;
                const float off = rounding*((noise >> 8)/8388608.0f - 1.0f);
                moments.sums[i*D + j] = moments.sums[j*D + i] = (float) (n_queries*truth[i*D + j]) + n_queries*off;
            }
        }
        const auto res = headkv_expect(backend, moments, make_rotation(D, 0, 0, /*.freq_scale =*/ 0.0f), N_POS, 1.0f); // turns nothing
        for (int64_t i = 0; i < D*D; ++i) {
            double sum = 0.0;
            for (int64_t r = 0; r < D; ++r) {
                sum += (double) res.chol_cov[r*D + i/D]*res.chol_cov[r*D + i % D];
            }
            CHECK(std::fabs(2.0*sum - truth[i]) < 10*rounding);
        }
    }
}

static void test_scores() {
    // one KV head, two query heads, two positions: softmax of each query head, their mean, plus 0.01, times the length
    const float log3 = std::log(3.0f);
    const auto  res  = headkv_expect_scores({ 0.0f, 100.0f, log3, 100.0f }, { 2.0f, 1.0f }, 1);
    CHECK(std::fabs(res[0] - (0.375f + 0.01f)*2.0f) < 1e-6f);
    CHECK(std::fabs(res[1] - (0.625f + 0.01f)*1.0f) < 1e-6f);
}

int main() {
    ggml_backend_t backend = ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, nullptr);
    for (const bool is_neox : { false, true }) {
        test_mean_and_covariance(backend, D, is_neox, 0);
        test_mean_and_covariance(backend, D/2, is_neox, 0); // only some of the elements are rotated
        test_mean_and_covariance(backend, D/2, is_neox, D/4); // and these are not the first
    }
    test_rounded_sums_of_few_queries(backend);
    test_scores();
    ggml_backend_free(backend);
    return n_failed != 0;
}
