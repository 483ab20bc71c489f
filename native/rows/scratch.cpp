#include "rows/scratch.h"

#include "ggml-alloc.h"

#include <algorithm>
#include <map>

headkv_scratch::headkv_scratch(
        const std::vector<headkv_kv> & like, const std::vector<ggml_backend_buffer_type_t> & bufts, uint32_t n_cells, bool is_for_all) :
    like(like), layers(like) {
    std::map<ggml_backend_buffer_type_t, std::vector<size_t>> devices;
    for (size_t i = 0; i < bufts.size(); ++i) {
        if (is_for_all || !ggml_backend_buft_is_host(bufts[i])) {
            devices[bufts[i]].push_back(i);
        }
    }
    for (const auto & [buft, own] : devices) {
        make(buft, own, n_cells);
    }
}

// like t, which may be missing
static ggml_tensor * new_cells(ggml_context * ctx, const ggml_tensor * t, uint32_t n_cells) {
    return t ? ggml_set_name(ggml_new_tensor_3d(ctx, t->type, t->ne[0], n_cells, 1), t->name) : nullptr;
}

void headkv_scratch::make(ggml_backend_buffer_type_t buft, const std::vector<size_t> & own, uint32_t n_cells) {
    buffers.push_back({ ggml_context_ptr(ggml_init({ 2*own.size()*ggml_tensor_overhead(), nullptr, /*.no_alloc =*/ true })), nullptr });
    ggml_context * ctx = buffers.back().ctx.get();

    const auto size = [&](const ggml_tensor * t) {
        return t ? GGML_PAD(ggml_backend_buft_get_alloc_size(buft, t), ggml_backend_buft_get_alignment(buft)) : 0;
    };
    size_t size_k = 0, size_v = 0;
    for (const size_t i : own) {
        layers[i] = { new_cells(ctx, like[i].k, n_cells), new_cells(ctx, like[i].v, n_cells) };
        size_k = std::max(size_k, size(layers[i].k));
        size_v = std::max(size_v, size(layers[i].v));
    }
    buffers.back().buf = headkv_alloc(std::max<size_t>(1, size_k + size_v), buft);

    ggml_backend_buffer_t buf = buffers.back().buf.get();
    char * base = (char *) ggml_backend_buffer_get_base(buf);
    for (const size_t i : own) {
        ggml_backend_tensor_alloc(buf, layers[i].k, base);
        if (layers[i].v) {
            ggml_backend_tensor_alloc(buf, layers[i].v, base + size_k);
        }
    }
}

void headkv_scratch::load(size_t i, int64_t first, int64_t end) const {
    for (const auto & [from, to] : { std::pair { like[i].k, layers[i].k }, std::pair { like[i].v, layers[i].v } }) {
        if (from != to && end > first) {
            ggml_backend_tensor_set(to, (const char *) from->data + first*from->nb[1], first*from->nb[1], (end - first)*from->nb[1]);
        }
    }
}

void headkv_scratch::store(size_t i, int64_t first, int64_t end) const {
    for (const auto & [to, from] : { std::pair { like[i].k, layers[i].k }, std::pair { like[i].v, layers[i].v } }) {
        if (from != to && end > first) {
            ggml_backend_tensor_get(from, (char *) to->data + first*to->nb[1], first*to->nb[1], (end - first)*to->nb[1]);
        }
    }
}
