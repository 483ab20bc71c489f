// test-plan.cpp: a plan refuses what is out of range, names it, and adds up the rest.

#include "check.h"
#include "core/plan.h"

#include <string>
#include <vector>

static const std::vector<uint32_t> N_HEAD_KV = { 2, 1 };

static bool make(
        uint32_t n_pos, uint32_t n_obs, uint32_t n_sink, std::vector<uint32_t> rows, headkv_plan & plan, std::string & error,
        std::vector<uint32_t> spans = {}) {
    const headkv_plan_request request {
        n_pos, n_obs, n_sink, rows.data(), (uint32_t) rows.size(), spans.data(), (uint32_t) spans.size()/2,
    };
    return headkv_plan_make(request, N_HEAD_KV, plan, error);
}

static void test_sums() {
    headkv_plan plan;
    std::string error;
    CHECK(make(100, 16, 4, { 20, 100, 37 }, plan, error));

    CHECK_EQUAL(plan.n_pos_prefix(), 84u);
    CHECK_EQUAL(plan.layers.size(), 2u);
    CHECK_EQUAL(plan.layers[0].len[0], 4u);
    CHECK_EQUAL(plan.layers[0].len[1], 84u);
    CHECK_EQUAL(plan.layers[0].indptr[1], 4u);
    CHECK_EQUAL(plan.layers[0].n_rows(), 88u);
    CHECK_EQUAL(plan.layers[0].max_len(), 84u);
    CHECK_EQUAL(plan.layers[1].n_rows(), 21u);
}

static void test_short_prompt() {
    headkv_plan plan;
    std::string error;
    CHECK(make(18, 16, 4, { 18, 18, 18 }, plan, error)); // two positions before the window: two sinks
    CHECK_EQUAL(plan.n_sink, 2u);
    CHECK_EQUAL(plan.layers[1].n_rows(), 2u);

    CHECK(make(17, 16, 0, { 16, 17, 16 }, plan, error)); // empty heads
    CHECK_EQUAL(plan.layers[0].len[0], 0u);
    CHECK_EQUAL(plan.layers[1].max_len(), 0u);
}

static void test_refusals() {
    const struct {
        uint32_t n_pos, n_obs, n_sink;
        std::vector<uint32_t> rows;
        const char * word; // must be in the message
    } cases[] = {
        { 100,   0, 4, { 20, 20, 20 },     "n_obs = 0"   },
        { 100, 100, 4, { 20, 20, 20 },     "n_obs = 100" },
        { 100,  16, 4, { 20, 20 },         "2 elements"  },
        { 100,  16, 4, { 20, 20, 20, 20 }, "4 elements"  },
        { 100,  16, 4, { 20, 19, 20 },     "19 rows"     },
        { 100,  16, 4, { 20, 20, 101 },    "101 rows"    },
    };
    for (const auto & c : cases) {
        headkv_plan plan;
        plan.n_pos = 7;
        std::string error;
        CHECK(!make(c.n_pos, c.n_obs, c.n_sink, c.rows, plan, error));
        CHECK_EQUAL(plan.n_pos, 7u); // untouched
        if (error.find(c.word) == std::string::npos) {
            CHECK_EQUAL(error, std::string("... ") + c.word + " ...");
        }
    }
}

static void test_spans() {
    headkv_plan plan;
    std::string error;
    CHECK(make(100, 16, 4, { 33, 100, 40 }, plan, error, { 4, 7, 74, 84 })); // one behind the sinks, one before the window
    CHECK_EQUAL(plan.n_always(), 17u);
    CHECK_EQUAL(plan.always.size(), 3u);
    CHECK_EQUAL(plan.always[2].end, 84u);
    CHECK_EQUAL(plan.layers[0].len[0], 17u);

    CHECK(make(100, 16, 0, { 17, 17, 17 }, plan, error, { 0, 1 }));
    CHECK_EQUAL(plan.always.size(), 1u);
    CHECK(make(18, 16, 4, { 18, 18, 18 }, plan, error)); // nothing but sinks
    CHECK_EQUAL(plan.n_always(), 2u);

    const struct {
        std::vector<uint32_t> spans;
        uint32_t              rows;
        const char          * words;
    } cases[] = {
        { { 10, 10 },         50, "span 0, positions 10 to 10, is empty"  },
        { { 12, 10 },         50, "span 0, positions 12 to 10, is empty"  },
        { { 3, 10 },          50, "not inside [4, 84]"                    }, // sinks are there already
        { { 80, 85 },         50, "not inside [4, 84]"                    }, // so is the window
        { { 10, 20, 19, 30 }, 50, "span 1, positions 19 to 30, is empty or not inside [20, 84]" },
        { { 30, 40, 10, 20 }, 50, "span 1, positions 10 to 20"            },
        { { 10, 20 },         29, "29 rows are outside [30, 100]"         },
    };
    for (const auto & c : cases) {
        plan.n_pos = 7;
        CHECK(!make(100, 16, 4, { c.rows, c.rows, c.rows }, plan, error, c.spans));
        CHECK_EQUAL(plan.n_pos, 7u);
        if (error.find(c.words) == std::string::npos) {
            CHECK_EQUAL(error, std::string("... ") + c.words + " ...");
        }
    }
}

static void test_explicit() {
    const uint32_t kept[] = { 2, 0, 3 };
    headkv_plan plan;
    std::string error;

    const auto make_explicit = [&](std::vector<int32_t> pos) {
        return headkv_plan_make_explicit(20, 5, N_HEAD_KV, kept, 3, pos.data(), pos.size(), plan, error);
    };

    CHECK(make_explicit({ 0, 14, 3, 4, 9 }));
    CHECK_EQUAL(plan.layers[0].len[1], 0u);
    CHECK_EQUAL(plan.layers[1].n_rows(), 3u);

    CHECK(!make_explicit({ 0, 15, 3, 4, 9 }));    // 15 is in the window
    CHECK(!make_explicit({ 5, 5, 3, 4, 9 }));     // twice
    CHECK(!make_explicit({ 5, 4, 3, 4, 9 }));     // descending
    CHECK(!make_explicit({ -1, 4, 3, 4, 9 }));
    CHECK(!make_explicit({ 0, 14, 3, 4 }));       // one too few
    CHECK(!make_explicit({ 0, 14, 3, 4, 9, 10 })); // one too many
}

int main() {
    test_sums();
    test_short_prompt();
    test_refusals();
    test_spans();
    test_explicit();
    return n_failed != 0;
}
