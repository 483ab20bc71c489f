// test-select.cpp: fold, pooling and selection on small traceable inputs and against slow versions on random ones.

#include "check.h"
#include "headkv-select.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <set>
#include <stdexcept>
#include <vector>

using floats = std::vector<float>;
using ints   = std::vector<int32_t>;

static void test_fold() {
    // 4 query heads, 2 kv heads, 3 positions
    const floats attn = { 2, 4, 6,   4, 0, 2,   8, 8, 8,   0, 2, 4 };
    floats score(6);

    headkv_fold({ 4, 2, 3 }, headkv_fold_type::mean, attn.data(), score.data());
    CHECK_EQUAL(score, (floats { 3, 2, 4, 4, 5, 6 }));

    headkv_fold({ 4, 2, 3 }, headkv_fold_type::max, attn.data(), score.data());
    CHECK_EQUAL(score, (floats { 4, 4, 6, 8, 8, 8 }));

    headkv_fold({ 4, 2, 3 }, headkv_fold_type::layer, attn.data(), score.data());
    CHECK_EQUAL(score, (floats { 3.5f, 3.5f, 5, 3.5f, 3.5f, 5 }));
}

static void test_pool() {
    floats score = { 1, 0, 0, 6, 0 };
    headkv_pool_row(headkv_pool_type::max, 3, score.data(), score.size());
    CHECK_EQUAL(score, (floats { 1, 1, 6, 6, 6 }));

    score = { 1, 0, 0, 6, 0 };
    headkv_pool_row(headkv_pool_type::avg, 3, score.data(), score.size()); // the ends divide by what is there
    CHECK_EQUAL(score, (floats { 0.5f, 1.0f/3, 2, 2, 3 }));

    score = { 3, 1 };
    headkv_pool_row(headkv_pool_type::max, 1, score.data(), score.size());
    CHECK_EQUAL(score, (floats { 3, 1 }));

    headkv_pool_row(headkv_pool_type::max, 7, score.data(), score.size()); // kernel wider than the row
    CHECK_EQUAL(score, (floats { 3, 3 }));
    headkv_pool_row(headkv_pool_type::max, 7, nullptr, 0);
}

static void test_select() {
    const floats score = { 0, 5, 3, 5, 1, 3 };
    CHECK_EQUAL(headkv_select_head(score.data(), 6, 0, 3), (ints { 1, 2, 3 })); // 3 at 2 and 5: the lower one
    CHECK_EQUAL(headkv_select_head(score.data(), 6, 1, 3), (ints { 0, 1, 3 })); // the sink costs a row
    CHECK_EQUAL(headkv_select_head(score.data(), 6, 2, 2), (ints { 0, 1 }));
    CHECK_EQUAL(headkv_select_head(score.data(), 6, 0, 0), (ints {}));
    CHECK_EQUAL(headkv_select_head(score.data(), 6, 2, 6), (ints { 0, 1, 2, 3, 4, 5 }));

    const floats equal(5, 0.25f);
    CHECK_EQUAL(headkv_select_head(equal.data(), 5, 0, 2), (ints { 0, 1 }));
}

// the definition, slowly: n_keep times the best of what is left
static ints select_slow(const floats & score, uint32_t n_sink, uint32_t n_keep) {
    std::set<int32_t> kept;
    for (uint32_t p = 0; p < n_sink; ++p) {
        kept.insert(p);
    }
    while (kept.size() < n_keep) {
        int32_t best = -1;
        for (int32_t p = 0; p < (int32_t) score.size(); ++p) {
            if (!kept.count(p) && (best < 0 || score[p] > score[best])) {
                best = p;
            }
        }
        kept.insert(best);
    }
    return ints(kept.begin(), kept.end());
}

static void test_select_random() {
    std::mt19937 rng(7);
    for (int i = 0; i < 300; ++i) {
        const uint32_t n      = 1 + rng() % 97;
        const uint32_t n_keep = rng() % (n + 1);
        const uint32_t n_sink = rng() % (n_keep + 1);

        floats score(n);
        for (auto & s : score) {
            s = (float) (rng() % 11); // many ties
        }
        CHECK_EQUAL(headkv_select_head(score.data(), n, n_sink, n_keep), select_slow(score, n_sink, n_keep));
    }
}

static void test_finite() {
    floats x = { 0, 1 };
    CHECK(headkv_all_finite(x.data(), x.size()));
    x[1] = NAN;
    CHECK(!headkv_all_finite(x.data(), x.size()));
    x[1] = std::numeric_limits<float>::infinity();
    CHECK(!headkv_all_finite(x.data(), x.size()));
}

static void test_parallel_for() {
    for (uint32_t n_threads : { 0u, 1u, 2u, 5u }) {
        std::vector<int> seen(97, 0);
        headkv_parallel_for(seen.size(), n_threads, [&](size_t i) { seen[i]++; });
        CHECK_EQUAL(std::count(seen.begin(), seen.end(), 1), 97);
    }
    headkv_parallel_for(0, 4, [](size_t) { throw std::runtime_error("never called"); });

    bool is_thrown = false;
    try {
        headkv_parallel_for(10, 3, [](size_t i) { if (i == 5) { throw std::runtime_error("five"); } });
    } catch (const std::runtime_error & err) {
        is_thrown = err.what() == std::string("five");
    }
    CHECK(is_thrown);
}

int main() {
    test_fold();
    test_pool();
    test_select();
    test_select_random();
    test_finite();
    test_parallel_for();
    return n_failed != 0;
}
