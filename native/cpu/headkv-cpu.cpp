// headkv-cpu.cpp: the fused CPU kernel of a ragged prefix and its tail; headkv-cpu.h has the contract of the node.
//
// A *tile* is a part of the queries of one KV head (query j of a head: token j / group, query head j % group). An *item* is
// a (KV head, tile) pair and costs as many rows as the tile sees: the head's prefix rows, then the tail cells that some query of the
// tile sees. All items, laid end to end, form one line of rows, and every thread takes an equal slice of it:
//
//     item     |   head 0   | head 1 |            head 2             | head 3 |
//     thread   |     0     |     1     |     2     |     3     |     4     |
//
// An item inside one slice is finished and written by its thread. An item that a slice border cuts leaves its parts
// (maximum, sum, weighted values) in the work buffer, at most two for a thread, and is put together after one barrier.
//
// Rows are read in blocks, once for all queries of the tile. Few queries: the rows of K stay as they are and each
// (query, row) pair is a dot product. Many queries: K becomes f32 once and queries lie along the vector, so that
// softmax needs no sums across a vector.

#include "headkv-cpu.h"
#include "headkv-cpu-rows.h"
#include "headkv-cpu-simd.h"

#include "ggml-backend-impl.h"
#include "ggml-cpu.h"
#include "ggml.h"
#include "traits.h"

#include <algorithm>
#include <cfloat>

namespace headkv {

constexpr int     BLOCK       = 64;  // rows of one block: K and V of a block stay in the first-level cache
constexpr int64_t TILE        = 64;  // queries of a tile, at most
constexpr int64_t FEW_QUERIES = 24;  // measured: up to here dot products beat the other layout, by 1.5 at 8 queries
constexpr size_t  CACHE_LINE  = 64;

constexpr uint16_t MASK_HIDDEN = 0xfc00; // -INF as f16

// what every thread knows of the node
struct node_view {
    const ggml_tensor * q;
    const ggml_tensor * k;
    const ggml_tensor * v;
    const ggml_tensor * mask;
    const ggml_tensor * sinks;
    const ggml_tensor * k_prefix;
    const ggml_tensor * v_prefix;

    const int32_t * off; // [n_head_kv]
    const int32_t * len; // [n_head_kv]

    int64_t n_k;      // elements of a K row
    int64_t n_v;      // elements of a V row
    int64_t ld_k;     // n_k and n_v, padded to whole vectors
    int64_t ld_v;
    int64_t n_kv;     // tail cells
    int64_t n_head_kv;
    int64_t group;    // query heads of a KV head
    int64_t n_query;  // queries of a KV head: n_tok*group
    int64_t n_tile;   // tiles of a KV head

    float scale;
    float softcap;    // 0: none

    explicit node_view(const ggml_tensor * dst) :
        q(dst->src[0]), k(dst->src[1]), v(dst->src[2]), mask(dst->src[3]), sinks(dst->src[4]),
        k_prefix(dst->src[5]), v_prefix(dst->src[6]) {
        off       = (const int32_t *) dst->src[7]->data;
        n_head_kv = k->ne[2];
        len       = off + n_head_kv;
        n_k       = k->ne[0];
        n_v       = v->ne[0];
        ld_k      = vec_pad(n_k);
        ld_v      = vec_pad(n_v);
        n_kv      = k->ne[1];
        group     = q->ne[2]/n_head_kv;
        n_query   = q->ne[1]*group;
        n_tile    = (n_query + TILE - 1)/TILE;

        memcpy(&scale,   (const float *) dst->op_params + 0, sizeof(float));
        memcpy(&softcap, (const float *) dst->op_params + 2, sizeof(float));
        if (softcap != 0.0f) {
            scale /= softcap;
        }
    }

    int64_t tile_begin(int64_t tile) const { return tile*n_query/n_tile; }

