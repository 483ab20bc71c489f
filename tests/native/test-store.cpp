// test-store.cpp: the store of a stock cache: the tail grows and keeps what it holds, changes are made before they are swapped in,
// and what may be removed. A model without weights is enough; compression of a whole context is tested end to end.

#include "cache/store.h"
#include "cache/support.h"
#include "refused.h"
#include "small-cache.h"

#include "llama-cparams.h"

static void test_growth() {
    small_cache c(64);
    headkv_store store(*c.kv, 1000);
    c.add(0, 60);
    CHECK(!store.want_cells(4)); // they fit
    CHECK(!store.is_update_due());
    CHECK(!store.update());

    CHECK(store.want_cells(5)); // 65 and an eighth, in steps of 64
    CHECK(store.is_update_due());
    CHECK_EQUAL(c.kv->get_size(), 64u); // not before the update
    CHECK(store.update());
    CHECK_EQUAL(c.kv->get_size(), 128u);
    CHECK(c.holds(0, 60));
    CHECK_EQUAL(store.stats().n_grow, (uint64_t) 1);
    CHECK(!store.is_update_due());

    CHECK(store.want_cells(400)); // beyond 256 in steps of upstream's 256
    CHECK(store.update());
    CHECK_EQUAL(c.kv->get_size(), 768u);
    CHECK(!store.want_cells(941)); // more than the context has positions
    CHECK(store.want_cells(940));
    CHECK(store.update());
    CHECK_EQUAL(c.kv->get_size(), 1000u);
    CHECK(c.holds(0, 60));
}

static void test_no_memory() {
    small_cache c(64);
    headkv_store store(*c.kv, 1000);
    c.add(0, 64);
    CHECK(store.want_cells(1));
    headkv_alloc_fail(1);
    CHECK(!store.update());
    CHECK_EQUAL(c.kv->get_size(), 64u);
    CHECK(c.holds(0, 64));
    CHECK(store.want_cells(1)); // and once more
    CHECK(store.update());
    CHECK(c.holds(0, 64));
    CHECK(!store.make_room(2000)); // not attached, too many
}

static void test_shapes() {
    small_cache c(64, LLM_ARCH_LLAMA, { 2, 0, 1 }); // the second layer has no attention
    headkv_store store(*c.kv, 1000);
    CHECK_EQUAL(store.layers().size(), (size_t) 2);
    CHECK_EQUAL(store.layers()[1].il, 2u);
    CHECK_EQUAL(store.layers()[0].n_head_kv, 2u);
    CHECK_EQUAL(store.layers()[0].row_bytes_k, 2*small_cache::D);

    c.add(0, 7);
    const headkv_stats stats = store.stats();
    CHECK_EQUAL(stats.n_pos, 7u);
    CHECK_EQUAL(stats.n_cells_used, 7u);
    CHECK_EQUAL(stats.n_rows_full, (uint64_t) 21);
    CHECK_EQUAL(stats.n_rows_tail, (uint64_t) 21);
    CHECK_EQUAL(stats.n_rows_hot, (uint64_t) 0);
    CHECK(stats.bytes_tail >= 64*3*2*2*small_cache::D);
    CHECK_EQUAL(stats.bytes_peak, stats.bytes_tail);
}

static void test_removal_without_hot_rows() {
    small_cache c(64);
    headkv_store store(*c.kv, 64);
    c.add(0, 9);
    CHECK(store.remove(4, -1)); // upstream does it
    CHECK(store.remove(-1, 3));
    CHECK_EQUAL(store.n_ubatch_max(512, 512), 512u);
    store.clear();
    CHECK(c.holds(0, 9));
}

// rows of the positions [0, n) as sources
static std::vector<headkv_layer_rows> sources(small_cache & c, ggml_backend_t backend, int32_t n, const std::vector<uint32_t> & n_head_kv) {
    const auto used  = headkv_access::cells_of(*c.kv, 0, n);
    const auto cells = std::make_shared<const std::vector<int32_t>>(used.begin(), used.end());
    std::vector<headkv_layer_rows> res;
    for (uint32_t il = 0; il < n_head_kv.size(); ++il) {
        res.push_back({ il, { backend, headkv_access::k(*c.kv, il), n_head_kv[il], cells }, { backend, headkv_access::v(*c.kv, il), n_head_kv[il], cells }, ggml_backend_cpu_buffer_type() });
    }
    return res;
}

