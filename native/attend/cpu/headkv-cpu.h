// headkv-cpu.h: attention over hot rows and a tail of ordinary cells, on the CPU.
//
// A GGML_OP_FLASH_ATTN_EXT node with src[5] set is ours (attend/node.h), one that observes too; ggml-cpu calls the two functions
// below for it. Every cache type and head size is taken.
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
