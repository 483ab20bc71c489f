// test-plan.cpp: a plan refuses what is out of range, names it, and adds up the rest.

#include "core/plan.h"
#include "refused.h"

#include <vector>

static const std::vector<uint32_t> N_HEAD_KV = { 2, 1 };

static headkv_plan make(uint32_t n_pos, uint32_t n_obs, uint32_t n_sink, std::vector<uint32_t> rows, std::vector<uint32_t> spans = {}) {
    return headkv_plan_make({
        n_pos, n_obs, n_sink, rows.data(), (uint32_t) rows.size(), spans.data(), (uint32_t) spans.size()/2,
    }, N_HEAD_KV);
}

static void test_sums() {
    headkv_plan plan = make(100, 16, 4, { 20, 100, 37 });

    CHECK_EQUAL(plan.n_pos_hot(), 84u);
    CHECK_EQUAL(plan.layers.size(), 2u);
    CHECK_EQUAL(plan.layers[0].len(0), 4u);
    CHECK_EQUAL(plan.layers[0].len(1), 84u);
    CHECK_EQUAL(plan.layers[0].begin(1), 4u);
    CHECK_EQUAL(plan.layers[0].n_rows(), 88u);
    CHECK_EQUAL(plan.layers[0].max_len(), 84u);
    CHECK_EQUAL(plan.layers[1].n_rows(), 21u);
}

static void test_short_prompt() {
    headkv_plan plan = make(18, 16, 4, { 18, 18, 18 }); // two positions before the window: two sinks
    CHECK_EQUAL(plan.n_sink, 2u);
    CHECK_EQUAL(plan.layers[1].n_rows(), 2u);

    plan = make(17, 16, 0, { 16, 17, 16 }); // empty heads
    CHECK_EQUAL(plan.layers[0].len(0), 0u);
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
        CHECK_REFUSED(make(c.n_pos, c.n_obs, c.n_sink, c.rows), HEADKV_STATUS_INVALID_ARGUMENT, c.word);
    }
}

static void test_spans() {
    headkv_plan plan = make(100, 16, 4, { 33, 100, 40 }, { 4, 7, 74, 84 }); // one behind the sinks, one before the window
    CHECK_EQUAL(plan.n_protected(), 17u);
    CHECK_EQUAL(plan.spans.size(), 3u);
    CHECK_EQUAL(plan.spans[2].end, 84u);
    CHECK_EQUAL(plan.layers[0].len(0), 17u);

    plan = make(100, 16, 0, { 17, 17, 17 }, { 0, 1 });
    CHECK_EQUAL(plan.spans.size(), 1u);
    plan = make(18, 16, 4, { 18, 18, 18 }); // nothing but sinks
    CHECK_EQUAL(plan.n_protected(), 2u);

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
        CHECK_REFUSED(make(100, 16, 4, { c.rows, c.rows, c.rows }, c.spans), HEADKV_STATUS_INVALID_ARGUMENT, c.words);
    }
}

static void test_explicit() {
    const uint32_t kept[] = { 2, 0, 3 };

    const auto make_explicit = [&](std::vector<int32_t> pos) {
        return headkv_plan_make_explicit(20, 5, N_HEAD_KV, kept, 3, pos.data(), pos.size());
    };

    const headkv_plan plan = make_explicit({ 0, 14, 3, 4, 9 });
    CHECK_EQUAL(plan.layers[0].len(1), 0u);
    CHECK_EQUAL(plan.layers[1].n_rows(), 3u);

    const struct {
        std::vector<int32_t> pos;
        const char         * words;
    } cases[] = {
        { { 0, 15, 3, 4, 9 },     "layer 0 kv head 0: position 15 is not above 0 and below 15" }, // in the window
        { { 5, 5, 3, 4, 9 },      "position 5 is not above 5"           }, // twice
        { { 5, 4, 3, 4, 9 },      "position 4 is not above 5"           },
        { { -1, 4, 3, 4, 9 },     "position -1 is not above -1"         },
        { { 0, 14, 3, 4 },        "layer 1 kv head 0: 3 positions wanted, 2 are left" },
        { { 0, 14, 3, 4, 9, 10 }, "pos has 6 elements, n_kept adds up to 5" },
    };
    for (const auto & c : cases) {
        CHECK_REFUSED(make_explicit(c.pos), HEADKV_STATUS_INVALID_ARGUMENT, c.words);
    }
}

int main() {
    test_sums();
    test_short_prompt();
    test_refusals();
    test_spans();
    test_explicit();
    return n_failed != 0;
}
