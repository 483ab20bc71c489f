// headkv-cuda-launch.cuh: the kernels of one cache type, for every head size and number of queries. Included by one small file a
// type, so that they are compiled side by side.

#pragma once

#include "ggml-cuda/common.cuh"

#include "headkv-cuda-attend.cuh"
#include "headkv-cuda-combine.cuh"

#include <algorithm>

namespace headkv {

// n_embd_head: one that headkv_cuda_supported() takes
void launch_f16 (ggml_backend_cuda_context & ctx, const attn_args & args, int64_t n_embd_head);
void launch_bf16(ggml_backend_cuda_context & ctx, const attn_args & args, int64_t n_embd_head);
void launch_q8_0(ggml_backend_cuda_context & ctx, const attn_args & args, int64_t n_embd_head);
void launch_q4_0(ggml_backend_cuda_context & ctx, const attn_args & args, int64_t n_embd_head);

template <class Row, int D, int N_Q16>
static __global__ void __launch_bounds__(attend<Row, D, N_Q16>::N_THREAD, 2) attend_kernel(const attn_args args) {
    using kernel = attend<Row, D, N_Q16>;
    __shared__ typename kernel::shared_memory shared;
    kernel(args, shared).compute(blockIdx.x);
}

template <int D>
static __global__ void __launch_bounds__(combine<D>::N_THREAD, 1) combine_kernel(const attn_args args, const int n_split) {
    __shared__ typename combine<D>::shared_memory shared;
    extern __shared__ float weight[]; // [n_block]
    combine<D>::compute(args, shared, weight, blockIdx.y, blockIdx.x, n_split);
}

template <class Row, int D, int N_Q16>
static void launch(ggml_backend_cuda_context & ctx, attn_args args) {
    using kernel = attend<Row, D, N_Q16>;

    // as many blocks as fit at once, each with one slice of the rows
    int n_block_sm = 0;
    CUDA_CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&n_block_sm, attend_kernel<Row, D, N_Q16>, kernel::N_THREAD, 0));
    args.n_block          = std::max(1, n_block_sm)*ggml_cuda_info().devices[ctx.device].nsm;
    args.max_tile_queries = kernel::TILE;

    const size_t n_slot = (size_t) 2*args.n_block*kernel::TILE;
    ggml_cuda_pool_alloc<float> part_o(ctx.pool(), n_slot*D);
    ggml_cuda_pool_alloc<float> part_m(ctx.pool(), n_slot);
    ggml_cuda_pool_alloc<float> part_l(ctx.pool(), n_slot);
    args.part_o = part_o.get();
    args.part_m = part_m.get();
    args.part_l = part_l.get();

    attend_kernel<Row, D, N_Q16><<<args.n_block, kernel::N_THREAD, 0, ctx.stream()>>>(args);
    CUDA_CHECK(cudaGetLastError());

    const dim3 grid(args.n_query(), args.n_head_kv);
    combine_kernel<D><<<grid, combine<D>::N_THREAD, args.n_block*sizeof(float), ctx.stream()>>>(args, kernel::N_SPLIT);
    CUDA_CHECK(cudaGetLastError());
}

template <class Row, int D>
static void launch_for_queries(ggml_backend_cuda_context & ctx, const attn_args & args) {
    const int n = (args.n_query() + args.n_tile - 1)/args.n_tile; // of the largest tile
    if (n <= 16) {
        launch<Row, D, 1>(ctx, args);
    } else if (n <= 32) {
        launch<Row, D, 2>(ctx, args);
    } else {
        launch<Row, D, 4>(ctx, args);
    }
}

template <class Row>
static void launch_for_size(ggml_backend_cuda_context & ctx, const attn_args & args, int64_t n_embd_head) {
    switch (n_embd_head) {
        case  64: launch_for_queries<Row,  64>(ctx, args); return;
        case  96: launch_for_queries<Row,  96>(ctx, args); return;
        case 128: launch_for_queries<Row, 128>(ctx, args); return;
        case 256: launch_for_queries<Row, 256>(ctx, args); return;
    }
    if constexpr (Row::BLOCK == 1) {
        if (n_embd_head == 80) {
            launch_for_queries<Row, 80>(ctx, args);
            return;
        }
    }
    GGML_ABORT("headkv: head size %d", (int) n_embd_head);
}

} // namespace headkv