static void test_transition() {
    ggml_backend_t backend = ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, nullptr);
    small_cache c(64);
    c.add(0, 20);

    const uint32_t n_kept[] = { 2, 1, 3 };
    const int32_t  pos[]    = { 0, 9, 4, 1, 2, 15 };
    const auto plan = headkv_plan_make_explicit(20, 4, { 2, 1 }, n_kept, 3, pos, 6);
    const headkv_kept_positions kept = { { { 0, 9 }, { 4 } }, { { 1, 2, 15 } } };

    const auto from = sources(c, backend, 20, { 2, 1 });
    const auto room = [&] { return headkv_transition_room(*c.kv, headkv_access::bufts(*c.kv), plan, from, 8); };
    for (int n = 1; n <= 2; ++n) { // hot rows, tail: one buffer each
        headkv_alloc_fail(n);
        CHECK_REFUSED(room(), HEADKV_STATUS_NO_MEMORY, "out of memory");
        CHECK(c.holds(0, 20));
    }

    headkv_transition made = room();
    for (uint32_t il = 0; il < 2; ++il) {
        headkv_transition_fill(made, *c.kv, plan, il, kept[il], from[il], 1);
    }
    headkv_transition_finish(made, *c.kv, plan);
    CHECK(c.holds(0, 20)); // nothing was swapped
    CHECK_EQUAL(made.hot->n_pos(), 16u);
    CHECK_EQUAL(made.bytes(), made.tail.bytes() + made.hot->bytes());
    for (uint32_t il = 0; il < 2; ++il) {
        const auto & layer = made.hot->layer(il);
        for (uint32_t ih = 0; ih < layer.rows.n_head_kv(); ++ih) {
            for (size_t j = 0; j < kept[il][ih].size(); ++j) {
                const auto x = ((const ggml_fp16_t *) layer.v->data)[(layer.rows.begin(ih) + j)*small_cache::D];
                CHECK_EQUAL(ggml_fp16_to_fp32(x), small_cache::value(il, kept[il][ih][j]));
            }
        }
    }
    headkv_access::swap_tail(*c.kv, made.tail);
    CHECK_EQUAL(made.tail.cells.size(), 64u); // what there was
    CHECK_EQUAL(c.kv->get_size(), 8u);
    CHECK(c.holds(16, 4));
    CHECK_EQUAL(c.kv->seq_pos_min(0), 16);
    c.add(20, 4); // the cells behind are free
    CHECK(c.holds(16, 8));
    ggml_backend_free(backend);
}

static void test_support() {
    small_cache c(64);
    llama_cparams cparams = {};
    cparams.flash_attn = true;
    cparams.n_seq_max  = 1;

    const auto reason = [&] { return headkv_unsupported_reason(c.kv.get(), cparams); };
    const auto check  = [&](const char * words, int line) {
        if (reason().find(words) == std::string::npos) { check_equal(reason(), std::string(words), "reason", line); }
    };
    CHECK_EQUAL(reason(), "");
    CHECK_EQUAL(headkv_unsupported_reason(nullptr, cparams), "the model has no KV cache");

    cparams.flash_attn = false;
    check("flash attention is off", __LINE__);
    cparams.flash_attn = true;
    cparams.n_seq_max  = 3;
    check("3 sequences", __LINE__);
    cparams.n_seq_max  = 1;

    llama_hparams & hparams = c.model->hparams;
    const struct {
        const char * words;
        void (*change)(llama_hparams &);
    } cases[] = {
        { "attends to later tokens",     [](llama_hparams & h) { h.causal_attn = false; } },
        { "latent attention",            [](llama_hparams & h) { h.n_embd_head_k_mla_impl = h.n_embd_head_v_mla_impl = 32; } },
        { "position bias",               [](llama_hparams & h) { h.n_rel_attn_bkts = 32; } },
        { "which adapter",               [](llama_hparams & h) { h.router_layer = 1; } },
        { "ALiBi",                       [](llama_hparams & h) { h.use_alibi = true; } },
        { "tokens of earlier positions", [](llama_hparams & h) { h.ple_n_heads = 1; } },
    };
    const llama_hparams plain = hparams;
    for (const auto & x : cases) {
        x.change(hparams);
        check(x.words, __LINE__);
        hparams = plain;
    }
    c.make(64, /*.n_seq_max =*/ 2); // of several sequences, whatever the context says
    check("not a plain one", __LINE__);
    c.make(64, 1, LLAMA_SWA_TYPE_STANDARD);
    check("not a plain one", __LINE__);
}

int main() {
    test_growth();
    test_no_memory();
    test_shapes();
    test_removal_without_hot_rows();
    test_transition();
    test_support();
    return n_failed != 0;
}
