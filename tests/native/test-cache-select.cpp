// test-cache-select.cpp: from scores to kept positions over all layers: given scores, pooling of each head, the vote, what is refused.

#include "cache/select.h"
#include "refused.h"
#include "small-view.h"

#include <cmath>

static constexpr uint32_t N_HEADS = small_view::N_LAYER*small_view::N_HEAD_KV;

// two rows of the four before a window of two, the same for each head, of given scores
struct request {
    std::vector<float>    scores  = { 4, 1, 2, 3,   1, 2, 3, 4,   0, 9, 0, 1,   5, 5, 5, 5 }; // [4 heads][N]
    std::vector<uint32_t> n_rows  = std::vector<uint32_t>(N_HEADS, 4);
    std::vector<uint32_t> kernels = {};
    std::vector<float>    weights = {}, shares = {};
    headkv_compress_params params = {};

    const headkv_compress_params & get() {
        params.score        = { 2, 1, HEADKV_POOL_MAX, HEADKV_FOLD_MEAN, HEADKV_SCORE_ATTENTION, 0 };
        params.n_rows       = n_rows.data();
        params.n_rows_size  = (uint32_t) n_rows.size();
        params.n_threads    = 2;
        params.scores       = scores.data();
        params.n_scores     = scores.size();
        params.pool_kernels = kernels.empty() ? nullptr : kernels.data();
        params.vote_weights       = weights.empty() ? nullptr : weights.data();
        params.vote_shares        = shares.empty()  ? nullptr : shares.data();
        params.vote_kernel  = 1;
        return params;
    }
};

static headkv_plan plan_of(const headkv_compress_params & p) {
    return headkv_plan_make({ small_view::N_POS, p.score.n_obs, p.n_sink, p.n_rows, p.n_rows_size, nullptr, 0 }, { 2, 2 });
}

static headkv_kept_positions select(request & r) {
    small_view x;
    const headkv_compress_params & p = r.get();
    headkv_select_check(p);
    return headkv_select(x.view(), plan_of(p), p);
}

static void test_given_scores() {
    request r;
    CHECK(select(r) == (headkv_kept_positions { { { 0, 3 }, { 2, 3 } }, { { 1, 3 }, { 0, 1 } } })); // ties to the lower position
    r.params.n_sink = 1; // a sink costs a row
    CHECK(select(r) == (headkv_kept_positions { { { 0, 3 }, { 0, 3 } }, { { 0, 1 }, { 0, 1 } } }));
}

static void test_kernels() {
    request r;
    r.kernels = { 1, 1, 3, 1 }; // the third head: 0 9 0 1 -> 9 9 9 1
    CHECK(select(r) == (headkv_kept_positions { { { 0, 3 }, { 2, 3 } }, { { 0, 1 }, { 0, 1 } } }));
}

static void test_vote() {
    request r;
    r.weights = { 0, 1, 0, 0 }; // the second head is heard...
    r.shares  = { 1, 0, 0.5f, 1 }; // ...by the first and the last, and a little by the third, which still finds its own 1
    CHECK(select(r) == (headkv_kept_positions { { { 2, 3 }, { 2, 3 } }, { { 1, 3 }, { 2, 3 } } }));
    r.shares[2] = 1;
    CHECK(select(r) == (headkv_kept_positions { { { 2, 3 }, { 2, 3 } }, { { 2, 3 }, { 2, 3 } } }));
}

static void test_refusals() {
    small_view x;
    request r;
    r.scores.pop_back();
    CHECK_REFUSED(select(r), HEADKV_STATUS_INVALID_ARGUMENT, "n_scores = 15, expected 4 heads x 4 positions");
    r.scores.push_back(NAN);
    CHECK_REFUSED(select(r), HEADKV_STATUS_INVALID_ARGUMENT, "not finite");

    request even;
    even.kernels = { 1, 2, 1, 1 };
    CHECK_REFUSED(select(even), HEADKV_STATUS_INVALID_ARGUMENT, "pool_kernels = 2");

    request vote;
    vote.weights = { 1, 1, 1, 1 };
    CHECK_REFUSED(select(vote), HEADKV_STATUS_INVALID_ARGUMENT, "go together");
    vote.shares = { 1, 1, 1, 1 };
    for (const headkv_score kind : { HEADKV_SCORE_KNORM, HEADKV_SCORE_KEYDIFF, HEADKV_SCORE_DEFENSIVE }) {
        headkv_compress_params p = vote.get();
        p.score.kind = kind;
        headkv_select_check(p); // scores made elsewhere can be voted on
        p.scores = nullptr;
        CHECK_REFUSED((headkv_select_check(p), 0), HEADKV_STATUS_INVALID_ARGUMENT, "heads cannot vote");
    }
}

int main() {
    test_given_scores();
    test_kernels();
    test_vote();
    test_refusals();
    return n_failed != 0;
}
