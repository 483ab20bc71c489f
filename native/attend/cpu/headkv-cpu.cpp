// headkv-cpu.cpp: the fused CPU kernel of hot rows and tail; attend/node.h has the contract of the node.
//
// All work tiles (headkv-cpu-node.h: some queries of a KV head and the rows they see), laid end to end, form one work line of rows,
// and every thread takes an equal slice of it, wherever heads begin and end:
//
//     work tile |   head 0   | head 1 |            head 2             | head 3 |
//     thread    |     0     |     1     |     2     |     3     |     4     |
//
// A work tile inside one slice is finished and written by its thread. A work tile that a slice border cuts leaves its parts
// (maximum, sum, weighted values) in the work buffer, at most two for a thread, and is put together after one barrier.
//
// Rows are read in blocks, once for all queries of the tile. Few queries: the rows of K stay as they are and each
// (query, row) pair is a dot product. Many queries: K becomes f32 once and queries lie along the vector, so that
// softmax needs no sums across a vector.

#include "headkv-cpu.h"
#include "headkv-cpu-node.h"
#include "headkv-cpu-observe.h"
#include "headkv-cpu-rows.h"
#include "headkv-cpu-simd.h"

#include "ggml-cpu.h"
#include "ggml.h"
#include "traits.h"

#include <algorithm>
#include <cfloat>

