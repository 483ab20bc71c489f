// test-observation.cpp: what observing tokens leave behind is complete, of the right kind and of the last positions, or refused.

#include "refused.h"
#include "small-view.h"

static void test_shapes() {
    small_view x;
    const int64_t d = small_view::D, h = small_view::N_HEAD;
    const struct {
        headkv_observe_what what;
        std::vector<int64_t> ne;
    } cases[] = {
        { HEADKV_OBSERVE_ATTN_MEAN,    { small_view::N_CELLS, h, 1 } },
        { HEADKV_OBSERVE_ATTN_MAX,     { small_view::N_CELLS, h, 1 } },
        { HEADKV_OBSERVE_QUERY_STATS, { d, d + 1, h } },
        { HEADKV_OBSERVE_QUERIES, { d, h, 3 } },
    };
    for (const auto & c : cases) {
        x.observe(3, c.what);
        const ggml_tensor * t = x.observation.at(1).gathered;
        CHECK_EQUAL((std::vector<int64_t> { t->ne[0], t->ne[1], t->ne[2] }), c.ne);
        CHECK_EQUAL(x.observation.read(1).size(), (size_t) ggml_nelements(t));
        CHECK(x.observation.bytes() >= 2*ggml_nbytes(t));
    }
    x.observation.stop();
    CHECK(!x.observation.is_on());
    CHECK_EQUAL(x.observation.bytes(), (size_t) 0);
}

static void test_completeness() {
    small_view x;
    headkv_observation & o = x.observation;
    const auto check = [&](headkv_observe_what needed, const char * words) {
        CHECK_REFUSED((o.check_complete(small_view::N_POS, needed), 0), HEADKV_STATUS_WRONG_STATE, words);
    };
    check(HEADKV_OBSERVE_ATTN_MEAN, "the last 0 positions were not all observed");

    o.start({ 3, 3 }, HEADKV_OBSERVE_ATTN_MAX, small_view::observed(), {});
    check(HEADKV_OBSERVE_ATTN_MEAN, "0 of 3 tokens were decoded");
    o.see(3, 1);
    check(HEADKV_OBSERVE_ATTN_MEAN, "1 of 3 tokens were decoded, from position 3 on");
    o.see(4, 2); // in a second batch
    o.check_complete(small_view::N_POS, HEADKV_OBSERVE_ATTN_MEAN); // the mean stands for the maximum too
    check(HEADKV_OBSERVE_QUERY_STATS, "observed for attention, but these scores need query statistics");
    check(HEADKV_OBSERVE_QUERIES, "observed for attention, but these scores need queries");

    CHECK_REFUSED((o.check_complete(small_view::N_POS + 1, HEADKV_OBSERVE_ATTN_MEAN), 0), HEADKV_STATUS_WRONG_STATE, "not all observed"); // a token more
    o.spoil();
    check(HEADKV_OBSERVE_ATTN_MEAN, "some of them removed");

    o.stop();
    o.start({ 3, 3 }, HEADKV_OBSERVE_ATTN_MEAN, small_view::observed(), {});
    for (int layer = 0; layer < 2; ++layer) { // each layer tells of all tokens
        o.see(3, 2);
        o.see(5, 1);
    }
    o.check_complete(small_view::N_POS, HEADKV_OBSERVE_ATTN_MEAN);
    o.see(7, 1); // one was left out
    check(HEADKV_OBSERVE_ATTN_MEAN, "some of them removed");

    o.stop();
    o.start({ 3, 3 }, HEADKV_OBSERVE_ATTN_MEAN, small_view::observed(), {});
    o.see(2, 4); // begins before the window
    check(HEADKV_OBSERVE_ATTN_MEAN, "0 of 3 tokens were decoded");
}

// memory that is not the observation's own
static void test_place() {
    small_view  x;
    held_tensor elsewhere(GGML_TYPE_F32, small_view::N_CELLS, small_view::N_HEAD);
    x.observation.start({ 3, 3 }, HEADKV_OBSERVE_ATTN_MEAN, small_view::observed(), [&](size_t i, ggml_tensor * t) {
        if (i == 1) {
            ggml_backend_tensor_alloc(elsewhere.t->buffer, t, elsewhere.t->data);
        }
        return i == 1;
    });
    CHECK(x.observation.at(1).gathered->data == elsewhere.t->data);
    CHECK(x.observation.at(0).gathered->data != nullptr);
    CHECK(x.observation.bytes() < 2*ggml_nbytes(elsewhere.t));
}

static void test_no_memory() {
    small_view x;
    headkv_alloc_fail(1);
    CHECK_REFUSED((x.observe(3, HEADKV_OBSERVE_ATTN_MEAN), 0), HEADKV_STATUS_NO_MEMORY, "out of memory");
    CHECK(!x.observation.is_on());
    CHECK_EQUAL(x.observation.bytes(), (size_t) 0);
}

int main() {
    test_shapes();
    test_completeness();
    test_place();
    test_no_memory();
    return n_failed != 0;
}
