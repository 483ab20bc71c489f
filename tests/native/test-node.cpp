// test-node.cpp: the nodes that kernels of GPUs take, and each reason to leave one to others. No device is needed.

#include "check.h"

#include "attend/node.h"

#include "ggml-cpp.h"
#include "ggml.h"

#include <functional>

struct shape {
    ggml_type type_k = GGML_TYPE_F16, type_v = GGML_TYPE_F16, type_hot = GGML_TYPE_F16, type_mask = GGML_TYPE_F16;
    int64_t n_k = 64, n_v = 64, n_tok = 2, n_head_kv = 2, n_head = 6, n_kv = 40, n_sinks = 6, n_row_ptr = 3;
    float   max_bias = 0.0f;
};

static const int64_t N_HOT = 7;

static bool is_plain(const shape & s, const std::function<void(ggml_context *, ggml_tensor *)> & change = {}) {
    ggml_context_ptr ctx { ggml_init({ 32*ggml_tensor_overhead(), nullptr, /*.no_alloc =*/ true }) };
    ggml_context * c = ctx.get();

    ggml_tensor * mask  = ggml_new_tensor_2d(c, s.type_mask, s.n_kv, s.n_tok);
    ggml_tensor * sinks = ggml_new_tensor_1d(c, GGML_TYPE_F32, s.n_head);
    ggml_tensor * node  = ggml_flash_attn_ext(c,
        ggml_permute(c, ggml_new_tensor_3d(c, GGML_TYPE_F32, s.n_k, s.n_head,    s.n_tok), 0, 2, 1, 3),
        ggml_permute(c, ggml_new_tensor_3d(c, s.type_k,      s.n_k, s.n_head_kv, s.n_kv),  0, 2, 1, 3),
        ggml_permute(c, ggml_new_tensor_3d(c, s.type_v,      s.n_v, s.n_head_kv, s.n_kv),  0, 2, 1, 3),
        mask, 0.125f, s.max_bias, 0.0f);
    ggml_flash_attn_ext_add_sinks(node, sinks);
    node->src[HEADKV_SRC_SINKS] = ggml_new_tensor_1d(c, GGML_TYPE_F32, s.n_sinks);
    node->src[HEADKV_SRC_K_HOT] = ggml_new_tensor_2d(c, s.type_hot, s.n_k, N_HOT);
    node->src[HEADKV_SRC_V_HOT] = ggml_new_tensor_2d(c, s.type_hot, s.n_v, N_HOT);
    node->src[HEADKV_SRC_ROW_PTR] = ggml_new_tensor_1d(c, GGML_TYPE_I32, s.n_row_ptr);
    if (change) { change(c, node); }
    CHECK(headkv_node(node).is_valid() || !headkv_node(node).is_plain());
    return headkv_node(node).is_plain();
}

static shape of_type(ggml_type type, int64_t n) {
    shape s;
    s.type_k = s.type_v = s.type_hot = type;
    s.n_k    = s.n_v    = n;
    return s;
}

static void test_shapes() {
    for (const ggml_type type : { GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0 }) {
        for (const int64_t n : { 64, 96, 128, 256 }) { CHECK(is_plain(of_type(type, n))); }
    }
    CHECK(is_plain(of_type(GGML_TYPE_F16, 80)));
    CHECK(!is_plain(of_type(GGML_TYPE_F16, 72)));
    for (const ggml_type type : { GGML_TYPE_F32, GGML_TYPE_Q5_0, GGML_TYPE_IQ4_NL }) { CHECK(!is_plain(of_type(type, 64))); }

    const auto changed = [](const std::function<void(shape &)> & change) {
        shape s;
        change(s);
        return is_plain(s);
    };
    CHECK(changed([](shape & s) { s.n_tok = 70; }));
    CHECK(!changed([](shape & s) { s.n_v = 128; }));
    CHECK(!changed([](shape & s) { s.type_hot = GGML_TYPE_BF16; }));
    CHECK(!changed([](shape & s) { s.n_sinks = 2; }));
    CHECK(!changed([](shape & s) { s.n_row_ptr = 2; }));
    CHECK(!changed([](shape & s) { s.max_bias = 8.0f; })); // ALiBi
}

static void test_sources() {
    const shape s;
    shape mixed;
    mixed.type_v = GGML_TYPE_Q8_0;
    CHECK(!is_plain(mixed, [&](ggml_context * c, ggml_tensor * node) {
        node->src[HEADKV_SRC_V_HOT] = ggml_new_tensor_2d(c, mixed.type_v, mixed.n_v, N_HOT);
    }));
    for (const int i : { HEADKV_SRC_K_HOT, HEADKV_SRC_V_HOT, HEADKV_SRC_ROW_PTR }) {
        CHECK(!is_plain(s, [&](ggml_context *, ggml_tensor * node) { node->src[i] = nullptr; }));
    }
    CHECK(is_plain(s, [](ggml_context *, ggml_tensor * node) { node->src[HEADKV_SRC_MASK] = node->src[HEADKV_SRC_SINKS] = nullptr; }));
    CHECK(!is_plain(s, [&](ggml_context * c, ggml_tensor * node) { // a mask for each head
        node->src[HEADKV_SRC_MASK] = ggml_new_tensor_3d(c, GGML_TYPE_F16, s.n_kv, s.n_tok, s.n_head);
    }));
    CHECK(!is_plain(s, [&](ggml_context * c, ggml_tensor * node) { // of fewer cells
        node->src[HEADKV_SRC_MASK] = ggml_new_tensor_2d(c, GGML_TYPE_F16, s.n_kv - 1, s.n_tok);
    }));
    CHECK(!is_plain(s, [](ggml_context * c, ggml_tensor * node) { // rows with gaps
        ggml_tensor * wide = ggml_new_tensor_2d(c, GGML_TYPE_F16, 128, N_HOT);
        node->src[HEADKV_SRC_K_HOT] = ggml_view_2d(c, wide, 64, N_HOT, wide->nb[1], 0);
    }));
}

static void test_logits() {
    ggml_tensor node = {};
    const float plain[]  = { 0.125f, 0.0f, 0.0f };
    const float capped[] = { 0.5f, 0.0f, 20.0f };
    memcpy(node.op_params, plain, sizeof(plain));
    CHECK_EQUAL(headkv_node(&node).logit_scale(), 0.125f);
    memcpy(node.op_params, capped, sizeof(capped));
    CHECK_EQUAL(headkv_node(&node).logit_scale(), 0.025f);
    CHECK_EQUAL(headkv_node(&node).softcap, 20.0f);
}

int main() {
    test_shapes();
    test_sources();
    test_logits();
    return n_failed == 0 ? 0 : 1;
}
