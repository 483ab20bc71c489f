// test-cuda-guards.cpp: builds for HIP and MUSA compile upstream's CUDA folder too, with our call sites in it. This is compiled for each
// of them: the functions are there without our kernels, and no node is supported.

#include "headkv-cuda.h"

int main() {
    const bool is_none = !headkv_cuda_supported(0, nullptr) && headkv_cuda_alloc_size(nullptr) == 0;
    void (*compute)(ggml_backend_cuda_context &, ggml_tensor *) = headkv_cuda_flash_attn;
    return is_none && compute ? 0 : 1;
}
