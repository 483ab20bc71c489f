#include "headkv-cpu-observe.h"
#include "attend/node.h"
#include "headkv-cpu-rows.h"
#include "headkv-cpu-simd.h"

#include "ggml-cpu.h"
#include "ggml.h"

#include <algorithm>
#include <cfloat>

namespace headkv {

constexpr int64_t BLOCK_CELLS = 64; // K of a block stays in the first-level cache

struct observe_node : headkv_node {
    int64_t n_k;       // elements of a K row
    int64_t ld_k;      // the same, padded to whole vectors
    int64_t n_kv;      // cells
    int64_t n_tok;
    int64_t ld_tok;    // n_tok, padded to whole vectors
    int64_t n_query;   // of a KV head: ld_tok for each of its query heads
    int64_t n_block;

    explicit observe_node(const ggml_tensor * dst) : headkv_node(dst) {
        n_k     = k->ne[0];
        ld_k    = vec_pad(n_k);
        n_kv    = k->ne[1];
        n_tok   = q->ne[1];
        ld_tok  = vec_pad(n_tok);
        n_query = n_gqa()*ld_tok;
        n_block = (n_kv + BLOCK_CELLS - 1)/BLOCK_CELLS;
    }

    bool is_valid() const {
        return max_bias == 0.0f && mask && mask->type == GGML_TYPE_F16 && mask->nb[0] == 2 && mask->ne[0] >= n_kv && mask->ne[1] >= n_tok &&
            q->type == GGML_TYPE_F32 && q->nb[0] == sizeof(float) && q->ne[0] == n_k && q->ne[2] % k->ne[2] == 0 &&
            k->nb[0] == ggml_type_size(k->type) && (!sinks || (sinks->type == GGML_TYPE_F32 && ggml_is_contiguous(sinks))) &&
            dst->type == GGML_TYPE_F32 && dst->nb[0] == sizeof(float) && dst->ne[0] == n_kv && dst->ne[1] == q->ne[2];
    }

    int64_t block_end(int64_t block) const { return std::min((block + 1)*BLOCK_CELLS, n_kv); }
};

struct observe_scratch {
    // of all threads, of one KV head
    float * p; // [n_kv][n_query] exp(score - m of the block)
    float * m; // [n_block][n_query] largest score, -INF where nothing is seen
    float * l; // [n_block][n_query] sum of p

    // of one thread
    float * q;      // [ld_k][n_query] scaled
    float * k;      // [BLOCK_CELLS][ld_k]
    float * top;    // [n_query] largest score of all blocks
    float * scale;  // [n_query] 1/sum of exp(score - top)
    float * factor; // [n_query] of p of a block

