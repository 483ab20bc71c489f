// test-select.cpp: fold, pooling and selection on small traceable inputs and against slow versions on random ones.

#include "check.h"
#include "core/parallel.h"
#include "core/select.h"

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

    headkv_fold_heads({ 4, 2, 3 }, HEADKV_FOLD_MEAN, attn.data(), score.data());
    CHECK_EQUAL(score, (floats { 3, 2, 4, 4, 5, 6 }));

    headkv_fold_heads({ 4, 2, 3 }, HEADKV_FOLD_MAX, attn.data(), score.data());
    CHECK_EQUAL(score, (floats { 4, 4, 6, 8, 8, 8 }));

    headkv_fold_heads({ 4, 2, 3 }, HEADKV_FOLD_LAYER, attn.data(), score.data());
    CHECK_EQUAL(score, (floats { 3.5f, 3.5f, 5, 3.5f, 3.5f, 5 }));
}

static void test_pool() {
    floats score = { 1, 0, 0, 6, 0 };
    headkv_pool_row(HEADKV_POOL_MAX, 3, score.data(), score.size());
    CHECK_EQUAL(score, (floats { 1, 1, 6, 6, 6 }));

    score = { 1, 0, 0, 6, 0 };
    headkv_pool_row(HEADKV_POOL_AVG, 3, score.data(), score.size()); // the ends divide by what is there
    CHECK_EQUAL(score, (floats { 0.5f, 1.0f/3, 2, 2, 3 }));

    score = { 3, 1 };
    headkv_pool_row(HEADKV_POOL_MAX, 1, score.data(), score.size());
    CHECK_EQUAL(score, (floats { 3, 1 }));

    headkv_pool_row(HEADKV_POOL_MAX, 7, score.data(), score.size()); // kernel wider than the row
    CHECK_EQUAL(score, (floats { 3, 3 }));
    headkv_pool_row(HEADKV_POOL_MAX, 7, nullptr, 0);
}

using spans = std::vector<headkv_span>;

static void test_select() {
    const floats score = { 0, 5, 3, 5, 1, 3 };
    CHECK_EQUAL(headkv_select_head(score.data(), 6, {}, 3), (ints { 1, 2, 3 }));         // 3 at 2 and 5: the lower one
    CHECK_EQUAL(headkv_select_head(score.data(), 6, { { 0, 1 } }, 3), (ints { 0, 1, 3 })); // the sink costs a row
    CHECK_EQUAL(headkv_select_head(score.data(), 6, { { 0, 2 } }, 2), (ints { 0, 1 }));
    CHECK_EQUAL(headkv_select_head(score.data(), 6, {}, 0), (ints {}));
    CHECK_EQUAL(headkv_select_head(score.data(), 6, { { 0, 2 } }, 6), (ints { 0, 1, 2, 3, 4, 5 }));
    CHECK_EQUAL(headkv_select_head(score.data(), 6, { { 0, 1 }, { 4, 6 } }, 4), (ints { 0, 1, 4, 5 })); // spans cost rows
    CHECK_EQUAL(headkv_select_head(score.data(), 6, { { 4, 5 } }, 1), (ints { 4 }));

    const floats equal(5, 0.25f);
    CHECK_EQUAL(headkv_select_head(equal.data(), 5, {}, 2), (ints { 0, 1 }));
}

static void test_critical() {
    // half of the rows by score, the others by what the value does
    const floats score = { 0.4f, 0.3f, 0.2f, 0.1f, 0 };
    const floats norm  = { 1, 1, 2, 9, 1000 };
    CHECK_EQUAL(headkv_select_critical(score.data(), norm.data(), 5, {}, 2), (ints { 0, 3 }));
    CHECK_EQUAL(headkv_select_critical(score.data(), norm.data(), 5, {}, 3), (ints { 0, 2, 3 }));       // 3/2 = 1 by score
    CHECK_EQUAL(headkv_select_critical(score.data(), norm.data(), 5, {}, 4), (ints { 0, 1, 2, 3 }));
    CHECK_EQUAL(headkv_select_critical(score.data(), norm.data(), 5, {}, 1), (ints { 3 }));
    CHECK_EQUAL(headkv_select_critical(score.data(), norm.data(), 5, {}, 0), (ints {}));
    CHECK_EQUAL(headkv_select_critical(score.data(), norm.data(), 5, { { 4, 5 } }, 3), (ints { 0, 3, 4 })); // spans do not count
    // 1e-4*1000 is more than what is left
    const floats tiny = { 0.4f, 0.3f, 0.02f, 0.01f, 0 };
    CHECK_EQUAL(headkv_select_critical(tiny.data(), norm.data(), 5, { { 1, 2 } }, 3), (ints { 0, 1, 4 }));
    const floats equal(5, 0.25f);
    CHECK_EQUAL(headkv_select_critical(equal.data(), equal.data(), 5, {}, 3), (ints { 0, 1, 2 }));
}

// the definition, slowly: n_keep times the best of what is left
static ints select_slow(const floats & score, const spans & always, uint32_t n_keep) {
    std::set<int32_t> kept;
    for (const auto & span : always) {
        for (uint32_t p = span.first; p < span.end; ++p) {
            kept.insert(p);
        }
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
        const uint32_t n = 1 + rng() % 97;

        spans    always;
        uint32_t n_always = 0;
        for (uint32_t p = rng() % 9; p < n && rng() % 4; ) {
            const uint32_t end = std::min<uint32_t>(n, p + 1 + rng() % 9);
            always.push_back({ p, end });
            n_always += end - p;
            p = end + rng() % 20;
        }
        const uint32_t n_keep = n_always + rng() % (n - n_always + 1);

        floats score(n);
        for (auto & s : score) {
            s = (float) (rng() % 11); // many ties
        }
        CHECK_EQUAL(headkv_select_head(score.data(), n, always, n_keep), select_slow(score, always, n_keep));
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
    test_critical();
    test_select_random();
    test_finite();
    test_parallel_for();
    return n_failed != 0;
}
