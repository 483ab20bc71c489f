// test-vote.cpp: the vote of the heads, on numbers that can be followed by hand

#include "core/vote.h"
#include "refused.h"

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

static void test_mix() {
    const floats vote = { 0, 1, 0, 3 };

    floats score = { 8, 4, 4, 0 };
    headkv_vote_mix(score.data(), 4, 1, 0.5f, vote.data());
    CHECK_EQUAL(score, (floats { 0.5f, 0.375f, 0.25f, 0.375f }));

    score = { 8, 4, 4, 0 };
    headkv_vote_mix(score.data(), 4, 1, 1.0f, vote.data());
    CHECK_EQUAL(score, (floats { 0, 0.25f, 0, 0.75f }));

    score = { 1, 0, 0, 0 }; // a head that found nothing behind the sinks follows the others
    headkv_vote_mix(score.data(), 4, 1, 0.5f, vote.data());
    CHECK_EQUAL(score, (floats { 0, 0.125f, 0, 0.375f }));
}

static void test_error() {
    const floats good   = { 0, 0.5f, 1 };
    const floats nan    = { 0, std::numeric_limits<float>::quiet_NaN(), 1 };
    const floats large  = { 0, 1.5f, 1 };
    const floats minus  = { 0, -0.5f, 1 };

    headkv_vote_check({});
    headkv_vote_check({ good.data(), good.data(), 3 });
    headkv_vote_check({ large.data(), good.data(), 3 });
    const auto check_wrong = [](const headkv_vote & vote, const char * words) {
        CHECK_REFUSED((headkv_vote_check(vote), 0), HEADKV_STATUS_INVALID_ARGUMENT, words);
    };
    check_wrong({ good.data(), nullptr, 3 }, "vote_weights and vote_shares go together: one of them is NULL");
    check_wrong({ good.data(), large.data(), 3 }, "vote_shares holds a value outside 0 to 1");
    for (const auto * bad : { &nan, &minus }) {
        check_wrong({ bad->data(), good.data(), 3 }, "vote_weights holds a value outside 0 to 1e6");
        check_wrong({ good.data(), bad->data(), 3 }, "vote_shares holds a value outside 0 to 1");
    }
}

int main() {
    test_add();
    test_mix();
    test_error();
    return n_failed != 0;
}
