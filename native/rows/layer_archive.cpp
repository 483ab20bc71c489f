#include "rows/layer_archive.h"

#include "ggml.h"

#include <cstring>

static std::vector<size_t> areas_of(const std::vector<headkv_cell_bytes> & layers, uint32_t n_cells) {
    std::vector<size_t> res;
    for (const auto & layer : layers) {
        for (const size_t bytes : { layer.k, layer.v, layer.observed }) {
            res.push_back(n_cells*bytes);
        }
    }
    return res;
}

headkv_layer_archive::headkv_layer_archive(const std::vector<headkv_cell_bytes> & layers, uint32_t n_cells, const std::string & dir) :
    layers(layers), n_cells_max(n_cells), memory(areas_of(layers, n_cells), dir) {}

void headkv_layer_archive::hold(uint32_t n) {
    for (size_t i = 0; i < layers.size(); ++i) {
        memory.hold(N_AREAS*i + AREA_K, n*layers[i].k);
        memory.hold(N_AREAS*i + AREA_V, n*layers[i].v);
    }
}

void headkv_layer_archive::place(size_t i, ggml_tensor * k, ggml_tensor * v) const {
    memory.place(N_AREAS*i + AREA_K, k);
    if (v) {
        memory.place(N_AREAS*i + AREA_V, v);
    }
}

bool headkv_layer_archive::place_observed(size_t i, ggml_tensor * t) {
    const size_t area = N_AREAS*i + AREA_OBSERVED;
    if (ggml_nbytes(t) > memory.size(area)) {
        return false;
    }
    memory.hold(area, ggml_nbytes(t));
    memory.place(area, t);
    memset(t->data, 0, ggml_nbytes(t));
    memory.give_back(area, 1);
    return true;
}

void headkv_layer_archive::prefetch(size_t i, uint32_t n) const noexcept {
    memory.prefetch(N_AREAS*i + AREA_K, n*layers[i].k);
    memory.prefetch(N_AREAS*i + AREA_V, n*layers[i].v);
    memory.prefetch(N_AREAS*i + AREA_OBSERVED, memory.size(N_AREAS*i + AREA_OBSERVED));
}

void headkv_layer_archive::write_behind(size_t i, uint32_t first, uint32_t end) const noexcept {
    memory.write_behind(N_AREAS*i + AREA_K, first*layers[i].k, end*layers[i].k);
    memory.write_behind(N_AREAS*i + AREA_V, first*layers[i].v, end*layers[i].v);
}

void headkv_layer_archive::give_back(size_t i) noexcept { memory.give_back(N_AREAS*i, N_AREAS); }