namespace headkv {

constexpr int64_t FEW_QUERIES = 24; // measured: up to here dot products beat the other layout, by 1.5 at 8 queries

static bool is_float(ggml_type type) {
    return type == GGML_TYPE_F32 || type == GGML_TYPE_F16 || type == GGML_TYPE_BF16;
}

//
// few queries
//

// scores of the block: [n_query][BLOCK]
static void few_scores(const node_view & node, const work_tile & it, scratch & s, row_block & block) {
    const int     n4   = (block.n + 3)/4*4;
    const int64_t nq   = it.n_query();
    for (int r = block.n; r < n4; r++) {
        block.k[r] = block.k[block.n - 1]; // a readable row; its scores are thrown away
    }
    const auto dot_rows = [&](const auto & rows) { dot(nq, s.score, BLOCK, s.q, node.ld_k, rows, n4, node.ld_k); };

    if (is_float(node.k->type) && node.n_k == node.ld_k) {
        switch (node.k->type) {
            case GGML_TYPE_F32:  dot_rows(row_list<float>{ block.k });       break;
            case GGML_TYPE_F16:  dot_rows(row_list<ggml_fp16_t>{ block.k }); break;
            default:             dot_rows(row_list<ggml_bf16_t>{ block.k }); break;
        }
    } else {
        rows_to_f32(node.k->type, block.k, n4, node.n_k, s.k, node.ld_k);
        dot_rows(row_matrix{ s.k, node.ld_k });
    }
}

// turns the scores into weights, and notes how the sums so far must be rescaled
static void few_softmax(const node_view & node, const work_tile & it, scratch & s, const row_block & block, partial & part) {
    const int n_pad = (int) vec_pad(block.n);
    for (int64_t i = 0; i < it.n_query(); i++) {
        float * x = s.score + i*BLOCK;
        if (node.softcap != 0.0f) {
            for (int r = 0; r < n_pad; r += VEC) {
                vec_store(x + r, vec_softcap(vec_load(x + r), node.softcap));
            }
        }
        if (block.has_mask) {
            const uint16_t * mask = node.mask_row((it.begin + i)/node.n_gqa);
            for (int r = block.n_hot; r < block.n; r++) {
                x[r] += GGML_CPU_FP16_TO_FP32(mask[block.cell[r]]);
            }
        }
        std::fill(x + block.n, x + n_pad, -INFINITY);

        vec m = vec_load(x);
        for (int r = VEC; r < n_pad; r += VEC) {
            m = vec_max(m, vec_load(x + r));
        }
        const float m_old = part.m[i];
        const float m_new = std::max(m_old, vec_top(m));
        const vec   base    = vec_set(m_new == -INFINITY ? 0.0f : m_new); // -INF - -INF is no number

        vec l = vec_set(0.0f);
        for (int r = 0; r < n_pad; r += VEC) {
            const vec p = vec_exp(vec_sub(vec_load(x + r), base));
            l = vec_add(l, p);
            vec_store(x + r, p);
        }
        s.rescale[i] = m_new > m_old ? expf(m_old - m_new) : 1.0f;
        part.l[i]  = part.l[i]*s.rescale[i] + vec_sum(l);
        part.m[i]  = m_new;
    }
}

static void few_values(const node_view & node, const work_tile & it, scratch & s, const row_block & block, partial & part) {
    const gemm_lhs weights = { s.score, BLOCK, 1 };
    const auto accumulate = [&](const auto & rows) {
        gemm(it.n_query(), node.ld_v, block.n, part.o, node.ld_v, s.rescale, weights, rows);
    };
    if (is_float(node.v->type) && node.n_v == node.ld_v) {
        switch (node.v->type) {
            case GGML_TYPE_F32:  accumulate(row_list<float>{ block.v });       break;
            case GGML_TYPE_F16:  accumulate(row_list<ggml_fp16_t>{ block.v }); break;
            default:             accumulate(row_list<ggml_bf16_t>{ block.v }); break;
        }
    } else {
        rows_to_f32(node.v->type, block.v, block.n, node.n_v, s.v, node.ld_v);
        accumulate(row_matrix{ s.v, node.ld_v });
    }
}

//
// many queries
//

// scores of the block: [n][nq], nq = queries padded to whole vectors
static void many_scores(const node_view & node, const work_tile & it, scratch & s, const row_block & block) {
    const int64_t nq = vec_pad(it.n_query());
    rows_to_f32(node.k->type, block.k, block.n, node.n_k, s.k, node.ld_k);
    gemm(block.n, nq, (int) node.ld_k, s.score, nq, nullptr, { s.k, node.ld_k, 1 }, row_matrix{ s.q, nq });

    if (node.softcap != 0.0f) {
        for (int64_t i = 0; i < block.n*nq; i += VEC) {
            vec_store(s.score + i, vec_softcap(vec_load(s.score + i), node.softcap));
        }
    }
    if (!block.has_mask) {
        return;
    }
    for (int64_t i = 0, j = it.begin; j < it.end; ) {
        const uint16_t * mask  = node.mask_row(j/node.n_gqa);
        const int64_t    n_tok = std::min((j/node.n_gqa + 1)*node.n_gqa, it.end) - j; // queries of this token
        for (int r = block.n_hot; r < block.n; r++) {
            const float bias = GGML_CPU_FP16_TO_FP32(mask[block.cell[r]]);
            for (int64_t g = 0; g < n_tok; g++) {
                s.score[r*nq + i + g] += bias;
            }
        }
        i += n_tok;
        j += n_tok;
    }
}

static void many_softmax(const work_tile & it, scratch & s, const row_block & block, partial & part) {
    const int64_t nq = vec_pad(it.n_query());
    for (int64_t i = 0; i < nq; i += VEC) {
        const vec m_old = vec_load(part.m + i);
        vec m = m_old;
        for (int r = 0; r < block.n; r++) {
            m = vec_max(m, vec_load(s.score + r*nq + i));
        }
        const vec base = vec_max(m, vec_set(-FLT_MAX)); // -INF - -INF is no number
        vec l = vec_set(0.0f);
        for (int r = 0; r < block.n; r++) {
            float * x = s.score + r*nq + i;
            const vec p = vec_exp(vec_sub(vec_load(x), base));
            l = vec_add(l, p);
            vec_store(x, p);
        }
        const vec rescale = vec_exp(vec_sub(m_old, base));
        vec_store(s.rescale + i, rescale);
        vec_store(part.l + i, vec_fma(vec_load(part.l + i), rescale, l));
        vec_store(part.m + i, m);
    }
}

static void many_values(const node_view & node, const work_tile & it, scratch & s, const row_block & block, partial & part) {
    const int64_t nq = vec_pad(it.n_query());
    rows_to_f32(node.v->type, block.v, block.n, node.n_v, s.v, node.ld_v);
    gemm(it.n_query(), node.ld_v, block.n, part.o, node.ld_v, s.rescale, { s.score, 1, nq }, row_matrix{ s.v, node.ld_v });
}

//
// work tiles
//

static void load_queries(const node_view & node, const work_tile & it, scratch & s) {
    const bool    few  = it.n_query() <= FEW_QUERIES;
    const int64_t nq   = vec_pad(it.n_query());
    const int64_t ld_i = few ? node.ld_k : 1;
    const int64_t ld_d = few ? 1 : nq;
    const float   scale = node.logit_scale();

    std::fill_n(s.q, nq*node.ld_k, 0.0f);
    for (int64_t i = 0; i < it.n_query(); i++) {
        const int64_t tok  = (it.begin + i)/node.n_gqa;
        const int64_t head = (it.begin + i)%node.n_gqa + it.ih*node.n_gqa;
        const float * q    = (const float *) ((const char *) node.q->data + tok*node.q->nb[1] + head*node.q->nb[2]);
        for (int64_t d = 0; d < node.n_k; d++) {
            s.q[i*ld_i + d*ld_d] = q[d]*scale;
        }
    }
}

// quantised rows are left to the hardware: their conversion takes longer than memory does
static void prefetch_rows(ggml_type type, const char * const * rows, int n, size_t bytes) {
    for (int r = 0; r < n && is_float(type); r++) {
        for (size_t b = 0; b < bytes; b += CACHE_LINE) {
            prefetch(rows[r] + b);
        }
    }
}

// attention of a work tile over its rows [begin, end)
static void attend(const node_view & node, const work_tile & it, int64_t begin, int64_t end, scratch & s, partial & part) {
    const int64_t nq = vec_pad(it.n_query());
    std::fill_n(part.m, nq, -INFINITY);
    std::fill_n(part.l, nq, 0.0f);
    std::fill_n(part.o, nq*node.ld_v, 0.0f);
    load_queries(node, it, s);

    const bool few = it.n_query() <= FEW_QUERIES;
    row_block  blocks[2];
    row_reader reader(node, it, begin, end);
    bool       has_block = reader.next(blocks[0]);
    for (int64_t i = 0; has_block; i++) {
        row_block & block = blocks[i%2];
        row_block & next  = blocks[(i + 1)%2];

        // V comes from memory while K is computed, K of the next block while V is: a tenth to a fifth faster than to rely on
        // the hardware, which sees a new stream every 64 rows
        prefetch_rows(node.v->type, block.v, block.n, node.v_hot->nb[1]);
        if (few) {
            few_scores (node, it, s, block);
            few_softmax(node, it, s, block, part);
        } else {
            many_scores (node, it, s, block);
            many_softmax(it, s, block, part);
        }
        has_block = reader.next(next);
        if (has_block) {
            prefetch_rows(node.k->type, next.k, next.n, node.k_hot->nb[1]);
        }
        if (few) {
            few_values (node, it, s, block, part);
        } else {
            many_values(node, it, s, block, part);
        }
    }
}

// query i of a work tile is done: o / l, with the sink of its head in l
static void write_query(
        const node_view & node, const work_tile & it, int64_t i, float m, float l, const float * o, ggml_tensor * dst) {
    const int64_t tok  = (it.begin + i)/node.n_gqa;
    const int64_t head = (it.begin + i)%node.n_gqa + it.ih*node.n_gqa;
    float factor = 1.0f;
    if (node.sinks) {
        const float sink    = ((const float *) node.sinks->data)[head];
        const float m_new = std::max(m, sink);
        factor = expf(m - m_new);
        l    = l*factor + expf(sink - m_new);
    }
    factor = l == 0.0f ? 0.0f : factor/l;

    float * x = (float *) ((char *) dst->data + head*dst->nb[1] + tok*dst->nb[2]);
    for (int64_t d = 0; d < node.n_v; d++) {
        x[d] = o[d]*factor;
    }
}

static void write_work_tile(const node_view & node, const work_tile & it, const partial & part, ggml_tensor * dst) {
    for (int64_t i = 0; i < it.n_query(); i++) {
        write_query(node, it, i, part.m[i], part.l[i], part.o + i*node.ld_v, dst);
    }
}

//
// the line of rows and its slices
//

struct work_line {
    const node_view & node;
    const int64_t *   n_visible; // [n_tile]
    int64_t           n_rows;
    int64_t           nth;

