// headkv-cpu-node.h: a node as the kernel sees it: its shapes, the work buffer, its work tiles and the rows of a work tile.
//
// A *tile* is a part of the queries of one KV head (query j of a head: token j / n_gqa, query head j % n_gqa). A *work tile* is a
// (KV head, tile) pair. Its rows are numbered from 0: the hot rows of the head, then the tail cells that some query of the tile
// sees; a row_reader hands them out in blocks, as pointers, whatever their strides.

#ifndef HEADKV_CPU_NODE_H
#define HEADKV_CPU_NODE_H

#include "attend/node.h"
#include "headkv-cpu-simd.h"

#include "ggml.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace headkv {

constexpr int     BLOCK      = 64; // rows of one block: K and V of a block stay in the first-level cache
constexpr int64_t TILE       = 64; // queries of a tile, at most
constexpr size_t  CACHE_LINE = 64;

constexpr uint16_t MASK_HIDDEN = 0xfc00; // -INF as f16

// the node as every thread knows it
struct node_view : headkv_node {
    const int32_t * rows; // row_ptr: [n_head_kv + 1]

    int64_t n_k;      // elements of a K row
    int64_t n_v;      // elements of a V row
    int64_t ld_k;     // n_k and n_v, padded to whole vectors
    int64_t ld_v;
    int64_t n_kv;     // tail cells
    int64_t n_head_kv;
    int64_t n_gqa;    // query heads of a KV head
    int64_t n_query;  // queries of a KV head: n_tok*n_gqa
    int64_t n_tile;   // tiles of a KV head

    explicit node_view(const ggml_tensor * dst) : headkv_node(dst) {
        rows      = (const int32_t *) row_ptr->data;
        n_head_kv = k->ne[2];
        n_k       = k->ne[0];
        n_v       = v->ne[0];
        ld_k      = vec_pad(n_k);
        ld_v      = vec_pad(n_v);
        n_kv      = k->ne[1];
        n_gqa     = headkv_node::n_gqa();
        n_query   = q->ne[1]*n_gqa;
        n_tile    = (n_query + TILE - 1)/TILE;
    }

    int64_t n_hot(int64_t ih) const { return rows[ih + 1] - rows[ih]; } // rows of a KV head

    int64_t tile_begin(int64_t tile) const { return tile*n_query/n_tile; }

    // the mask of a token: [n_kv]
    const uint16_t * mask_row(int64_t tok) const {
        return (const uint16_t *) ((const char *) mask->data + tok*mask->nb[1]);
    }
};

//
// work buffer
//

// softmax over some of the rows, for each query of a tile, in FlashAttention's letters
struct partial {
    float * m; // [TILE] largest score, -INF before the first
    float * l; // [TILE] of exp(score - m)
    float * o; // [TILE][ld_v] sum of exp(score - m)*V
};

// the part of the work buffer that belongs to one thread
struct scratch {
    partial part[3];     // of the work tile cut by the start of the slice, of the one cut by its end, of whole work tiles
    float * q;           // [TILE][ld_k] scaled queries; with many queries [ld_k][TILE]
    float * score;       // [TILE][BLOCK], with many queries [BLOCK][TILE]
    float * rescale;     // [TILE] factor of o when m grew
    float * k;           // [BLOCK][ld_k] rows of K as f32
    float * v;           // [BLOCK][ld_v]
    int64_t * n_visible; // [n_tile] tail cells that some query of the tile sees
};

// lays the scratch of one thread out from base on (which may be NULL) and returns its size in bytes
inline size_t scratch_layout(scratch & s, const node_view & node, char * base) {
    size_t size = 0;
    const auto take = [&](size_t bytes) {
        char * p = base + size;
        size += (bytes + CACHE_LINE - 1)/CACHE_LINE*CACHE_LINE;
        return p;
    };
    const int64_t nq   = vec_pad(std::min(TILE, node.n_query));
    const auto    take_f32 = [&](int64_t n) { return (float *) take(n*sizeof(float)); };

    for (partial & part : s.part) {
        part.m = take_f32(nq);
        part.l = take_f32(nq);
        part.o = take_f32(nq*node.ld_v);
    }
    s.q         = take_f32(nq*node.ld_k);
    s.score     = take_f32(nq*BLOCK);
    s.rescale   = take_f32(nq);
    s.k         = take_f32(BLOCK*node.ld_k);
    s.v         = take_f32(BLOCK*node.ld_v);
    s.n_visible = (int64_t *) take(node.n_tile*sizeof(int64_t));
    return size;
}

inline scratch scratch_of(const node_view & node, void * wdata, int ith) {
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
struct work_tile {
    int64_t ih;
    int64_t tile;
    int64_t begin;
    int64_t end;
    int64_t tok_begin;
    int64_t tok_end;

    work_tile(const node_view & node, int64_t i) : ih(i/node.n_tile), tile(i%node.n_tile) {
        begin     = node.tile_begin(tile);
        end       = node.tile_begin(tile + 1);
        tok_begin = begin/node.n_gqa;
        tok_end   = (end - 1)/node.n_gqa + 1;
    }

    int64_t n_query() const { return end - begin; }
};

struct row_block {
    int          n;
    int          n_hot;  // the first n_hot rows are hot, the others are tail cells
    bool         has_mask;  // some query of the tile does not see some tail cell, or sees it with a bias
    const char * k[BLOCK];
    const char * v[BLOCK];
    int64_t      cell[BLOCK];
};

// Which of the cells [begin, end) does some token see: visible[i] != 0. masked[i]: its mask is not 0 for all of them.
inline void scan_mask(
        const node_view & node, const work_tile & it, int64_t begin, int64_t end, uint16_t * visible, uint16_t * masked) {
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

inline int64_t count_visible(const node_view & node, const work_tile & it) {
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

// reads the rows [begin, end) of a work tile, block after block
class row_reader {
public:
    row_reader(const node_view & node, const work_tile & it, int64_t begin, int64_t end) :
        node(node), it(it), n_left(end - begin), hot(begin) {
        const int64_t n_hot = node.n_hot(it.ih);
        if (begin > n_hot) {
            hot  = n_hot;
            skip   = begin - n_hot;
        }
    }

    // false: no rows are left
    bool next(row_block & block) {
        if (n_left == 0) {
            return false;
        }
        block.n        = 0;
        block.has_mask = false;
        add_hot(block);
        block.n_hot = block.n;
        add_tail(block);
        n_left -= block.n;
        return true;
    }

private:
    void add_hot(row_block & block) {
        const int64_t n = std::min<int64_t>({ BLOCK, n_left, node.n_hot(it.ih) - hot });
        const char *  k = (const char *) node.k_hot->data + (node.rows[it.ih] + hot)*node.k_hot->nb[1];
        const char *  v = (const char *) node.v_hot->data + (node.rows[it.ih] + hot)*node.v_hot->nb[1];
        for (int64_t i = 0; i < n; i++) {
            block.k[i] = k + i*node.k_hot->nb[1];
            block.v[i] = v + i*node.v_hot->nb[1];
        }
        block.n = (int) n;
        hot += n;
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
    const work_tile &      it;

    int64_t n_left;
    int64_t hot;      // next hot row of the head
    int64_t cell = 0; // next tail cell to look at
    int64_t skip = 0; // visible tail cells before the first one to read
};

} // namespace headkv

#endif // HEADKV_CPU_NODE_H
