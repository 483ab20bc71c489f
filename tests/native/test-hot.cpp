// test-hot.cpp: hot rows are the bytes of the positions that they came from, head after head.

#include "refused.h"
#include "small-view.h"

#include <cstring>

static const headkv_kept_positions KEPT = { { { 0, 2, 3 }, {} }, { { 1 }, { 0, 1, 2, 3 } } }; // of 4 positions before a window of 2

static headkv_plan plan() {
    const uint32_t n_kept[] = { 3, 0, 1, 4 };
    const int32_t  pos[]    = { 0, 2, 3, 1, 0, 1, 2, 3 };
    return headkv_plan_make_explicit(small_view::N_POS, 2, { 2, 2 }, n_kept, 4, pos, 8);
}

static void test_rows(uint32_t n_threads) {
    small_view x;
    headkv_hot hot(plan(), { x.rows(0), x.rows(1) });
    for (uint32_t i = 0; i < small_view::N_LAYER; ++i) {
        hot.fill(i, KEPT[i], x.rows(i), n_threads);
    }

    CHECK(hot.exist());
    CHECK_EQUAL(hot.n_pos(), 4u);
    CHECK_EQUAL(hot.n_rows(), (uint64_t) 8);
    for (uint32_t i = 0; i < small_view::N_LAYER; ++i) {
        const headkv_hot_layer & layer = hot.layer(i);
        for (uint32_t ih = 0; ih < small_view::N_HEAD_KV; ++ih) {
            CHECK_EQUAL(layer.pos[ih], KEPT[i][ih]);
            CHECK_EQUAL(((const int32_t *) layer.row_ptr->data)[ih + 1] - ((const int32_t *) layer.row_ptr->data)[ih], (int32_t) KEPT[i][ih].size());
            for (size_t j = 0; j < KEPT[i][ih].size(); ++j) {
                const size_t at = (layer.rows.begin(ih) + j)*small_view::D;
                CHECK(memcmp((const float *) layer.k->data + at, x.row(*x.k[i], ih, KEPT[i][ih][j]), small_view::D*sizeof(float)) == 0);
                CHECK(memcmp((const float *) layer.v->data + at, x.row(*x.v[i], ih, KEPT[i][ih][j]), small_view::D*sizeof(float)) == 0);
            }
        }
    }
    std::map<ggml_backend_buffer_type_t, size_t> sizes;
    hot.add_memory(sizes);
    CHECK_EQUAL(sizes[ggml_backend_cpu_buffer_type()], hot.bytes());
    CHECK(hot.bytes() >= 8*2*small_view::D*sizeof(float));
}

int main() {
    for (const uint32_t n_threads : { 1u, 3u }) {
        test_rows(n_threads);
    }
    CHECK(!headkv_hot().exist());
    CHECK_EQUAL(headkv_hot().bytes(), (size_t) 0);

    small_view x;
    headkv_alloc_fail(1);
    CHECK_REFUSED(headkv_hot(plan(), { x.rows(0), x.rows(1) }), HEADKV_STATUS_NO_MEMORY, "out of memory");
    return n_failed != 0;
}
