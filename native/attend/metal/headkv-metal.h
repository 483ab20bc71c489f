// headkv-metal.h: attention over hot rows and a tail of ordinary cells, on Apple GPUs.
//
// A GGML_OP_FLASH_ATTN_EXT node with src[5] set is ours; ggml-metal calls the functions below for it. The node is that of
// attend/node.h, with these limits (headkv_metal_supported() says false to anything else):
//
//     q     at most 8 tokens, or any number of them in a node with sinks, which no unfused graph can do
//     k, v  equal types: F16, BF16, Q8_0, Q4_0; equal head sizes: 64, 80, 96, 128, 256; at least one tail cell
//     mask  a cell at -INF counts for nothing, but may be read: it must not hold NaN or infinity
//     GPU   with SIMD-group reduction (Apple7, Metal3), and a compiler that accepts our kernels
//
// C linkage: upstream's caller of headkv_metal_supported() is Objective-C.

#ifndef HEADKV_METAL_H
#define HEADKV_METAL_H

#include <stdbool.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

struct ggml_metal_device;
struct ggml_metal_encoder;
struct ggml_tensor;

// compiles the kernels when it is asked for the first time
bool headkv_metal_supported(struct ggml_metal_device * dev, const struct ggml_tensor * dst);

// bytes of dst, with the scratch of the kernels behind it
size_t headkv_metal_alloc_size(const struct ggml_tensor * dst);

void headkv_metal_flash_attn(struct ggml_metal_device * dev, struct ggml_metal_encoder * enc, const struct ggml_tensor * dst);

#ifdef __cplusplus
}
#endif

#endif // HEADKV_METAL_H
