// test-scratch.cpp: one layer's cells at a time on each device, to and from host memory. The CPU plays the devices, whose memory
// nobody else can touch.

#include "held-tensor.h"
#include "refused.h"
#include "rows/scratch.h"

#include <cstring>
#include <memory>
#include <vector>

extern "C" { // fake-device.cpp
void fake_devices_add(const char * name, int n, int what);
void fake_devices_remove(void);
}

static constexpr uint32_t N_CELLS   = 9; // in host memory
static constexpr uint32_t N_SCRATCH = 6;

static ggml_backend_buffer_type_t on(const char * name) { return ggml_backend_dev_buffer_type(ggml_backend_dev_by_name(name)); }

// layers of a cache: the first belongs in host memory, the others on two devices, of which the first has two
struct cache {
    std::vector<std::unique_ptr<held_tensor>> held;
    std::vector<headkv_kv>                    layers;

    const std::vector<ggml_backend_buffer_type_t> bufts { ggml_backend_cpu_buffer_type(), on("Small0"), on("Small1"), on("Small0") };

    cache() {
        for (const auto & [type, n_k, n_v] : { std::tuple { GGML_TYPE_F16, 8, 8 }, { GGML_TYPE_F16, 40, 24 }, { GGML_TYPE_F32, 3, 0 }, { GGML_TYPE_Q8_0, 96, 64 } }) {
            layers.push_back({ make(type, n_k), n_v ? make(type, n_v) : nullptr });
        }
    }

    ggml_tensor * make(ggml_type type, int64_t n) {
        held.push_back(std::make_unique<held_tensor>(type, n, N_CELLS));
        ggml_tensor * t = held.back()->t;
        ggml_format_name(t, "cache_%zu", held.size());
        for (size_t i = 0; i < ggml_nbytes(t); ++i) {
            ((uint8_t *) t->data)[i] = (uint8_t) (held.size()*37 + i*5 + i/251);
        }
        return t;
    }

    headkv_scratch scratch(bool is_for_all = false) const { return headkv_scratch(layers, bufts, N_SCRATCH, is_for_all); }
};

// of cells [first, end), wherever they lie
static std::vector<uint8_t> cells(const ggml_tensor * t, uint32_t first, uint32_t end) {
    std::vector<uint8_t> res((end - first)*t->nb[1]);
    ggml_backend_tensor_get(t, res.data(), first*t->nb[1], res.size());
    return res;
}

template <typename F>
static void each_tensor(const headkv_kv & a, const headkv_kv & b, const F & f) {
    f(a.k, b.k);
    if (a.v) {
        f(a.v, b.v);
    }
}

static void test_where_layers_lie() {
    cache c;
    const headkv_scratch scratch = c.scratch();
    CHECK(scratch.at(0).k == c.layers[0].k); // where it belongs
    CHECK(scratch.at(0).v == c.layers[0].v);
    CHECK(scratch.at(2).v == nullptr);
    for (size_t i = 1; i < c.layers.size(); ++i) {
        each_tensor(c.layers[i], scratch.at(i), [&](const ggml_tensor * host, const ggml_tensor * t) {
            CHECK(t != host);
            CHECK(ggml_backend_buffer_get_type(t->buffer) == c.bufts[i]);
            CHECK_EQUAL((int) t->type, (int) host->type);
            CHECK_EQUAL(t->ne[0], host->ne[0]);
            CHECK_EQUAL(t->ne[1], (int64_t) N_SCRATCH);
            CHECK_EQUAL(t->nb[1], host->nb[1]);
            CHECK_EQUAL(std::string(t->name), std::string(host->name));
        });
    }
    CHECK(scratch.at(1).k->data == scratch.at(3).k->data); // one at a time
    CHECK(scratch.at(1).v->data == scratch.at(3).v->data);
    CHECK(scratch.at(1).k->buffer != scratch.at(2).k->buffer);

    // of each device the largest K and the largest V
    const auto size = [](const ggml_tensor * t) { return GGML_PAD(ggml_nbytes(t), 64); };
    CHECK_EQUAL(scratch.bytes(), size(scratch.at(3).k) + size(scratch.at(3).v) + size(scratch.at(2).k));
}

