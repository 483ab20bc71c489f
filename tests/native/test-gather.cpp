// test-gather.cpp: rows gathered by a graph, as on a device, are the bytes that memcpy finds. The CPU backend plays the device.

#include "check.h"
#include "core/error.h"
#include "held-tensor.h"

#include "rows/gather.h"

#include <cstring>
#include <random>

static constexpr int64_t N_HEAD_KV = 3;
static constexpr int64_t N_CELLS   = 50;

static void fill(held_tensor & x, std::mt19937 & rng) {
    for (size_t i = 0; i < ggml_nbytes(x.t); i++) {
        x.data<uint8_t>()[i] = (uint8_t) rng(); // any bytes, those of NaN and infinity too
    }
}

static std::vector<int> bytes(const held_tensor & x) {
    return std::vector<int>(x.data<uint8_t>(), x.data<uint8_t>() + ggml_nbytes(x.t));
}

static void test_type(ggml_backend_t backend, ggml_type type, int64_t n_embd_head, int64_t n_rows) {
    std::mt19937 rng(type*1000 + n_embd_head);
    const size_t row_bytes = ggml_row_size(type, n_embd_head);

    held_tensor k(type, n_embd_head*N_HEAD_KV, N_CELLS), v(type, n_embd_head*N_HEAD_KV, N_CELLS);
    fill(k, rng);
    fill(v, rng);
    std::vector<int32_t> index;
    for (int64_t i = 0; i < n_rows; i++) {
        index.push_back(rng() % (N_HEAD_KV*N_CELLS));
    }

    const int64_t n = n_rows + 1; // one row is left alone
    held_tensor k_device(type, n_embd_head, n), v_device(type, n_embd_head, n), k_host(type, n_embd_head, n), v_host(type, n_embd_head, n);
    headkv_gather_device(backend, { { k.t, k_device.t, row_bytes }, { v.t, v_device.t, row_bytes } }, index);
    headkv_gather_host(k.t, row_bytes, index, k_host.data<char>());
    headkv_gather_host(v.t, row_bytes, index, v_host.data<char>());
    CHECK(bytes(k_device) == bytes(k_host));
    CHECK(bytes(v_device) == bytes(v_host));
    for (int64_t i = 0; i < n_rows; i++) {
        CHECK(memcmp((char *) k_host.t->data + i*row_bytes, (char *) k.t->data + index[i]*row_bytes, row_bytes) == 0);
    }
    CHECK(((uint8_t *) k_device.t->data)[n_rows*row_bytes] == 0);
}

int main() {
    ggml_backend_t backend = ggml_backend_cpu_init();
    ggml_backend_cpu_set_n_threads(backend, 2);

    int n_run = 0;
    for (const ggml_type type : { GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0, GGML_TYPE_Q4_1, GGML_TYPE_Q5_0, GGML_TYPE_Q5_1, GGML_TYPE_IQ4_NL }) {
        for (const int64_t n_embd_head : { 64, 80, 96, 128, 256 }) {
            if (n_embd_head % ggml_blck_size(type) != 0 || !headkv_gather_reason(ggml_row_size(type, n_embd_head)).empty()) {
                continue;
            }
            for (const int64_t n_rows : { 0, 1, 97 }) {
                test_type(backend, type, n_embd_head, n_rows);
                n_run++;
            }
        }
    }
    CHECK_EQUAL(n_run, 3*(3*5 + 6*3 + 2)); // of quantised rows of 96, those of q4_1 and q5_1 are whole words
    CHECK_EQUAL(headkv_gather_reason(102), std::string("rows of 102 bytes are no multiple of 4: take another cache type"));

    headkv_alloc_fail(1);
    held_tensor * h = nullptr;
    try {
        h = new held_tensor(GGML_TYPE_F32, 4, 4);
    } catch (const headkv_error & err) {
        CHECK_EQUAL((int) err.status, (int) HEADKV_STATUS_NO_MEMORY);
    }
    CHECK(h == nullptr);

    ggml_backend_free(backend);
    return n_failed == 0 ? 0 : 1;
}
