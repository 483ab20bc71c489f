// held-tensor.h: a tensor in host memory that lies where a layer of a cache, or a weight, would.

#pragma once

#include "rows/buffer.h"

#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "ggml.h"

struct held_tensor {
    headkv_buffer buffer;
    ggml_tensor * t;

    held_tensor(ggml_type type, int64_t ne0, int64_t ne1) {
        buffer.ctx.reset(ggml_init({ ggml_tensor_overhead(), nullptr, /*.no_alloc =*/ true }));
        t = ggml_new_tensor_2d(buffer.ctx.get(), type, ne0, ne1);
        buffer.buf = headkv_alloc(buffer.ctx.get(), ggml_backend_cpu_buffer_type());
    }

    template <typename T>
    T * data() const { return (T *) t->data; }
};