static void test_cells_travel() {
    cache c;
    const headkv_scratch scratch = c.scratch();
    for (size_t i = 1; i < c.layers.size(); ++i) {
        each_tensor(c.layers[i], scratch.at(i), [](const ggml_tensor *, ggml_tensor * t) { ggml_backend_tensor_memset(t, 0xaa, 0, ggml_nbytes(t)); });
        scratch.load(i, 0, 2);
        scratch.load(i, 4, 5);
        scratch.load(i, 3, 3); // none
        scratch.load(i, 4, 2);
        each_tensor(c.layers[i], scratch.at(i), [](const ggml_tensor * host, const ggml_tensor * t) {
            const std::vector<uint8_t> untouched(t->nb[1], 0xaa);
            CHECK(cells(t, 0, 2) == cells(host, 0, 2));
            CHECK(cells(t, 2, 3) == untouched);
            CHECK(cells(t, 3, 4) == untouched);
            CHECK(cells(t, 4, 5) == cells(host, 4, 5));
            CHECK(cells(t, 5, 6) == untouched);
        });

        cache want; // as it was
        each_tensor(c.layers[i], scratch.at(i), [](const ggml_tensor *, ggml_tensor * t) { ggml_backend_tensor_memset(t, 0xbb, 0, ggml_nbytes(t)); });
        scratch.store(i, 2, 4);
        scratch.store(i, 5, 5);
        scratch.store(i, 5, 1);
        each_tensor(c.layers[i], want.layers[i], [](const ggml_tensor * host, const ggml_tensor * before) {
            CHECK(cells(host, 0, 2) == cells(before, 0, 2));
            CHECK(cells(host, 2, 4) == std::vector<uint8_t>(2*host->nb[1], 0xbb));
            CHECK(cells(host, 4, N_CELLS) == cells(before, 4, N_CELLS));
        });
    }
}

// K and V of a layer, to the scratch and back with others between
static void test_layers_in_turn() {
    cache c;
    const cache want;
    const headkv_scratch scratch = c.scratch();
    for (const size_t i : { 1, 2, 3, 0, 1 }) {
        scratch.load(i, 0, N_SCRATCH);
        each_tensor(c.layers[i], scratch.at(i), [&](ggml_tensor * host, const ggml_tensor * t) {
            if (t != host) {
                memset(host->data, 0, N_SCRATCH*host->nb[1]);
            }
        });
        scratch.store(i, 0, N_SCRATCH);
    }
    for (size_t i = 0; i < c.layers.size(); ++i) {
        each_tensor(c.layers[i], want.layers[i], [](const ggml_tensor * host, const ggml_tensor * before) {
            CHECK(cells(host, 0, N_CELLS) == cells(before, 0, N_CELLS));
        });
    }
}

static void test_host_alone() {
    cache c;
    const headkv_scratch scratch(c.layers, std::vector<ggml_backend_buffer_type_t>(c.layers.size(), ggml_backend_cpu_buffer_type()), N_SCRATCH, false);
    CHECK_EQUAL(scratch.bytes(), (size_t) 0);
    for (size_t i = 0; i < c.layers.size(); ++i) {
        CHECK(scratch.at(i).k == c.layers[i].k);
    }
}

// those that belong in host memory too
static void test_for_all() {
    cache c;
    const cache want;
    const headkv_scratch scratch = c.scratch(/*.is_for_all =*/ true);
    CHECK(scratch.at(0).k != c.layers[0].k);
    CHECK(ggml_backend_buffer_is_host(scratch.at(0).k->buffer));
    scratch.load(0, 1, 4);
    each_tensor(c.layers[0], scratch.at(0), [](ggml_tensor * host, const ggml_tensor *) { memset(host->data, 0, ggml_nbytes(host)); });
    scratch.store(0, 1, 4);
    each_tensor(c.layers[0], want.layers[0], [](const ggml_tensor * host, const ggml_tensor * before) {
        CHECK(cells(host, 0, 1) == std::vector<uint8_t>(host->nb[1], 0));
        CHECK(cells(host, 1, 4) == cells(before, 1, 4));
    });
}

static void test_no_memory() {
    cache c;
    for (const int n : { 1, 2 }) { // devices
        headkv_alloc_fail(n);
        CHECK_REFUSED(c.scratch(), HEADKV_STATUS_NO_MEMORY, "out of memory");
    }
    headkv_alloc_fail(3);
    CHECK(c.scratch().bytes() > 0);
    headkv_alloc_fail(0);
}

int main() {
    fake_devices_add("Small", 2, 0);
    test_where_layers_lie();
    test_cells_travel();
    test_layers_in_turn();
    test_host_alone();
    test_for_all();
    test_no_memory();
    fake_devices_remove();
    return n_failed != 0;
}
