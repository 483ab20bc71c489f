// rows/buffer.h: memory for tensors, on the device where a layer's cache lies, and the backend that works there.

#pragma once

#include "ggml-cpp.h"

#include <cstddef>
#include <cstdint>
#include <vector>

// a backend buffer together with the context that holds its tensors
struct headkv_buffer {
    ggml_context_ptr        ctx;
    ggml_backend_buffer_ptr buf;

    size_t size() const;
};

// as upstream's cache: one context and one buffer for each buffer type, so one for each device
class headkv_buffers {
public:
    explicit headkv_buffers(size_t n_tensors_max) : n_tensors_max(n_tensors_max) {}

    // the context for tensors that shall lie there
    ggml_context * ctx_on(ggml_backend_buffer_type_t buft);

    // those of the tensors made so far that have no memory; throws headkv_error NO_MEMORY
    std::vector<headkv_buffer> alloc();

private:
    size_t n_tensors_max;

    std::vector<ggml_backend_buffer_type_t> bufts;
    std::vector<headkv_buffer>              buffers;
};

size_t headkv_bytes(const std::vector<headkv_buffer> & buffers);

// allocate all tensors of ctx; throws headkv_error NO_MEMORY. Zeroed, so that rows nobody wrote hold no NaN
ggml_backend_buffer_ptr headkv_alloc(ggml_context * ctx, ggml_backend_buffer_type_t buft);

// memory without tensors; throws headkv_error NO_MEMORY. Zeroed too
ggml_backend_buffer_ptr headkv_alloc(size_t n_bytes, ggml_backend_buffer_type_t buft);

// the scheduler's own backend for the device on which t lies; throws headkv_error UNSUPPORTED
ggml_backend_t headkv_backend_of(ggml_backend_sched_t sched, const ggml_tensor * t);

// for tests: the n-th allocation from now fails (1 is the next); 0 turns it off
void headkv_alloc_fail(int32_t n);