    // the mask of a token: [n_kv]
    const uint16_t * mask_row(int64_t tok) const {
        return (const uint16_t *) ((const char *) mask->data + tok*mask->nb[1]);
    }
};

static void check(const ggml_tensor * dst) {
    const ggml_tensor * q = dst->src[0];
    const ggml_tensor * k = dst->src[1];
    const ggml_tensor * v = dst->src[2];
    const ggml_tensor * mask  = dst->src[3];
    const ggml_tensor * sinks = dst->src[4];
    const ggml_tensor * kp    = dst->src[5];
    const ggml_tensor * vp    = dst->src[6];
    const ggml_tensor * meta  = dst->src[7];

    GGML_ASSERT(q->type == GGML_TYPE_F32 && q->nb[0] == sizeof(float));
    GGML_ASSERT(q->ne[3] == 1 && k->ne[3] == 1 && v->ne[3] == 1);
    GGML_ASSERT(q->ne[0] == k->ne[0] && q->ne[2] % k->ne[2] == 0);
    GGML_ASSERT(v->ne[1] == k->ne[1] && v->ne[2] == k->ne[2]);
    GGML_ASSERT(k->nb[0] == ggml_type_size(k->type) && v->nb[0] == ggml_type_size(v->type));
    GGML_ASSERT(!mask  || (mask->type == GGML_TYPE_F16 && mask->nb[0] == 2 && mask->ne[2] == 1 && mask->ne[3] == 1));
    GGML_ASSERT(!mask  || (mask->ne[0] >= k->ne[1] && mask->ne[1] >= q->ne[1]));
    GGML_ASSERT(!sinks || (sinks->type == GGML_TYPE_F32 && sinks->ne[0] == q->ne[2]));
    GGML_ASSERT(vp && kp->type == k->type && vp->type == v->type && kp->ne[0] == k->ne[0] && vp->ne[0] == v->ne[0]);
    GGML_ASSERT(ggml_is_contiguous(kp) && ggml_is_contiguous(vp));
    GGML_ASSERT(meta && meta->type == GGML_TYPE_I32 && ggml_is_contiguous(meta) && meta->ne[0] == 2*k->ne[2]);
    GGML_ASSERT(dst->type == GGML_TYPE_F32 && dst->nb[0] == sizeof(float));
    GGML_ASSERT(dst->ne[0] == v->ne[0] && dst->ne[1] == q->ne[2] && dst->ne[2] == q->ne[1]);

    float max_bias;
    memcpy(&max_bias, (const float *) dst->op_params + 1, sizeof(float));
    GGML_ASSERT(max_bias == 0.0f);
}

//
// work buffer
//

// what a softmax over some of the rows has come to, for each query of a tile
struct partial {
    float * top; // [TILE] largest score, -INF before the first
    float * sum; // [TILE] of exp(score - top)
    float * acc; // [TILE][ld_v] sum of exp(score - top)*V
};

// the part of the work buffer that belongs to one thread
struct scratch {
    partial part[3];     // of the item cut by the start of the slice, of the one cut by its end, of whole items
    float * q;           // [TILE][ld_k] scaled queries; with many queries [ld_k][TILE]
    float * score;       // [TILE][BLOCK], with many queries [BLOCK][TILE]
    float * rescale;     // [TILE] factor of acc when top grew
    float * k;           // [BLOCK][ld_k] rows of K as f32
    float * v;           // [BLOCK][ld_v]
    int64_t * n_visible; // [n_tile] tail cells that some query of the tile sees
};

// lays the scratch of one thread out from base on (which may be NULL) and returns its size in bytes
static size_t scratch_layout(scratch & s, const node_view & node, char * base) {
    size_t size = 0;
    const auto take = [&](size_t bytes) {
        char * p = base + size;
        size += (bytes + CACHE_LINE - 1)/CACHE_LINE*CACHE_LINE;
        return p;
    };
    const int64_t nq   = vec_pad(std::min(TILE, node.n_query));
    const auto    take_f32 = [&](int64_t n) { return (float *) take(n*sizeof(float)); };

    for (partial & part : s.part) {
        part.top = take_f32(nq);
        part.sum = take_f32(nq);
        part.acc = take_f32(nq*node.ld_v);
    }
    s.q         = take_f32(nq*node.ld_k);
    s.score     = take_f32(nq*BLOCK);
    s.rescale   = take_f32(nq);
    s.k         = take_f32(BLOCK*node.ld_k);
    s.v         = take_f32(BLOCK*node.ld_v);
    s.n_visible = (int64_t *) take(node.n_tile*sizeof(int64_t));
    return size;
}

static scratch scratch_of(const node_view & node, void * wdata, int ith) {
    scratch s;
    const size_t size = scratch_layout(s, node, nullptr);
    char * base = (char *) (((uintptr_t) wdata + CACHE_LINE - 1)/CACHE_LINE*CACHE_LINE);
    scratch_layout(s, node, base + ith*size);
    return s;
}

//
// rows
//

// the queries [begin, end) of KV head ih; tokens [tok_begin, tok_end) ask them
struct item {
    int64_t ih;
    int64_t tile;
    int64_t begin;
    int64_t end;
    int64_t tok_begin;
    int64_t tok_end;

