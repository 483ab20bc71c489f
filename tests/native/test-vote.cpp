// the vote of the heads, on numbers that can be followed by hand

#include "check.h"

#include "core/vote.h"

#include <cmath>
#include <limits>
#include <vector>

using floats = std::vector<float>;

static void test_add() {
    // the first position is a sink; behind it lie 8, so that all values are exact
    const floats a = { 100, 2, 6, 0 };
    const floats b = { 0, 1, 1, 2 };
    floats vote(4);

    headkv_vote_add(a.data(), 4, 1, 1.0f, vote.data());
    CHECK_EQUAL(vote, (floats { 0, 0.25f, 0.75f, 0 }));

    headkv_vote_add(b.data(), 4, 1, 2.0f, vote.data());
    CHECK_EQUAL(vote, (floats { 0, 0.75f, 1.25f, 1.0f }));

    const floats nothing(4);
    headkv_vote_add(nothing.data(), 4, 1, 1.0f, vote.data()); // no mass: no opinion, no NaN
    CHECK_EQUAL(vote, (floats { 0, 0.75f, 1.25f, 1.0f }));
}

static void test_heed() {
    const floats vote = { 0, 1, 0, 3 };

    floats score = { 8, 4, 4, 0 };
    headkv_vote_heed(score.data(), 4, 1, 0.5f, vote.data());
    CHECK_EQUAL(score, (floats { 0.5f, 0.375f, 0.25f, 0.375f }));

    score = { 8, 4, 4, 0 };
    headkv_vote_heed(score.data(), 4, 1, 1.0f, vote.data());
    CHECK_EQUAL(score, (floats { 0, 0.25f, 0, 0.75f }));

    score = { 1, 0, 0, 0 }; // a head that found nothing behind the sinks follows the others
    headkv_vote_heed(score.data(), 4, 1, 0.5f, vote.data());
    CHECK_EQUAL(score, (floats { 0, 0.125f, 0, 0.375f }));
}

static void test_error() {
    const floats good   = { 0, 0.5f, 1 };
    const floats nan    = { 0, std::numeric_limits<float>::quiet_NaN(), 1 };
    const floats large  = { 0, 1.5f, 1 };
    const floats minus  = { 0, -0.5f, 1 };

    CHECK_EQUAL(headkv_vote_error({}), "");
    CHECK_EQUAL(headkv_vote_error({ good.data(), good.data(), 3 }), "");
    CHECK_EQUAL(headkv_vote_error({ large.data(), good.data(), 3 }), "");
    CHECK_EQUAL(headkv_vote_error({ good.data(), nullptr, 3 }), "voters and heeds go together: one of them is NULL");
    CHECK_EQUAL(headkv_vote_error({ good.data(), large.data(), 3 }), "heeds holds a value outside 0 to 1");
    for (const auto * bad : { &nan, &minus }) {
        CHECK_EQUAL(headkv_vote_error({ bad->data(), good.data(), 3 }), "voters holds a value outside 0 to 1e6");
        CHECK_EQUAL(headkv_vote_error({ good.data(), bad->data(), 3 }), "heeds holds a value outside 0 to 1");
    }
}

int main() {
    test_add();
    test_heed();
    test_error();
    return n_failed != 0;
}
