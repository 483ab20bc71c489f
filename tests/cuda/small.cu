// small.cu: our kernels for f16 rows of 64 elements alone, as headkv-cuda-f16.cu has them among others: what the mutants of
// scripts/emulate_cuda.py are compiled from.

#include "headkv-cuda-launch.cuh"

template void headkv::launch_for_queries<headkv::row_f16, 64>(ggml_backend_cuda_context &, const headkv::attn_args &);
