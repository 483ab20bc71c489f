// headkv-cpu.h: attention over a ragged prefix and a tail of ordinary cells, on the CPU.
//
// A GGML_OP_FLASH_ATTN_EXT node with src[5] set is ours; ggml-cpu calls the two functions below for it. The node is
//
//     src[0] q     F32  [n_embd_head_k, n_tok, n_head, 1]       any strides, nb[0] = 4
//     src[1] k     any  [n_embd_head_k, n_kv, n_head_kv, 1]     tail cells, any strides of rows
//     src[2] v     any  [n_embd_head_v, n_kv, n_head_kv, 1]     tail cells, not transposed
//     src[3] mask  F16  [n_kv, >= n_tok, 1, 1] or NULL          of the tail; a cell at -INF is never read
//     src[4] sinks F32  [n_head] or NULL                        one more logit per query head, without a value
//     src[5] k     any  [n_embd_head_k, n_rows]                 prefix rows, type of src[1], contiguous, head after head
//     src[6] v     any  [n_embd_head_v, n_rows]                 prefix rows, type of src[2]
//     src[7] meta  I32  [2*n_head_kv]                           off[n_head_kv], len[n_head_kv]
//     dst          F32  [n_embd_head_v, n_head, n_tok, 1]
//     op_params    as upstream: scale, max_bias (0), logit_softcap
//
// KV head ih owns the prefix rows [off[ih], off[ih] + len[ih]), which every query sees; len may be 0. One softmax covers
// them and the visible tail cells. A query that sees no row at all gets zeros.
//
// Worked example: n_head_kv = 2, meta = {0, 3, 3, 1}: rows 0..2 belong to KV head 0, row 3 to KV head 1.
//
// Called by ggml-cpu.c and ops.cpp (patches/). C linkage, no failure: a node that breaks the rules above is our bug and
// stops in a GGML_ASSERT.

#ifndef HEADKV_CPU_H
#define HEADKV_CPU_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

struct ggml_compute_params;
struct ggml_tensor;

// bytes of params->wdata that the node needs when n_tasks threads compute it; 0 if the node is not ours
size_t headkv_cpu_work_size(const struct ggml_tensor * node, int n_tasks);

// called by every thread of params, once
void headkv_cpu_flash_attn(const struct ggml_compute_params * params, struct ggml_tensor * dst);

#ifdef __cplusplus
}
#endif

#endif // HEADKV_CPU_H
