// test-worst-case.cpp: LayerDefensiveKV's scores on inputs that can be followed by hand.

#include "check.h"
#include "core/worst_case.h"

#include <cmath>
#include <limits>
#include <vector>

using floats = std::vector<float>;

static constexpr float FORCED = std::numeric_limits<float>::max();

static floats score_of(const floats & attention, uint32_t n_rows, const floats & norm, uint32_t n_forced_max, uint32_t kernel) {
    const uint32_t n_columns = (uint32_t) attention.size()/n_rows;
    const headkv_worst_case how { n_rows, n_columns, (uint32_t) norm.size(), n_forced_max, HEADKV_POOL_AVG, kernel };

    floats score(norm.size(), -1.0f);
    headkv_worst_case_score(how, attention.data(), norm.data(), score.data());
    return score;
}

static void check_near(const floats & got, const floats & want, int line) {
    for (size_t i = 0; i < want.size(); ++i) {
        if (!(got.size() == want.size() && std::fabs(got[i] - want[i]) <= 1e-6f*std::fabs(want[i]))) {
            check_equal(got, want, "scores", line);
            return;
        }
    }
}
#define CHECK_NEAR(got, want) check_near((got), (want), __LINE__)

// two rows of six columns, the last two of which are the window: one looks at 0 twice, one at 0 and at 3
static const floats LOOKS = {
    1, 0, 0, 0, 0, 0,
    1, 0, 0, 0, 0, 0,
    1, 0, 0, 0, 0, 0,
    0, 0, 0, 1, 0, 0,
};

static void test_worst_case() {
    // the one look at 3 counts as much as the three at 0; the others get the mean of 1, 0, 0, 1
    CHECK_NEAR(score_of(LOOKS, 4, { 1, 1, 1, 1 }, 0, 1), (floats { 0.25f, 0.125f, 0.125f, 0.25f }));
    CHECK_NEAR(score_of(LOOKS, 4, { 1, 1, 6, 2 }, 0, 1), (floats { 0.1f, 0.05f, 0.3f, 0.2f }));
}

static void test_forced() {
    // attention is 3/4 at 0 and 1/4 at 3: both are needed for nine tenths
    CHECK_NEAR(score_of(LOOKS, 4, { 1, 1, 6, 2 }, 4, 1), (floats { FORCED, 0.05f, 0.3f, FORCED }));
    CHECK_NEAR(score_of(LOOKS, 4, { 1, 1, 6, 2 }, 1, 1), (floats { FORCED, 0.05f, 0.3f, 0.2f }));

    const floats even(8, 0.125f); // of eight equal ones, eight are needed; ties go to the lower position
    CHECK_NEAR(score_of(even, 1, floats(8, 1), 3, 1), (floats { FORCED, FORCED, FORCED, 1.0f/64, 1.0f/64, 1.0f/64, 1.0f/64, 1.0f/64 }));
}

static void test_pooling_keeps_the_mass() {
    // one look at 0 of 4, pooled over 3: 1/2, 1/3, 0, 0, times 6/5
    CHECK_NEAR(score_of({ 1, 0, 0, 0, 0 }, 1, { 1, 1, 1, 1 }, 0, 3), (floats { 0.15f, 0.1f, 0.0625f, 0.0625f }));
}

static void test_nothing_to_see() {
    CHECK_EQUAL(score_of(floats(10, 0), 2, { 1, 2, 3 }, 0, 3), (floats { 0, 0, 0 })); // all attention is on the window
    CHECK_EQUAL(score_of({ 1, 0, 0, 0 }, 1, { 0, 0, 0 }, 0, 1), (floats { 0, 0, 0 }));
    CHECK_EQUAL(score_of({ 1, 0 }, 1, { 2 }, 0, 5), (floats { 1 }));
}

int main() {
    test_worst_case();
    test_forced();
    test_pooling_keeps_the_mass();
    test_nothing_to_see();
    return n_failed != 0;
}