    work_line(const node_view & node, const int64_t * n_visible, int nth) :
        node(node), n_visible(n_visible), n_rows(0), nth(nth) {
        for (int64_t i = 0; i < n_work_tile(); i++) {
            n_rows += length(i);
        }
    }

    int64_t n_work_tile() const { return node.n_head_kv*node.n_tile; }
    int64_t length(int64_t i) const { return node.n_hot(i/node.n_tile) + n_visible[i%node.n_tile]; }
    int64_t slice_begin(int64_t ith) const { return n_rows*ith/nth; }

    // the thread that owns row x of the line
    int64_t owner(int64_t x) const {
        int64_t ith = x*nth/n_rows;
        while (slice_begin(ith + 1) <= x) {
            ith++;
        }
        return ith;
    }
};

// the part of thread ith of a work tile that starts at row x of the line
static int part_of_cut(const work_line & line, int64_t x, int64_t ith) {
    return x < line.slice_begin(ith) ? 0 : 1;
}

static void compute_slice(const node_view & node, const work_line & line, int64_t ith, scratch & s, ggml_tensor * dst) {
    const int64_t lo = line.slice_begin(ith);
    const int64_t hi = line.slice_begin(ith + 1);
    for (int64_t i = 0, x = 0; i < line.n_work_tile(); x += line.length(i), i++) {
        const int64_t begin = std::max(lo, x);
        const int64_t end   = std::min(hi, x + line.length(i));
        const bool    empty = line.length(i) == 0 && i%line.nth == ith;
        if (begin >= end && !empty) {
            continue;
        }
        const work_tile it(node, i);
        if (empty) {
            attend(node, it, 0, 0, s, s.part[2]);
            write_work_tile(node, it, s.part[2], dst);
        } else if (end - begin == line.length(i)) {
            attend(node, it, 0, end - begin, s, s.part[2]);
            write_work_tile(node, it, s.part[2], dst);
        } else {
            attend(node, it, begin - x, end - x, s, s.part[part_of_cut(line, x, ith)]);
        }
    }
}

// puts query j of a cut work tile together from the parts of the threads [first, last]; the work tile starts at row x
static void combine_query(
        const node_view & node, const work_line & line, const work_tile & it, int64_t j, int64_t x, int64_t first, int64_t last,
        void * wdata, scratch & s, ggml_tensor * dst) {
    float   m = -INFINITY;
    float   l = 0.0f;
    float * o = s.part[2].o;
    std::fill_n(o, node.ld_v, 0.0f);
    for (int64_t ith = first; ith <= last; ith++) {
        if (line.slice_begin(ith) == line.slice_begin(ith + 1)) {
            continue; // more threads than rows
        }
        const partial part = scratch_of(node, wdata, (int) ith).part[part_of_cut(line, x, ith)];
        if (part.l[j] == 0.0f) {
            continue;
        }
        const float m_new = std::max(m, part.m[j]);
        const float f_old   = expf(m - m_new);
        const float f_part  = expf(part.m[j] - m_new);
        for (int64_t d = 0; d < node.n_v; d++) {
            o[d] = o[d]*f_old + part.o[j*node.ld_v + d]*f_part;
        }
        l = l*f_old + part.l[j]*f_part;
        m = m_new;
    }
    write_query(node, it, j, m, l, o, dst);
}

static void combine_cut_work_tiles(
        const node_view & node, const work_line & line, int64_t ith, void * wdata, scratch & s, ggml_tensor * dst) {
    for (int64_t i = 0, x = 0; i < line.n_work_tile(); x += line.length(i), i++) {
        if (line.length(i) == 0) {
            continue;
        }
        const int64_t first = line.owner(x);
        const int64_t last  = line.owner(x + line.length(i) - 1);
        if (first == last) {
            continue;
        }
        const work_tile it(node, i);
        for (int64_t j = ith; j < it.n_query(); j += line.nth) {
            combine_query(node, line, it, j, x, first, last, wdata, s, dst);
        }
    }
}

} // namespace headkv

size_t headkv_cpu_work_size(const struct ggml_tensor * node, int n_tasks) {
    if (!node->src[5]) {
        return 0;
    }
    if (headkv_node::is_observing(node)) {
        return headkv::observe_work_size(node, n_tasks);
    }
    headkv::scratch s;
    return headkv::scratch_layout(s, headkv::node_view(node), nullptr)*n_tasks + headkv::CACHE_LINE;
}

void headkv_cpu_flash_attn(const struct ggml_compute_params * params, struct ggml_tensor * dst) {
    using namespace headkv;

    if (headkv_node::is_observing(dst)) {
        observe(params, dst);
        return;
    }
    const node_view node(dst);
    GGML_ASSERT(node.is_valid());
    scratch s = scratch_of(node, params->wdata, params->ith);
    for (int64_t tile = 0; tile < node.n_tile; tile++) {
        s.n_visible[tile] = count_visible(node, work_tile(node, tile));
    }
    const work_line line(node, s.n_visible, params->nth);

    compute_slice(node, line, params->ith, s, dst);
    if (params->nth > 1) {
        ggml_barrier(params->threadpool);
        combine_cut_work_tiles(node, line, params->ith, params->wdata, s, dst);
    }
}
