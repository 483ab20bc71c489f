// test-graph-nodes.cpp: the nodes that we put into graphs, computed: unfused attention over hot rows is the fused one, and observing
// tokens leave the attention that was paid.

#include "attend/attn.h"
#include "attend/node.h"
#include "check.h"
#include "score/observe.h"
#include "small-view.h"

#include "llama-graph.h"

#include <cmath>
#include <numeric>

static constexpr int64_t N_KV  = small_view::N_CELLS;
static constexpr float   SCALE = 0.4f;

// an attention node over all cells of layer 0 of a small cache, behind which nodes of ours are put
struct attention_graph {
    llm_graph_result     result { 256 };
    ggml_backend_t       backend;
    int64_t              n_tok;
    ggml_gallocr_ptr     alloc;
    ggml_tensor        * q, * mask, * fa;

    std::vector<llama_pos> pos;
    llama_ubatch           ubatch = {};

    attention_graph(small_view & x, ggml_type type, int64_t n_tok = 3) : backend(x.backend), n_tok(n_tok), pos(n_tok) {
        std::iota(pos.begin(), pos.end(), 3);
        ubatch.n_tokens = n_tok;
        ubatch.pos      = pos.data();
        result.reset();
        ggml_context * ctx = result.get_ctx();
        q    = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, small_view::D, n_tok, small_view::N_HEAD);
        mask = ggml_new_tensor_2d(ctx, GGML_TYPE_F16, N_KV, n_tok);
        ggml_set_input(q);
        ggml_set_input(mask);
        const auto cells = [&](ggml_tensor * t) { // F16, since a F32 cache reaches the node as a copy
            t = ggml_permute(ctx, ggml_reshape_3d(ctx, t, small_view::D, small_view::N_HEAD_KV, N_KV), 0, 2, 1, 3);
            return type == GGML_TYPE_F32 ? t : ggml_cast(ctx, t, type);
        };
        fa = ggml_flash_attn_ext(ctx, q, cells(x.k[0]->t), cells(x.v[0]->t), mask, SCALE, 0.0f, 0.0f);
        ggml_prec_set_acc(fa, GGML_PREC_F32);
    }

    std::vector<float> compute(ggml_tensor * out) {
        ggml_set_output(out);
        ggml_build_forward_expand(result.get_gf(), out);
        alloc.reset(ggml_gallocr_new(ggml_backend_get_default_buffer_type(backend)));
        CHECK(ggml_gallocr_alloc_graph(alloc.get(), result.get_gf()));

        std::vector<float> values(ggml_nelements(q));
        for (size_t i = 0; i < values.size(); ++i) { values[i] = std::sin(1.0f + 0.7f*i); }
        ggml_backend_tensor_set(q, values.data(), 0, ggml_nbytes(q));
        std::vector<ggml_fp16_t> seen(N_KV*n_tok);
        for (int64_t i = 0; i < N_KV*n_tok; ++i) { seen[i] = ggml_fp32_to_fp16(i % 5 == 3 ? -INFINITY : 0.0f); }
        ggml_backend_tensor_set(mask, seen.data(), 0, ggml_nbytes(mask));

        result.set_inputs(&ubatch);
        CHECK(ggml_backend_graph_compute(backend, result.get_gf()) == GGML_STATUS_SUCCESS);
        std::vector<float> res(ggml_nelements(out));
        ggml_backend_tensor_get(out, res.data(), 0, ggml_nbytes(out));
        return res;
    }
};

static double worst_difference(const std::vector<float> & a, const std::vector<float> & b) {
    double worst = a.size() == b.size() ? 0.0 : INFINITY;
    for (size_t i = 0; i < a.size() && i < b.size(); ++i) { worst = std::max(worst, (double) std::fabs(a[i] - b[i])); }
    return worst;
}

