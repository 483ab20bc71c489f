// headkv-cuda-line.cuh: the node as the kernel sees it, and who works which rows. Integers only, the same on CPU and GPU.
//
// A *tile* is a part of the queries of one KV head (query j of a head: token j / n_gqa, query head j % n_gqa). A *work tile* is a
// (KV head, tile) pair. Its rows are numbered from 0: the hot rows of the head, then all tail cells; 16 rows
// are a *row tile*, the last one of a work tile may be shorter. The row tiles of all work tiles, laid end to end, form
// one line of work (stream-K), and every block takes an equal slice of it, wherever heads begin and end:
//
//     work tile |   head 0   | head 1 |            head 2             | head 3 |
//     block     |     0     |     1     |     2     |     3     |     4     |
//
// So one long head among short ones costs no more than even heads. A work tile inside one slice is finished by its block. A
// work tile that a slice border cuts leaves its parts in a buffer, at most two for a block, and the second kernel combines them.
//
// Lengths are read from device memory and the grid does not depend on them: a recorded CUDA graph stays valid when they change.

#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define HEADKV_BOTH __host__ __device__ __forceinline__
#else
#define HEADKV_BOTH inline
#endif

namespace headkv {

constexpr int ROW_TILE    = 16; // rows of a row tile: what a warp works at once
constexpr int MAX_TILE = 64; // queries of a tile, at most

struct attn_args {
    const char *    q;        // F32 [n_embd_head, n_tok, n_head]
    const char *    k;        // tail cells [n_embd_head, n_kv, n_head_kv]
    const char *    v;
    const char *    mask;     // F16 [n_kv, n_tok] or null
    const float *   sinks;    // [n_head] or null
    const char *    k_hot;    // rows, head after head
    const char *    v_hot;
    const int32_t * row_ptr;  // [n_head_kv + 1]
    float *         dst;      // [n_embd_head, n_head, n_tok]

    float * part_o;         // [2*n_block][max_tile_queries][n_embd_head] sum of exp(score - m)*V
    float * part_m;         // [2*n_block][max_tile_queries]
    float * part_l;         // [2*n_block][max_tile_queries] sum of exp(score - m)

    int64_t nb_q_tok, nb_q_head;       // bytes from one to the next
    int64_t nb_k_row, nb_k_head;
    int64_t nb_v_row, nb_v_head;
    int64_t nb_k_hot, nb_v_hot;
    int64_t nb_mask;

    int n_kv;
    int n_head_kv;
    int n_gqa;                // query heads of a KV head
    int n_tok;
    int n_tile;               // tiles of a KV head
    int n_block;              // blocks launched
    int max_tile_queries;     // 16, 32 or 64

    float scale;
    float softcap;            // 0: none

    HEADKV_BOTH int n_query() const { return n_tok*n_gqa; }

    HEADKV_BOTH int tile_begin(int tile) const { return (int) ((int64_t) tile*n_query()/n_tile); }

    HEADKV_BOTH int tile_of(int query) const {
        int tile = (int) ((int64_t) query*n_tile/n_query());
        while (tile_begin(tile + 1) <= query) {
            tile++;
        }
        return tile;
    }

    HEADKV_BOTH int n_hot   (int ih) const { return row_ptr[ih + 1] - row_ptr[ih]; }
    HEADKV_BOTH int n_rows  (int ih) const { return n_hot(ih) + n_kv; }
    HEADKV_BOTH int n_row_tiles(int ih) const { return (n_rows(ih) + ROW_TILE - 1)/ROW_TILE; }
};

struct work_line {
    int64_t n_row_tiles; // of all work tiles
    int     n_block;  // blocks that have work: each has a row tile for each of its warps, where there are so many

    HEADKV_BOTH work_line(const attn_args & args, int n_warp) : n_row_tiles(0) {
        for (int ih = 0; ih < args.n_head_kv; ih++) {
            n_row_tiles += args.n_row_tiles(ih);
        }
        n_row_tiles *= args.n_tile;
        const int64_t n = (n_row_tiles + n_warp - 1)/n_warp;
        n_block = n < args.n_block ? (int) n : args.n_block;
    }

    HEADKV_BOTH int64_t slice_begin(int block) const { return n_row_tiles*block/n_block; }

    // the block that owns row tile x of the line
    HEADKV_BOTH int owner(int64_t x) const {
        int block = (int) (x*n_block/n_row_tiles);
        while (slice_begin(block + 1) <= x) {
            block++;
        }
        return block;
    }

    // the part of a block of a work tile that starts at row tile x of the line: 0 if the work tile starts before the slice
    HEADKV_BOTH int part(int64_t x, int block) const { return 2*block + (x < slice_begin(block) ? 0 : 1); }
};

} // namespace headkv