    // lays it out from base on (which may be NULL) for thread ith of nth; returns the size for all threads in bytes
    size_t lay_out(const observe_node & node, char * base, int64_t ith, int64_t nth) {
        size_t size = 0;
        const auto take = [&](int64_t n) {
            char * res = base + size;
            size += GGML_PAD(n*sizeof(float), 64);
            return (float *) res;
        };
        p = take(node.n_kv*node.n_query);
        m = take(node.n_block*node.n_query);
        l = take(node.n_block*node.n_query);
        const size_t shared = size;
        q      = take(node.ld_k*node.n_query);
        k      = take(BLOCK_CELLS*node.ld_k);
        top    = take(node.n_query);
        scale  = take(node.n_query);
        factor = take(node.n_query);
        const size_t own = size - shared;
        for (float ** x : { &q, &k, &top, &scale, &factor }) {
            *x += ith*own/sizeof(float);
        }
        return shared + nth*own;
    }
};

static void load_queries(const observe_node & node, int64_t ih, observe_scratch & s) {
    const float scale = node.logit_scale();
    std::fill_n(s.q, node.ld_k*node.n_query, 0.0f);
    for (int64_t g = 0; g < node.n_gqa(); g++) {
        for (int64_t t = 0; t < node.n_tok; t++) {
            const float * q = (const float *) ((const char *) node.q->data + t*node.q->nb[1] + (ih*node.n_gqa() + g)*node.q->nb[2]);
            for (int64_t d = 0; d < node.n_k; d++) {
                s.q[d*node.n_query + g*node.ld_tok + t] = q[d]*scale;
            }
        }
    }
}

// p of the cells [first, end): [end - first][n_query]
static void add_mask(const observe_node & node, int64_t first, int64_t end, float * p) {
    for (int64_t t = 0; t < node.n_tok; t++) {
        const ggml_fp16_t * mask = (const ggml_fp16_t *) ((const char *) node.mask->data + t*node.mask->nb[1]) + first;
        uint16_t any = 0;
        for (int64_t r = 0; r < end - first; r++) {
            any |= mask[r];
        }
        for (int64_t r = 0; any && r < end - first; r++) {
            const float bias = GGML_CPU_FP16_TO_FP32(mask[r]);
            for (int64_t g = 0; g < node.n_gqa(); g++) {
                p[r*node.n_query + g*node.ld_tok + t] += bias;
            }
        }
    }
}

static void score_block(const observe_node & node, int64_t ih, int64_t block, observe_scratch & s) {
    const int64_t first = block*BLOCK_CELLS;
    const int64_t end   = node.block_end(block);
    const int     n     = (int) (end - first);
    float * p = s.p + first*node.n_query;

    const char * rows[BLOCK_CELLS];
    for (int r = 0; r < n; r++) {
        rows[r] = (const char *) node.k->data + (first + r)*node.k->nb[1] + ih*node.k->nb[2];
    }
    rows_to_f32(node.k->type, rows, n, node.n_k, s.k, node.ld_k);
    gemm(n, node.n_query, (int) node.ld_k, p, node.n_query, nullptr, { s.k, node.ld_k, 1 }, row_matrix{ s.q, node.n_query });
    if (node.softcap != 0.0f) {
        for (int64_t i = 0; i < n*node.n_query; i += VEC) {
            vec_store(p + i, vec_softcap(vec_load(p + i), node.softcap));
        }
    }
    add_mask(node, first, end, p);

    for (int64_t i = 0; i < node.n_query; i += VEC) {
        vec m = vec_load(p + i);
        for (int r = 1; r < n; r++) {
            m = vec_max(m, vec_load(p + r*node.n_query + i));
        }
        const vec base = vec_max(m, vec_set(-FLT_MAX)); // -INF - -INF is no number
        vec l = vec_set(0.0f);
        for (int r = 0; r < n; r++) {
            float * x = p + r*node.n_query + i;
            const vec e = vec_exp(vec_sub(vec_load(x), base));
            l = vec_add(l, e);
            vec_store(x, e);
        }
        vec_store(s.m + block*node.n_query + i, m);
        vec_store(s.l + block*node.n_query + i, l);
    }
}

// top and scale, of all blocks and the sinks
static void combine_blocks(const observe_node & node, int64_t ih, observe_scratch & s) {
    std::fill_n(s.top, node.n_query, -FLT_MAX);
    for (int64_t b = 0; b < node.n_block; b++) {
        for (int64_t i = 0; i < node.n_query; i += VEC) {
            vec_store(s.top + i, vec_max(vec_load(s.top + i), vec_load(s.m + b*node.n_query + i)));
        }
    }
    std::fill_n(s.scale, node.n_query, 0.0f);
    for (int64_t g = 0; node.sinks && g < node.n_gqa(); g++) {
        const float sink = ((const float *) node.sinks->data)[ih*node.n_gqa() + g];
        for (int64_t i = g*node.ld_tok; i < (g + 1)*node.ld_tok; i++) {
            s.top[i]   = std::max(s.top[i], sink);
            s.scale[i] = expf(sink - s.top[i]);
        }
    }
    for (int64_t b = 0; b < node.n_block; b++) {
        for (int64_t i = 0; i < node.n_query; i += VEC) {
            const vec rescale = vec_exp(vec_sub(vec_load(s.m + b*node.n_query + i), vec_load(s.top + i)));
            vec_store(s.scale + i, vec_fma(vec_load(s.l + b*node.n_query + i), rescale, vec_load(s.scale + i)));
        }
    }
    for (int64_t i = 0; i < node.n_query; i++) {
        const bool is_token = i % node.ld_tok < node.n_tok;
        s.scale[i] = is_token && s.scale[i] > 0.0f ? 1.0f/s.scale[i] : 0.0f;
    }
}

static void write_block(const observe_node & node, int64_t ih, int64_t block, observe_scratch & s, ggml_tensor * dst) {
    for (int64_t i = 0; i < node.n_query; i += VEC) {
        const vec rescale = vec_exp(vec_sub(vec_load(s.m + block*node.n_query + i), vec_load(s.top + i)));
        vec_store(s.factor + i, vec_mul(rescale, vec_load(s.scale + i)));
    }
    for (int64_t g = 0; g < node.n_gqa(); g++) {
        float * res = (float *) ((char *) dst->data + (ih*node.n_gqa() + g)*dst->nb[1]);
        for (int64_t r = block*BLOCK_CELLS; r < node.block_end(block); r++) {
            vec all = vec_set(0.0f);
            for (int64_t i = g*node.ld_tok; i < (g + 1)*node.ld_tok; i += VEC) {
                const vec x = vec_mul(vec_load(s.p + r*node.n_query + i), vec_load(s.factor + i));
                all = node.is_maximum() ? vec_max(all, x) : vec_add(all, x);
            }
            res[r] = node.is_maximum() ? vec_top(all) : vec_sum(all);
        }
    }
}

size_t observe_work_size(const ggml_tensor * node, int n_tasks) {
    observe_scratch s;
    return s.lay_out(observe_node(node), nullptr, 0, n_tasks) + 64;
}

void observe(const ggml_compute_params * params, ggml_tensor * dst) {
    const observe_node node(dst);
    GGML_ASSERT(node.is_valid());
    const int64_t ith = params->ith, nth = params->nth;
    const int64_t first = node.n_block*ith/nth, end = node.n_block*(ith + 1)/nth;

    observe_scratch s;
    s.lay_out(node, (char *) GGML_PAD((uintptr_t) params->wdata, 64), ith, nth);
    for (int64_t ih = 0; ih < node.k->ne[2]; ih++) {
        load_queries(node, ih, s);
        for (int64_t b = first; b < end; b++) {
            score_block(node, ih, b, s);
        }
        ggml_barrier(params->threadpool);
        combine_blocks(node, ih, s);
        for (int64_t b = first; b < end; b++) {
            write_block(node, ih, b, s, dst);
        }
        ggml_barrier(params->threadpool); // the next head's blocks take the place of this one's maxima
    }
}

} // namespace headkv
