// headkv-cuda.cu: which nodes the kernel takes, and its launch. Two kernels a node: attention of the slices, then the combination of
// the items that slices cut (headkv-cuda-line.cuh). A recorded CUDA graph holds both; nothing of it depends on lengths.

#include "ggml-cuda/common.cuh"

#include "headkv-cuda.h"
#include "headkv-cuda-launch.cuh"
#include "attend/node.h"

using namespace headkv;

//
// which nodes
//

// rows of f16 are read 16 bytes at a time, other ones 2
static bool is_aligned(const ggml_tensor * t) {
    const size_t alignment = ggml_is_quantized(t->type) ? 2 : 16;
    return t->nb[1] % alignment == 0 && t->nb[2] % alignment == 0 && (uintptr_t) t->data % alignment == 0;
}

bool headkv_cuda_supported(int device, const ggml_tensor * dst) {
    const ggml_tensor * q = dst->src[0];
    const ggml_tensor * k = dst->src[1];
    const ggml_tensor * v = dst->src[2];

    return turing_mma_available(ggml_cuda_info().devices[device].cc) && headkv_node_is_plain(dst) &&
        is_aligned(k) && is_aligned(v) && is_aligned(dst->src[5]) && is_aligned(dst->src[6]) && q->ne[2]/k->ne[2] <= MAX_TILE;
}

size_t headkv_cuda_alloc_size(const ggml_tensor * dst) {
    return ggml_nbytes(dst);
}

//
// launch
//

static attn_args make_args(const ggml_tensor * dst) {
    const ggml_tensor * q    = dst->src[0];
    const ggml_tensor * k    = dst->src[1];
    const ggml_tensor * v    = dst->src[2];
    const ggml_tensor * mask = dst->src[3];

    attn_args args = {};
    args.q           = (const char *) q->data;
    args.k           = (const char *) k->data;
    args.v           = (const char *) v->data;
    args.mask        = mask ? (const char *) mask->data : nullptr;
    args.sinks       = dst->src[4] ? (const float *) dst->src[4]->data : nullptr;
    args.k_prefix    = (const char *) dst->src[5]->data;
    args.v_prefix    = (const char *) dst->src[6]->data;
    args.off         = (const int32_t *) dst->src[7]->data;
    args.len         = args.off + k->ne[2];
    args.dst         = (float *) dst->data;
    args.nb_q_tok    = q->nb[1];
    args.nb_q_head   = q->nb[2];
    args.nb_k_row    = k->nb[1];
    args.nb_k_head   = k->nb[2];
    args.nb_v_row    = v->nb[1];
    args.nb_v_head   = v->nb[2];
    args.nb_k_prefix = dst->src[5]->nb[1];
    args.nb_v_prefix = dst->src[6]->nb[1];
    args.nb_mask     = mask ? mask->nb[1] : 0;
    args.n_kv        = (int) k->ne[1];
    args.n_head_kv   = (int) k->ne[2];
    args.group       = (int) (q->ne[2]/k->ne[2]);
    args.n_tok       = (int) q->ne[1];
    args.n_tile      = (args.n_query() + MAX_TILE - 1)/MAX_TILE;

    const headkv_node_logits logits = headkv_node_logits_of(dst);
    args.scale   = logits.scale;
    args.softcap = logits.softcap;
    return args;
}

void headkv_cuda_flash_attn(ggml_backend_cuda_context & ctx, ggml_tensor * dst) {
    GGML_ASSERT(headkv_cuda_supported(ctx.device, dst));
    ggml_cuda_set_device(ctx.device);

    const attn_args args = make_args(dst);
    const int64_t   n    = dst->src[1]->ne[0];
    switch (dst->src[1]->type) {
        case GGML_TYPE_F16:  launch_f16 (ctx, args, n); break;
        case GGML_TYPE_BF16: launch_bf16(ctx, args, n); break;
        case GGML_TYPE_Q8_0: launch_q8_0(ctx, args, n); break;
        default:             launch_q4_0(ctx, args, n); break;
    }
}
