// test-keys.cpp: attention of kept queries, with soft caps and sinks, which no model at hand has, against sums in double.

#include "check.h"
#include "held-tensor.h"

#include "score/keys.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

static constexpr int64_t D         = 32;
static constexpr int64_t N_HEAD_KV = 2;
static constexpr int64_t N_GQA     = 3;
static constexpr int64_t N_POS     = 11;
static constexpr int64_t N_OBS     = 4;
static constexpr int64_t N_HEAD    = N_HEAD_KV*N_GQA;
static constexpr float   SCALE     = 0.5f;

struct problem {
    held_tensor          k     { GGML_TYPE_F32, D*N_HEAD_KV, N_POS + 3 }; // some cells are not in use
    held_tensor          sinks { GGML_TYPE_F32, N_HEAD, 1 };
    std::vector<float>   queries;
    std::vector<int32_t> cells;

    problem() : queries(N_OBS*N_HEAD*D) {
        std::mt19937 rng(7);
        std::normal_distribution<float> normal;

        std::generate_n(k.data<float>(),     ggml_nelements(k.t),     [&]() { return normal(rng); });
        std::generate_n(sinks.data<float>(), ggml_nelements(sinks.t), [&]() { return 2*normal(rng); });
        std::generate(queries.begin(), queries.end(), [&]() { return normal(rng); });
        for (int32_t p = 0; p < N_POS; p++) {
            cells.push_back((p*5 + 2) % (N_POS + 3)); // positions lie anywhere
        }
    }

    double logit(int64_t ih, int64_t j, int64_t o, int64_t p, float softcap) const {
        double sum = 0.0;
        for (int64_t i = 0; i < D; i++) {
            sum += (double) queries[(o*N_HEAD + ih*N_GQA + j)*D + i]*k.data<float>()[(cells[p]*N_HEAD_KV + ih)*D + i];
        }
        return softcap == 0.0f ? SCALE*sum : softcap*std::tanh(SCALE*sum/softcap);
    }
};

static void test_attention(ggml_backend_t backend, float softcap, bool has_sinks) {
    const problem x;
    const headkv_logits logits { SCALE, softcap, has_sinks ? x.sinks.t : nullptr };

    for (int64_t ih = 0; ih < N_HEAD_KV; ih++) {
        const auto got = headkv_keys_attention(headkv_rows(backend, x.k.t, N_HEAD_KV, std::make_shared<const std::vector<int32_t>>(x.cells)), ih, x.queries, N_OBS, logits);
        CHECK_EQUAL(got.size(), (size_t) N_GQA*N_OBS*N_POS);

        double worst = 0.0;
        for (int64_t j = 0; j < N_GQA; j++) {
            for (int64_t o = 0; o < N_OBS; o++) {
                const int64_t n = N_POS - N_OBS + o + 1; // it sees
                double sum = has_sinks ? std::exp((double) x.sinks.data<float>()[ih*N_GQA + j]) : 0.0;
                for (int64_t p = 0; p < n; p++) {
                    sum += std::exp(x.logit(ih, j, o, p, softcap));
                }
                for (int64_t p = 0; p < N_POS; p++) {
                    const double want = p < n ? std::exp(x.logit(ih, j, o, p, softcap))/sum : 0.0;
                    worst = std::max(worst, std::fabs(got[(j*N_OBS + o)*N_POS + p] - want));
                }
            }
        }
        CHECK(worst < 1e-5);
    }
}

int main() {
    ggml_backend_t backend = ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, nullptr);
    for (const float softcap : { 0.0f, 1.5f }) {
        for (const bool has_sinks : { false, true }) {
            test_attention(backend, softcap, has_sinks);
        }
    }
    ggml_backend_free(backend);
    return n_failed != 0;
}
