// test-scorers.cpp: the table of scorers: what each needs, what it makes of a small cache, and what is refused.

#include "refused.h"
#include "score/scorers.h"
#include "small-view.h"

#include <cmath>

using floats = std::vector<float>;

static constexpr uint32_t N = small_view::N_POS - 2; // scored: all but a window of 2

static headkv_score_params params(headkv_score kind, headkv_fold fold = HEADKV_FOLD_MEAN) {
    return { /*.n_obs =*/ 2, /*.pool_kernel =*/ 1, HEADKV_POOL_MAX, fold, kind, /*.n_forced_max =*/ 0 };
}

// attention of query head h to position p, summed over the observing tokens
static float looked(uint32_t h, uint32_t p) { return 0.25f*(float) (1 + (h*7 + p*3) % 5); }

static void fill_attention(small_view & x, size_t i) {
    floats sums(small_view::N_CELLS*small_view::N_HEAD, -1.0f); // cells that are not in use do not count
    for (uint32_t h = 0; h < small_view::N_HEAD; ++h) {
        for (uint32_t p = 0; p < small_view::N_POS; ++p) {
            sums[h*small_view::N_CELLS + x.cells[p]] = looked(h, p);
        }
    }
    ggml_backend_tensor_set(x.observation.at(i).gathered, sums.data(), 0, sums.size()*sizeof(float));
}

static void check_near(const floats & got, const floats & want, int line) {
    double worst = got.size() == want.size() ? 0.0 : INFINITY;
    for (size_t i = 0; i < want.size() && i < got.size(); ++i) {
        worst = std::max(worst, (double) std::fabs(got[i] - want[i]));
    }
    if (!(worst < 1e-5)) {
        check_equal(got, want, "scores", line);
    }
}
#define CHECK_NEAR(got, want) check_near((got), (want), __LINE__)

// [n_head_kv][N] of a function
template <typename F>
static floats expected(const F & f) {
    floats res;
    for (uint32_t ih = 0; ih < small_view::N_HEAD_KV; ++ih) {
        for (uint32_t p = 0; p < N; ++p) { res.push_back(f(ih, p)); }
    }
    return res;
}

static void test_attention() {
    small_view x;
    for (const bool is_max : { false, true }) {
        x.observe(2, is_max ? HEADKV_OBSERVE_ATTN_MAX : HEADKV_OBSERVE_ATTN_MEAN);
        fill_attention(x, 1);
        const float scale = is_max ? 1.0f : 0.5f; // a mean is over the tokens
        const auto  view  = x.view();
        CHECK_NEAR(headkv_score_layer(view, 1, params(HEADKV_SCORE_ATTENTION)), expected([&](uint32_t ih, uint32_t p) {
            return scale*(looked(2*ih, p) + looked(2*ih + 1, p))/2;
        }));
        CHECK_NEAR(headkv_score_layer(view, 1, params(HEADKV_SCORE_CRITICAL, HEADKV_FOLD_MAX)), expected([&](uint32_t ih, uint32_t p) {
            return scale*std::max(looked(2*ih, p), looked(2*ih + 1, p));
        }));
        CHECK_NEAR(headkv_score_layer(view, 1, params(HEADKV_SCORE_ATTENTION, HEADKV_FOLD_LAYER)), expected([&](uint32_t, uint32_t p) {
            return scale*(looked(0, p) + looked(1, p) + looked(2, p) + looked(3, p))/4;
        }));
    }
}

static double dot(const float * a, const float * b) {
    double sum = 0;
    for (uint32_t d = 0; d < small_view::D; ++d) { sum += (double) a[d]*b[d]; }
    return sum;
}

static void test_rows() {
    small_view x;
    const auto view = x.view();
    const auto key  = [&](uint32_t ih, uint32_t p) { return x.row(*x.k[1], ih, p); };

    CHECK_NEAR(headkv_score_layer(view, 1, params(HEADKV_SCORE_POSITION)), expected([](uint32_t, uint32_t p) { return (float) p; }));
    CHECK_NEAR(headkv_score_layer(view, 1, params(HEADKV_SCORE_KNORM)), expected([&](uint32_t ih, uint32_t p) {
        return (float) -std::sqrt(dot(key(ih, p), key(ih, p)));
    }));
    CHECK_NEAR(headkv_score_layer(view, 1, params(HEADKV_SCORE_KEYDIFF)), expected([&](uint32_t ih, uint32_t p) {
        floats mean(small_view::D);
        for (uint32_t q = 0; q < small_view::N_POS; ++q) { // the window's keys have a say in the mean
            for (uint32_t d = 0; d < small_view::D; ++d) { mean[d] += (float) (key(ih, q)[d]/std::sqrt(dot(key(ih, q), key(ih, q)))); }
        }
        return (float) -(dot(mean.data(), key(ih, p))/std::sqrt(dot(mean.data(), mean.data())*dot(key(ih, p), key(ih, p))));
    }));
}

