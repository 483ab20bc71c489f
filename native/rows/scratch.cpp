#include "rows/scratch.h"

#include "ggml-alloc.h"

#include <algorithm>
#include <cstring>
#include <map>

static constexpr size_t N_PLACES     = 2;
static constexpr size_t PINNED_BYTES = 4*1024*1024;

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
        make(buft, own, n_cells, is_for_all ? 1 : std::min(N_PLACES, own.size()));
        const ggml_backend_dev_t dev = ggml_backend_buft_get_device(buft);
        if (ggml_backend_buffer_type_t host = dev && !is_for_all ? ggml_backend_dev_host_buffer_type(dev) : nullptr) {
            stops.push_back({ buft, headkv_alloc(PINNED_BYTES, host) });
        }
    }
}

// like t, which may be missing
static ggml_tensor * new_cells(ggml_context * ctx, const ggml_tensor * t, uint32_t n_cells) {
    return t ? ggml_set_name(ggml_new_tensor_3d(ctx, t->type, t->ne[0], n_cells, 1), t->name) : nullptr;
}

void headkv_scratch::make(ggml_backend_buffer_type_t buft, const std::vector<size_t> & own, uint32_t n_cells, size_t n_places) {
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
    const size_t size_kv = size_k + size_v;
    buffers.back().buf = headkv_alloc(std::max<size_t>(1, n_places*size_kv), buft);

    ggml_backend_buffer_t buf = buffers.back().buf.get();
    for (size_t j = 0; j < own.size(); ++j) {
        const headkv_kv & layer = layers[own[j]];
        char * place = (char *) ggml_backend_buffer_get_base(buf) + j % n_places*size_kv;
        ggml_backend_tensor_alloc(buf, layer.k, place);
        if (layer.v) {
            ggml_backend_tensor_alloc(buf, layer.v, place + size_k);
        }
    }
}

void headkv_scratch::load(size_t i, int64_t first, int64_t end) {
    if (layers[i].k->data == layers[travelling].k->data) {
        wait();
    }
    for (const auto & [from, to] : { std::pair { like[i].k, layers[i].k }, std::pair { like[i].v, layers[i].v } }) {
        if (from != to && end > first) {
            ggml_backend_tensor_set(to, (const char *) from->data + first*from->nb[1], first*from->nb[1], (end - first)*from->nb[1]);
        }
    }
}

void headkv_scratch::store(size_t i, int64_t first, int64_t end, const std::function<void()> & then) {
    wait();
    if (!has(i)) {
        then();
        return;
    }
    travelling = i;
    travel     = std::async(std::launch::async, [=] {
        for (const auto & [to, from] : { std::pair { like[i].k, layers[i].k }, std::pair { like[i].v, layers[i].v } }) {
            if (from && end > first) {
                fetch(from, to, first*to->nb[1], (end - first)*to->nb[1]);
            }
        }
        then();
    });
}

void headkv_scratch::wait() {
    if (travel.valid()) {
        travel.get();
    }
}

// bytes [offset, offset + n_bytes) of a tensor on a device
void headkv_scratch::fetch(const ggml_tensor * from, ggml_tensor * to, size_t offset, size_t n_bytes) const {
    const ggml_backend_buffer_type_t buft = ggml_backend_buffer_get_type(from->buffer);
    const auto stop = std::find_if(stops.begin(), stops.end(), [=](const auto & x) { return x.buft == buft; });
    if (stop == stops.end()) {
        ggml_backend_tensor_get(from, (char *) to->data + offset, offset, n_bytes);
        return;
    }
    void * pinned = ggml_backend_buffer_get_base(stop->pinned.get());
    for (const size_t end = offset + n_bytes; offset < end; offset += PINNED_BYTES) {
        const size_t n = std::min(PINNED_BYTES, end - offset);
        ggml_backend_tensor_get(from, pinned, offset, n);
        memcpy((char *) to->data + offset, pinned, n);
    }
}
