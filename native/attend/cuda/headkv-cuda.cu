// headkv-cuda.cu: which nodes the kernel takes, and its launch. Two kernels a node: attention of the slices, then the combination of
// the work tiles that slices cut (headkv-cuda-line.cuh). A recorded CUDA graph holds both; nothing of it depends on lengths.

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
    const headkv_node node(dst);
    return turing_mma_available(ggml_cuda_info().devices[device].cc) && node.is_plain() &&
        is_aligned(node.k) && is_aligned(node.v) && is_aligned(node.k_hot) && is_aligned(node.v_hot) && node.n_gqa() <= MAX_TILE;
}

size_t headkv_cuda_alloc_size(const ggml_tensor * dst) {
    return ggml_nbytes(dst);
}

//
// launch
//

static attn_args make_args(const headkv_node & node, ggml_tensor * dst) {
    attn_args args = {};
    args.q         = (const char *) node.q->data;
    args.k         = (const char *) node.k->data;
    args.v         = (const char *) node.v->data;
    args.mask      = node.mask ? (const char *) node.mask->data : nullptr;
    args.sinks     = node.sinks ? (const float *) node.sinks->data : nullptr;
    args.k_hot     = (const char *) node.k_hot->data;
    args.v_hot     = (const char *) node.v_hot->data;
    args.row_ptr   = (const int32_t *) node.row_ptr->data;
    args.dst       = (float *) dst->data;
    args.nb_q_tok  = node.q->nb[1];
    args.nb_q_head = node.q->nb[2];
    args.nb_k_row  = node.k->nb[1];
    args.nb_k_head = node.k->nb[2];
    args.nb_v_row  = node.v->nb[1];
    args.nb_v_head = node.v->nb[2];
    args.nb_k_hot  = node.k_hot->nb[1];
    args.nb_v_hot  = node.v_hot->nb[1];
    args.nb_mask   = node.mask ? node.mask->nb[1] : 0;
    args.n_kv      = (int) node.k->ne[1];
    args.n_head_kv = (int) node.k->ne[2];
    args.n_gqa     = (int) node.n_gqa();
    args.n_tok     = (int) node.q->ne[1];
    args.n_tile    = (args.n_query() + MAX_TILE - 1)/MAX_TILE;
    args.scale     = node.logit_scale();
    args.softcap   = node.softcap;
    return args;
}

void headkv_cuda_flash_attn(ggml_backend_cuda_context & ctx, ggml_tensor * dst) {
    GGML_ASSERT(headkv_cuda_supported(ctx.device, dst));
    ggml_cuda_set_device(ctx.device);

    const headkv_node node(dst);
    const attn_args   args = make_args(node, dst);
    const int64_t     n    = node.k->ne[0];
    switch (node.k->type) {
        case GGML_TYPE_F16:  launch_f16 (ctx, args, n); break;
        case GGML_TYPE_BF16: launch_bf16(ctx, args, n); break;
        case GGML_TYPE_Q8_0: launch_q8_0(ctx, args, n); break;
        default:             launch_q4_0(ctx, args, n); break;
    }
}
