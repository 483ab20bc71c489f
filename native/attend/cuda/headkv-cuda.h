// headkv-cuda.h: attention over hot rows and a tail of ordinary cells, on NVIDIA GPUs.
//
// A GGML_OP_FLASH_ATTN_EXT node with src[5] set is ours; ggml-cuda/fattn.cu calls the functions below for it. The node is that
// of attend/node.h, with these limits (headkv_cuda_supported() says false to anything else):
//
//     q     any number of tokens; n_head / n_head_kv at most 64
//     k, v  equal types: F16, BF16, Q8_0, Q4_0; equal head sizes: 64, 80, 96, 128, 256; at least one tail cell
//     mask  a cell at -INF counts for nothing, but is read: it must not hold NaN or infinity
//     GPU   Turing or newer, and code for it in the library
//
// HIP and MUSA builds compile upstream's sources too: there, no node of ours is supported.

#pragma once

#include <cstddef>

struct ggml_tensor;
struct ggml_backend_cuda_context;

#if defined(GGML_USE_HIP) || defined(GGML_USE_MUSA)

inline bool   headkv_cuda_supported(int, const ggml_tensor *) { return false; }
inline size_t headkv_cuda_alloc_size(const ggml_tensor *) { return 0; }
inline void   headkv_cuda_flash_attn(ggml_backend_cuda_context &, ggml_tensor *) {}

#else

bool headkv_cuda_supported(int device, const ggml_tensor * dst);

// bytes of dst: the kernel takes its scratch from the context's pool
size_t headkv_cuda_alloc_size(const ggml_tensor * dst);

void headkv_cuda_flash_attn(ggml_backend_cuda_context & ctx, ggml_tensor * dst);

#endif