static void test_semantics() {
    small_view x;
    x.observe(2, HEADKV_OBSERVE_ATTN_MEAN);
    fill_attention(x, 0);
    const auto got = headkv_score_semantics(x.view(), 0, 2);

    floats want;
    for (uint32_t ih = 0; ih < small_view::N_HEAD_KV; ++ih) {
        floats attn;
        for (uint32_t p = 0; p < small_view::N_POS; ++p) { attn.push_back((looked(2*ih, p) + looked(2*ih + 1, p))/4); }
        const uint32_t first  = std::max_element(attn.begin(), attn.end()) - attn.begin();
        floats rest = attn;
        rest[first] = -1;
        const uint32_t second = std::max_element(rest.begin(), rest.end()) - rest.begin();
        for (uint32_t d = 0; d < small_view::D; ++d) {
            want.push_back(attn[first]*x.row(*x.v[0], ih, first)[d] + attn[second]*x.row(*x.v[0], ih, second)[d]);
        }
    }
    CHECK_NEAR(got, want);
}

static void test_pooling() {
    small_view x;
    const auto view = x.view();
    headkv_score_params how = params(HEADKV_SCORE_POSITION);
    how.pool_kernel = 3;
    CHECK_NEAR(headkv_score_pooled(view, 0, how), expected([](uint32_t, uint32_t p) { return (float) std::min(p + 1, N - 1); }));
    CHECK_EQUAL(headkv_score_kernel(how), 3u);
    how.kind = HEADKV_SCORE_DEFENSIVE; // made of pooled rows already
    CHECK_EQUAL(headkv_score_kernel(how), 1u);
}

static void test_needs() {
    small_view x;
    const int32_t needs[] = { // of each kind, in order; -1: nothing
        HEADKV_OBSERVE_ATTN_MEAN, -1, -1, -1, HEADKV_OBSERVE_QUERY_STATS, HEADKV_OBSERVE_ATTN_MEAN, HEADKV_OBSERVE_QUERIES,
    };
    for (int32_t kind = HEADKV_SCORE_ATTENTION; kind <= HEADKV_SCORE_DEFENSIVE; ++kind) {
        const headkv_scorer & scorer = headkv_scorer_of(params((headkv_score) kind));
        CHECK_EQUAL((int) scorer.kind, kind);
        CHECK_EQUAL(scorer.needs, needs[kind]);
        if (scorer.needs < 0) {
            continue;
        }
        x.observation.stop();
        CHECK_REFUSED(headkv_score_layer(x.view(), 0, params((headkv_score) kind)), HEADKV_STATUS_WRONG_STATE, "not all observed");
        x.observe(2, scorer.needs == HEADKV_OBSERVE_QUERIES ? HEADKV_OBSERVE_QUERY_STATS : HEADKV_OBSERVE_QUERIES);
        CHECK_REFUSED(headkv_score_layer(x.view(), 0, params((headkv_score) kind)), HEADKV_STATUS_WRONG_STATE, "but these scores need");
    }
}

static void test_refusals() {
    small_view x;
    CHECK_REFUSED(headkv_scorer_of(params((headkv_score) 99)), HEADKV_STATUS_INVALID_ARGUMENT, "kind = 99");
    CHECK_REFUSED(headkv_scorer_of(params(HEADKV_SCORE_POSITION, (headkv_fold) 7)), HEADKV_STATUS_INVALID_ARGUMENT, "fold = 7");
    headkv_score_params how = params(HEADKV_SCORE_POSITION);
    how.pool_kernel = 4;
    CHECK_REFUSED(headkv_scorer_of(how), HEADKV_STATUS_INVALID_ARGUMENT, "pool_kernel = 4 is not an odd number");
    how = params(HEADKV_SCORE_POSITION);
    how.pool = 5;
    CHECK_REFUSED(headkv_scorer_of(how), HEADKV_STATUS_INVALID_ARGUMENT, "pool = 5");

    x.observe(2, HEADKV_OBSERVE_QUERY_STATS); // nobody told how queries are rotated
    CHECK_REFUSED(headkv_score_layer(x.view(), 0, params(HEADKV_SCORE_EXPECTED)), HEADKV_STATUS_UNSUPPORTED, "queries of layer 10 before rotation");
    x.observe(2, HEADKV_OBSERVE_QUERIES); // there is no output projection
    CHECK_REFUSED(headkv_score_layer(x.view(), 1, params(HEADKV_SCORE_DEFENSIVE)), HEADKV_STATUS_UNSUPPORTED, "output projection of layer 11");

    x.observe(1, HEADKV_OBSERVE_ATTN_MEAN);
    fill_attention(x, 0);
    CHECK_REFUSED(headkv_score_layer(x.view(), 0, params(HEADKV_SCORE_ATTENTION)), HEADKV_STATUS_INVALID_ARGUMENT, "n_obs = 2, but 1 tokens were scored");

    x.k[0]->data<float>()[0] = NAN; // cell 0 is position 1
    CHECK_REFUSED(headkv_score_layer(x.view(), 0, params(HEADKV_SCORE_KNORM)), HEADKV_STATUS_COMPUTE, "the scores of layer 10 are not finite");
}

int main() {
    test_attention();
    test_rows();
    test_semantics();
    test_pooling();
    test_needs();
    test_refusals();
    return n_failed != 0;
}
