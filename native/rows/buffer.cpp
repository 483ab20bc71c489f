#include "rows/buffer.h"
#include "core/error.h"

#include "ggml-alloc.h"
#include "ggml-backend.h"

#include <algorithm>

static int32_t n_alloc_until_failure = 0;

void headkv_alloc_fail(int32_t n) {
    n_alloc_until_failure = n;
}

static bool is_failing() {
    return n_alloc_until_failure > 0 && --n_alloc_until_failure == 0;
}

static ggml_backend_buffer_ptr zeroed(ggml_backend_buffer_t buffer, size_t n_bytes, ggml_backend_buffer_type_t buft) {
    if (!buffer) {
        headkv_fail(HEADKV_STATUS_NO_MEMORY,
            "out of memory: %.1f MiB could not be allocated on %s", n_bytes/1024.0/1024.0, ggml_backend_buft_name(buft));
    }
    ggml_backend_buffer_clear(buffer, 0);
    return ggml_backend_buffer_ptr(buffer);
}

ggml_backend_buffer_ptr headkv_alloc(ggml_context * ctx, ggml_backend_buffer_type_t buft) {
    const size_t n_bytes = ggml_backend_alloc_ctx_tensors_from_buft_size(ctx, buft);
    return zeroed(is_failing() ? nullptr : ggml_backend_alloc_ctx_tensors_from_buft(ctx, buft), n_bytes, buft);
}

ggml_backend_buffer_ptr headkv_alloc(size_t n_bytes, ggml_backend_buffer_type_t buft) {
    return zeroed(is_failing() ? nullptr : ggml_backend_buft_alloc_buffer(buft, n_bytes), n_bytes, buft);
}

size_t headkv_buffer::size() const {
    return buf ? ggml_backend_buffer_get_size(buf.get()) : 0;
}

size_t headkv_bytes(const std::vector<headkv_buffer> & buffers) {
    size_t res = 0;
    for (const auto & buffer : buffers) {
        res += buffer.size();
    }
    return res;
}

ggml_context * headkv_buffers::ctx_on(ggml_backend_buffer_type_t buft) {
    const size_t i = std::find(bufts.begin(), bufts.end(), buft) - bufts.begin();
    if (i == bufts.size()) {
        bufts.push_back(buft);
        buffers.push_back({ ggml_context_ptr(ggml_init({ n_tensors_max*ggml_tensor_overhead(), nullptr, /*.no_alloc =*/ true })), nullptr });
    }
    return buffers[i].ctx.get();
}

std::vector<headkv_buffer> headkv_buffers::alloc() {
    for (size_t i = 0; i < buffers.size(); ++i) {
        if (ggml_backend_alloc_ctx_tensors_from_buft_size(buffers[i].ctx.get(), bufts[i]) > 0) {
            buffers[i].buf = headkv_alloc(buffers[i].ctx.get(), bufts[i]);
        }
    }
    return std::move(buffers);
}

ggml_backend_t headkv_backend_of(ggml_backend_sched_t sched, const ggml_tensor * t) {
    const ggml_backend_dev_t dev = ggml_backend_buft_get_device(ggml_backend_buffer_get_type(t->buffer)); // null: main memory
    for (int i = 0; i < ggml_backend_sched_get_n_backends(sched); ++i) {
        ggml_backend_t backend = ggml_backend_sched_get_backend(sched, i);
        const ggml_backend_dev_t own = ggml_backend_get_device(backend);
        if (dev ? own == dev : ggml_backend_dev_type(own) == GGML_BACKEND_DEVICE_TYPE_CPU) {
            return backend;
        }
    }
    headkv_fail(HEADKV_STATUS_UNSUPPORTED, "no backend of the context works on %s", ggml_backend_buffer_name(t->buffer));
}