    item(const node_view & node, int64_t i) : ih(i/node.n_tile), tile(i%node.n_tile) {
        begin     = node.tile_begin(tile);
        end       = node.tile_begin(tile + 1);
        tok_begin = begin/node.group;
        tok_end   = (end - 1)/node.group + 1;
    }

    int64_t n_query() const { return end - begin; }
};

struct row_block {
    int          n;
    int          n_prefix;  // the first n_prefix rows come from the prefix, the others are tail cells
    bool         has_mask;  // some query of the tile does not see some tail cell, or sees it with a bias
    const char * k[BLOCK];
    const char * v[BLOCK];
    int64_t      cell[BLOCK];
};

// Which of the cells [begin, end) does some token see: visible[i] != 0. masked[i]: its mask is not 0 for all of them.
static void scan_mask(
        const node_view & node, const item & it, int64_t begin, int64_t end, uint16_t * visible, uint16_t * masked) {
    const int64_t n = end - begin;
    std::fill_n(visible, n, (uint16_t) !node.mask);
    std::fill_n(masked,  n, (uint16_t) 0);
    if (!node.mask) {
        return;
    }
    for (int64_t tok = it.tok_begin; tok < it.tok_end; tok++) {
        const uint16_t * m = node.mask_row(tok) + begin;
        for (int64_t i = 0; i < n; i++) {
            visible[i] |= m[i] != MASK_HIDDEN;
            masked [i] |= m[i];
        }
    }
}

static int64_t count_visible(const node_view & node, const item & it) {
    uint16_t visible[BLOCK];
    uint16_t masked[BLOCK];
    int64_t  n = 0;
    for (int64_t cell = 0; cell < node.n_kv; cell += BLOCK) {
        const int64_t end = std::min(cell + BLOCK, node.n_kv);
        scan_mask(node, it, cell, end, visible, masked);
        for (int64_t i = 0; i < end - cell; i++) {
            n += visible[i];
        }
    }
    return n;
}

// reads the rows [begin, end) of an item, block after block
class row_reader {
public:
    row_reader(const node_view & node, const item & it, int64_t begin, int64_t end) :
        node(node), it(it), n_left(end - begin), prefix(begin) {
        const int64_t n_prefix = node.len[it.ih];
        if (begin > n_prefix) {
            prefix = n_prefix;
            skip   = begin - n_prefix;
        }
    }

    // false: no rows are left
    bool next(row_block & block) {
        if (n_left == 0) {
            return false;
        }
        block.n        = 0;
        block.has_mask = false;
        add_prefix(block);
        block.n_prefix = block.n;
        add_tail(block);
        n_left -= block.n;
        return true;
    }

private:
    void add_prefix(row_block & block) {
        const int64_t n = std::min<int64_t>({ BLOCK, n_left, node.len[it.ih] - prefix });
        const char *  k = (const char *) node.k_prefix->data + (node.off[it.ih] + prefix)*node.k_prefix->nb[1];
        const char *  v = (const char *) node.v_prefix->data + (node.off[it.ih] + prefix)*node.v_prefix->nb[1];
        for (int64_t i = 0; i < n; i++) {
            block.k[i] = k + i*node.k_prefix->nb[1];
            block.v[i] = v + i*node.v_prefix->nb[1];
        }
        block.n = (int) n;
        prefix += n;
    }