static void test_unfused_is_fused() {
    small_view x;
    const uint32_t n_kept[] = { 3, 1, 0, 0 };
    const int32_t  pos[]    = { 0, 1, 3, 2 };
    const auto plan = headkv_plan_make_explicit(small_view::N_POS, 2, { 2, 2 }, n_kept, 4, pos, 4);
    headkv_hot hot(plan, { x.rows(0), x.rows(1) });
    hot.fill(0, { { 0, 1, 3 }, { 2 } }, x.rows(0), 1);
    hot.fill(1, { {}, {} }, x.rows(1), 1);

    const auto run = [&](size_t i, bool is_unfused) {
        attention_graph g(x, GGML_TYPE_F32);
        ggml_tensor * out = headkv_attn_build(g.result, hot.layer(i), g.fa, is_unfused);
        CHECK_EQUAL(out == g.fa, !is_unfused);
        return g.compute(out);
    };
    attention_graph stock(x, GGML_TYPE_F16);
    const auto without = stock.compute(stock.fa);
    for (size_t i = 0; i < small_view::N_LAYER; ++i) { // the second has no hot rows at all
        const auto fused = run(i, false);
        CHECK(worst_difference(fused, run(i, true)) < 2e-3); // unfused rows are f16
        CHECK((worst_difference(fused, without) > 1e-2) == (i == 0)); // hot rows count
    }
}

static void test_observed_attention(int64_t n_tok) {
    small_view x;
    for (const headkv_observe_what what : { HEADKV_OBSERVE_ATTN_MEAN, HEADKV_OBSERVE_ATTN_MAX }) {
        x.observation.stop();
        x.observation.start({ 3, (uint32_t) n_tok }, what, small_view::observed(), {});
        attention_graph g(x, GGML_TYPE_F32, n_tok);
        headkv_observe_build(g.result, x.observation, 0, g.fa, g.ubatch);
        g.compute(g.fa);
        x.observation.check_complete(3 + (uint32_t) n_tok, HEADKV_OBSERVE_ATTN_MEAN); // tokens from 3 on were seen

        const auto got = x.observation.read(0);
        double worst = 0.0;
        for (int64_t h = 0; h < small_view::N_HEAD; ++h) {
            std::vector<double> want(N_KV, 0.0);
            for (int64_t t = 0; t < n_tok; ++t) {
                std::vector<double> p(N_KV);
                double sum = 0.0;
                for (int64_t c = 0; c < N_KV; ++c) {
                    double dot = 0.0;
                    for (int64_t d = 0; d < small_view::D; ++d) {
                        const double q = std::sin(1.0f + 0.7f*((h*n_tok + t)*small_view::D + d));
                        dot += q*x.k[0]->data<float>()[(c*small_view::N_HEAD_KV + h/2)*small_view::D + d];
                    }
                    p[c] = (t*N_KV + c) % 5 == 3 ? 0.0 : std::exp(SCALE*dot);
                    sum += p[c];
                }
                for (int64_t c = 0; c < N_KV; ++c) { want[c] = what == HEADKV_OBSERVE_ATTN_MAX ? std::max(want[c], p[c]/sum) : want[c] + p[c]/sum; }
            }
            for (int64_t c = 0; c < N_KV; ++c) { worst = std::max(worst, std::fabs(got[h*N_KV + c] - want[c])); }
        }
        CHECK(worst < 1e-5);
    }
}

static void test_too_many_tokens_are_noticed() {
    small_view x;
    x.observation.start({ 3, 2 }, HEADKV_OBSERVE_ATTN_MEAN, small_view::observed(), {});
    attention_graph g(x, GGML_TYPE_F32);
    headkv_observe_build(g.result, x.observation, 0, g.fa, g.ubatch);
    g.compute(g.fa);
    CHECK(!x.observation.has_seen());
}

int main() {
    test_unfused_is_fused();
    test_observed_attention(3);
    test_observed_attention(70); // more than one matrix at once
    test_too_many_tokens_are_noticed();
    return n_failed != 0;
}
