#include "headkv-cuda-launch.cuh"

void headkv::launch_q8_0(ggml_backend_cuda_context & ctx, const attn_args & args, int64_t n_embd_head) {
    launch_for_size<row_q8_0>(ctx, args, n_embd_head);
}