    void add_tail(row_block & block) {
        uint16_t visible[BLOCK];
        uint16_t masked[BLOCK];
        const int n = (int) std::min<int64_t>(BLOCK, n_left);
        while (block.n < n) {
            const int64_t begin = cell;
            const int64_t end   = std::min(begin + BLOCK, node.n_kv);
            GGML_ASSERT(begin < end);
            scan_mask(node, it, begin, end, visible, masked);
            for (; cell < end && block.n < n; cell++) {
                if (!visible[cell - begin]) {
                    continue;
                }
                if (skip > 0) {
                    skip--;
                    continue;
                }
                block.k[block.n]    = (const char *) node.k->data + cell*node.k->nb[1] + it.ih*node.k->nb[2];
                block.v[block.n]    = (const char *) node.v->data + cell*node.v->nb[1] + it.ih*node.v->nb[2];
                block.cell[block.n] = cell;
                block.has_mask     |= masked[cell - begin] != 0;
                block.n++;
            }
        }
    }

    const node_view & node;
    const item &      it;

    int64_t n_left;
    int64_t prefix;   // next prefix row of the head
    int64_t cell = 0; // next tail cell to look at
    int64_t skip = 0; // visible tail cells before the first one to read
};

static bool is_float(ggml_type type) {
    return type == GGML_TYPE_F32 || type == GGML_TYPE_F16 || type == GGML_TYPE_BF16;
}

//
// few queries
//

// scores of the block: [n_query][BLOCK]
static void few_scores(const node_view & node, const item & it, scratch & s, row_block & block) {
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
static void few_softmax(const node_view & node, const item & it, scratch & s, const row_block & block, partial & part) {
    const int n_pad = (int) vec_pad(block.n);
    for (int64_t i = 0; i < it.n_query(); i++) {
        float * x = s.score + i*BLOCK;
        if (node.softcap != 0.0f) {
            for (int r = 0; r < n_pad; r += VEC) {
                vec_store(x + r, vec_softcap(vec_load(x + r), node.softcap));
            }
        }
        if (block.has_mask) {
            const uint16_t * mask = node.mask_row((it.begin + i)/node.group);
            for (int r = block.n_prefix; r < block.n; r++) {
                x[r] += GGML_CPU_FP16_TO_FP32(mask[block.cell[r]]);
            }
        }
        std::fill(x + block.n, x + n_pad, -INFINITY);

        vec top = vec_load(x);
        for (int r = VEC; r < n_pad; r += VEC) {
            top = vec_max(top, vec_load(x + r));
        }
        const float top_old = part.top[i];
        const float top_new = std::max(top_old, vec_top(top));
        const vec   base    = vec_set(top_new == -INFINITY ? 0.0f : top_new); // -INF - -INF is no number

        vec sum = vec_set(0.0f);
        for (int r = 0; r < n_pad; r += VEC) {
            const vec p = vec_exp(vec_sub(vec_load(x + r), base));
            sum = vec_add(sum, p);
            vec_store(x + r, p);
        }
        s.rescale[i] = top_new > top_old ? expf(top_old - top_new) : 1.0f;
        part.sum[i]  = part.sum[i]*s.rescale[i] + vec_sum(sum);
        part.top[i]  = top_new;
    }
}

static void few_values(const node_view & node, const item & it, scratch & s, const row_block & block, partial & part) {
    const gemm_lhs weights = { s.score, BLOCK, 1 };
    const auto accumulate = [&](const auto & rows) {
        gemm(it.n_query(), node.ld_v, block.n, part.acc, node.ld_v, s.rescale, weights, rows);
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
static void many_scores(const node_view & node, const item & it, scratch & s, const row_block & block) {
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
        const uint16_t * mask  = node.mask_row(j/node.group);
        const int64_t    n_tok = std::min((j/node.group + 1)*node.group, it.end) - j; // queries of this token
        for (int r = block.n_prefix; r < block.n; r++) {
            const float bias = GGML_CPU_FP16_TO_FP32(mask[block.cell[r]]);
            for (int64_t g = 0; g < n_tok; g++) {
                s.score[r*nq + i + g] += bias;
            }
        }
        i += n_tok;
        j += n_tok;
    }
}

static void many_softmax(const item & it, scratch & s, const row_block & block, partial & part) {
    const int64_t nq = vec_pad(it.n_query());
    for (int64_t i = 0; i < nq; i += VEC) {
        const vec top_old = vec_load(part.top + i);
        vec top = top_old;
        for (int r = 0; r < block.n; r++) {
            top = vec_max(top, vec_load(s.score + r*nq + i));
        }
        const vec base = vec_max(top, vec_set(-FLT_MAX)); // -INF - -INF is no number
        vec sum = vec_set(0.0f);
        for (int r = 0; r < block.n; r++) {
            float * x = s.score + r*nq + i;
            const vec p = vec_exp(vec_sub(vec_load(x), base));
            sum = vec_add(sum, p);
            vec_store(x, p);
        }
        const vec rescale = vec_exp(vec_sub(top_old, base));
        vec_store(s.rescale + i, rescale);
        vec_store(part.sum + i, vec_fma(vec_load(part.sum + i), rescale, sum));
        vec_store(part.top + i, top);
    }
}

static void many_values(const node_view & node, const item & it, scratch & s, const row_block & block, partial & part) {
    const int64_t nq = vec_pad(it.n_query());
    rows_to_f32(node.v->type, block.v, block.n, node.n_v, s.v, node.ld_v);
    gemm(it.n_query(), node.ld_v, block.n, part.acc, node.ld_v, s.rescale, { s.score, 1, nq }, row_matrix{ s.v, node.ld_v });
}

//
// items
//

static void load_queries(const node_view & node, const item & it, scratch & s) {
    const bool    few  = it.n_query() <= FEW_QUERIES;
    const int64_t nq   = vec_pad(it.n_query());
    const int64_t ld_i = few ? node.ld_k : 1;
    const int64_t ld_d = few ? 1 : nq;

    std::fill_n(s.q, nq*node.ld_k, 0.0f);
    for (int64_t i = 0; i < it.n_query(); i++) {
        const int64_t tok  = (it.begin + i)/node.group;
        const int64_t head = (it.begin + i)%node.group + it.ih*node.group;
        const float * q    = (const float *) ((const char *) node.q->data + tok*node.q->nb[1] + head*node.q->nb[2]);
        for (int64_t d = 0; d < node.n_k; d++) {
            s.q[i*ld_i + d*ld_d] = q[d]*node.scale;
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

// attention of an item over its rows [begin, end)
static void attend(const node_view & node, const item & it, int64_t begin, int64_t end, scratch & s, partial & part) {
    const int64_t nq = vec_pad(it.n_query());
    std::fill_n(part.top, nq, -INFINITY);
    std::fill_n(part.sum, nq, 0.0f);
    std::fill_n(part.acc, nq*node.ld_v, 0.0f);
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
        prefetch_rows(node.v->type, block.v, block.n, node.v_prefix->nb[1]);
        if (few) {
            few_scores (node, it, s, block);
            few_softmax(node, it, s, block, part);
        } else {
            many_scores (node, it, s, block);
            many_softmax(it, s, block, part);
        }
        has_block = reader.next(next);
        if (has_block) {
            prefetch_rows(node.k->type, next.k, next.n, node.k_prefix->nb[1]);
        }
        if (few) {
            few_values (node, it, s, block, part);
        } else {
            many_values(node, it, s, block, part);
        }
    }
}

// query i of an item is done: acc / sum, with the sink of its head in the sum
static void write_query(
        const node_view & node, const item & it, int64_t i, float top, float sum, const float * acc, ggml_tensor * dst) {
    const int64_t tok  = (it.begin + i)/node.group;
    const int64_t head = (it.begin + i)%node.group + it.ih*node.group;
    float factor = 1.0f;
    if (node.sinks) {
        const float sink    = ((const float *) node.sinks->data)[head];
        const float top_new = std::max(top, sink);
        factor = expf(top - top_new);
        sum    = sum*factor + expf(sink - top_new);
    }
    factor = sum == 0.0f ? 0.0f : factor/sum;

    float * x = (float *) ((char *) dst->data + head*dst->nb[1] + tok*dst->nb[2]);
    for (int64_t d = 0; d < node.n_v; d++) {
        x[d] = acc[d]*factor;
    }
}

static void write_item(const node_view & node, const item & it, const partial & part, ggml_tensor * dst) {
    for (int64_t i = 0; i < it.n_query(); i++) {
        write_query(node, it, i, part.top[i], part.sum[i], part.acc + i*node.ld_v, dst);
    }
}

//
// the line of rows and its slices
//

struct line {
    const node_view & node;
    const int64_t *   n_visible; // [n_tile]
    int64_t           n_rows;
    int64_t           nth;

    line(const node_view & node, const int64_t * n_visible, int nth) :
        node(node), n_visible(n_visible), n_rows(0), nth(nth) {
        for (int64_t i = 0; i < n_item(); i++) {
            n_rows += length(i);
        }
    }

    int64_t n_item() const { return node.n_head_kv*node.n_tile; }
    int64_t length(int64_t i) const { return node.len[i/node.n_tile] + n_visible[i%node.n_tile]; }
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

// the part of thread ith of an item that starts at row x of the line
static int part_of_cut(const line & line, int64_t x, int64_t ith) {
    return x < line.slice_begin(ith) ? 0 : 1;
}

static void compute_slice(const node_view & node, const line & line, int64_t ith, scratch & s, ggml_tensor * dst) {
    const int64_t lo = line.slice_begin(ith);
    const int64_t hi = line.slice_begin(ith + 1);
    for (int64_t i = 0, x = 0; i < line.n_item(); x += line.length(i), i++) {
        const int64_t begin = std::max(lo, x);
        const int64_t end   = std::min(hi, x + line.length(i));
        const bool    empty = line.length(i) == 0 && i%line.nth == ith;
        if (begin >= end && !empty) {
            continue;
        }
        const item it(node, i);
        if (empty) {
            attend(node, it, 0, 0, s, s.part[2]);
            write_item(node, it, s.part[2], dst);
        } else if (end - begin == line.length(i)) {
            attend(node, it, 0, end - begin, s, s.part[2]);
            write_item(node, it, s.part[2], dst);
        } else {
            attend(node, it, begin - x, end - x, s, s.part[part_of_cut(line, x, ith)]);
        }
    }
}

// puts query j of a cut item together from the parts of the threads [first, last]; the item starts at row x
static void combine_query(
        const node_view & node, const line & line, const item & it, int64_t j, int64_t x, int64_t first, int64_t last,
        void * wdata, scratch & s, ggml_tensor * dst) {
    float   top = -INFINITY;
    float   sum = 0.0f;
    float * acc = s.part[2].acc;
    std::fill_n(acc, node.ld_v, 0.0f);
    for (int64_t ith = first; ith <= last; ith++) {
        if (line.slice_begin(ith) == line.slice_begin(ith + 1)) {
            continue; // more threads than rows
        }
        const partial part = scratch_of(node, wdata, (int) ith).part[part_of_cut(line, x, ith)];
        if (part.sum[j] == 0.0f) {
            continue;
        }
        const float top_new = std::max(top, part.top[j]);
        const float f_old   = expf(top - top_new);
        const float f_part  = expf(part.top[j] - top_new);
        for (int64_t d = 0; d < node.n_v; d++) {
            acc[d] = acc[d]*f_old + part.acc[j*node.ld_v + d]*f_part;
        }
        sum = sum*f_old + part.sum[j]*f_part;
        top = top_new;
    }
    write_query(node, it, j, top, sum, acc, dst);
}

static void combine_cut_items(
        const node_view & node, const line & line, int64_t ith, void * wdata, scratch & s, ggml_tensor * dst) {
    for (int64_t i = 0, x = 0; i < line.n_item(); x += line.length(i), i++) {
        if (line.length(i) == 0) {
            continue;
        }
        const int64_t first = line.owner(x);
        const int64_t last  = line.owner(x + line.length(i) - 1);
        if (first == last) {
            continue;
        }
        const item it(node, i);
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
    headkv::scratch s;
    return headkv::scratch_layout(s, headkv::node_view(node), nullptr)*n_tasks + headkv::CACHE_LINE;
}

void headkv_cpu_flash_attn(const struct ggml_compute_params * params, struct ggml_tensor * dst) {
    using namespace headkv;

    check(dst);
    const node_view node(dst);
    scratch s = scratch_of(node, params->wdata, params->ith);
    for (int64_t tile = 0; tile < node.n_tile; tile++) {
        s.n_visible[tile] = count_visible(node, item(node, tile));
    }
    const line line(node, s.n_visible, params->nth);

    compute_slice(node, line, params->ith, s, dst);
    if (params->nth > 1) {
        ggml_barrier(params->threadpool);
        combine_cut_items(node, line, params->ith, params->wdata, s, dst);
    }
}
