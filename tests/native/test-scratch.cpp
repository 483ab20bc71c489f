// test-scratch.cpp: a layer's cells on its device, to and from host memory, and beside what is computed with the next one. The CPU plays
// the devices, whose memory nobody else can touch.

#include "held-tensor.h"
#include "refused.h"
#include "rows/scratch.h"

#include <chrono>
#include <cstring>
#include <future>
#include <memory>
#include <stdexcept>
#include <thread>
#include <vector>

extern "C" { // fake-device.cpp
void fake_devices_add(const char * name, int n, int what);
void fake_devices_remove(void);
}

static constexpr uint32_t N_CELLS   = 9; // in host memory
static constexpr uint32_t N_SCRATCH = 6;

static ggml_backend_buffer_type_t on(const char * name) { return ggml_backend_dev_buffer_type(ggml_backend_dev_by_name(name)); }

// layers of a cache: the first belongs in host memory, the others on two devices, of which the first has three
struct cache {
    std::vector<std::unique_ptr<held_tensor>> held;
    std::vector<headkv_kv>                    layers;

    const std::vector<ggml_backend_buffer_type_t> bufts { ggml_backend_cpu_buffer_type(), on("Small0"), on("Small1"), on("Small0"), on("Small0") };

    cache() {
        for (const auto & [type, n_k, n_v] : { std::tuple { GGML_TYPE_F16, 8, 8 }, { GGML_TYPE_F16, 40, 24 }, { GGML_TYPE_F32, 3, 0 }, { GGML_TYPE_F32, 24, 16 }, { GGML_TYPE_Q8_0, 64, 32 } }) {
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

static void store(headkv_scratch & scratch, size_t i, int64_t first, int64_t end) {
    bool is_there = false;
    scratch.store(i, first, end, [&] { is_there = true; });
    scratch.wait();
    CHECK(is_there);
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
    headkv_scratch scratch = c.scratch();
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
    CHECK(scratch.at(1).k->data == scratch.at(4).k->data); // in turns
    CHECK(scratch.at(1).v->data == scratch.at(4).v->data);
    const auto end = [](const ggml_tensor * t) { return (const char *) t->data + ggml_nbytes(t); };
    CHECK(end(scratch.at(1).v) <= (const char *) scratch.at(3).k->data); // beside one another
    CHECK(scratch.at(1).k->buffer != scratch.at(2).k->buffer);

    // of each device the largest K and the largest V, twice where there is more than one layer
    const auto size = [](const ggml_tensor * t) { return GGML_PAD(ggml_nbytes(t), 64); };
    CHECK_EQUAL(scratch.bytes(), 2*(size(scratch.at(3).k) + size(scratch.at(3).v)) + size(scratch.at(2).k));
}

static void test_cells_travel() {
    cache c;
    headkv_scratch scratch = c.scratch();
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
        store(scratch, i, 2, 4);
        store(scratch, i, 5, 5);
        store(scratch, i, 5, 1);
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
    headkv_scratch scratch = c.scratch();
    for (const size_t i : { 1, 2, 3, 0, 4, 1, 1 }) {
        scratch.load(i, 0, N_SCRATCH);
        each_tensor(c.layers[i], scratch.at(i), [&](ggml_tensor * host, const ggml_tensor * t) {
            if (t != host) {
                memset(host->data, 0, N_SCRATCH*host->nb[1]);
            }
        });
        scratch.store(i, 0, N_SCRATCH, [] {});
    }
    scratch.wait();
    for (size_t i = 0; i < c.layers.size(); ++i) {
        each_tensor(c.layers[i], want.layers[i], [](const ggml_tensor * host, const ggml_tensor * before) {
            CHECK(cells(host, 0, N_CELLS) == cells(before, 0, N_CELLS));
        });
    }
}

// what a layer of the scratch holds becomes its negative, on its device
static void compute(const headkv_kv & layer) {
    ggml_backend_ptr backend { ggml_backend_dev_init(ggml_backend_buft_get_device(ggml_backend_buffer_get_type(layer.k->buffer)), nullptr) };
    ggml_context_ptr ctx     { ggml_init({ 2*ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, /*.no_alloc =*/ true }) };
    ggml_cgraph * graph = ggml_new_graph(ctx.get());
    for (ggml_tensor * t : { layer.k, layer.v }) {
        ggml_tensor * node = ggml_neg_inplace(ctx.get(), t);
        CHECK(ggml_backend_view_init(node) == GGML_STATUS_SUCCESS);
        ggml_build_forward_expand(graph, node);
    }
    CHECK(ggml_backend_graph_compute(backend.get(), graph) == GGML_STATUS_SUCCESS);
}

// a layer is computed while the rows of the one before travel; the place of that one is waited for
static void test_rows_travel_beside_the_next_layer() {
    cache c;
    const cache want;
    headkv_scratch scratch = c.scratch();
    scratch.load(1, 0, N_SCRATCH);
    memset(c.layers[1].k->data, 0, N_SCRATCH*c.layers[1].k->nb[1]);
    memset(c.layers[1].v->data, 0, N_SCRATCH*c.layers[1].v->nb[1]);

    std::promise<void> computed;
    bool is_there = false;
    scratch.store(1, 0, N_SCRATCH, [&] {
        computed.get_future().wait_for(std::chrono::seconds(10)); // or what is here waits for it
        std::this_thread::sleep_for(std::chrono::milliseconds(20)); // whoever does not wait is before it
        is_there = true;
    });
    scratch.load(3, 0, N_SCRATCH);
    compute(scratch.at(3));
    scratch.load(2, 0, N_SCRATCH);
    CHECK(!is_there);
    computed.set_value();
    scratch.load(4, 0, N_SCRATCH);
    CHECK(is_there);
    each_tensor(c.layers[1], want.layers[1], [](const ggml_tensor * host, const ggml_tensor * before) {
        CHECK(cells(host, 0, N_CELLS) == cells(before, 0, N_CELLS));
    });
    compute(scratch.at(3));
    store(scratch, 3, 0, N_SCRATCH);
    each_tensor(c.layers[3], want.layers[3], [](const ggml_tensor * host, const ggml_tensor * before) {
        CHECK(cells(host, 0, N_CELLS) == cells(before, 0, N_CELLS)); // twice the negative
    });
}

// the rows of one layer at a time travel; those of a layer that lies in host memory need not
static void test_one_after_the_other() {
    cache c;
    headkv_scratch scratch = c.scratch();
    std::vector<size_t> order;
    const auto here = std::this_thread::get_id();
    for (const size_t i : { 1, 2, 3, 0, 4 }) {
        scratch.store(i, 0, 1, [&, i] {
            CHECK((std::this_thread::get_id() == here) == (i == 0));
            std::this_thread::sleep_for(std::chrono::milliseconds(5)); // whoever does not wait is before it
            order.push_back(i);
        });
    }
    scratch.wait();
    CHECK((order == std::vector<size_t> { 1, 2, 3, 0, 4 }));
}

// what fails beside the computing is thrown once, where the next one waits for it; or never, where nobody does
static void test_failure() {
    const auto fail = [] { throw std::runtime_error("no more"); };
    const auto message = [](const auto & f) -> std::string {
        try {
            f();
            return "none";
        } catch (const std::runtime_error & err) {
            return err.what();
        }
    };
    cache c;
    headkv_scratch scratch = c.scratch();
    for (const size_t next : { 0, 2, 3 }) {
        scratch.store(1, 0, N_SCRATCH, fail);
        CHECK_EQUAL(message([&] { scratch.store(next, 0, N_SCRATCH, [] {}); }), "no more");
        CHECK_EQUAL(message([&] { scratch.wait(); }), "none");
    }
    scratch.store(1, 0, N_SCRATCH, fail);
    CHECK_EQUAL(message([&] { scratch.load(4, 0, 0); }), "no more"); // whose place is the same
    scratch.store(1, 0, N_SCRATCH, fail);
    CHECK_EQUAL(message([&] { scratch.load(3, 0, 1); }), "none");
    CHECK_EQUAL(message([&] { scratch.wait(); }), "no more");
    scratch.store(1, 0, N_SCRATCH, fail);
    CHECK_EQUAL(message([&] { store(scratch, 0, 0, 1); }), "no more");
    scratch.store(2, 0, N_SCRATCH, fail);
}

// more than the pinned memory of a device, and nothing where a device has none
static void test_large_layers() {
    for (const char * device : { "Small0", "Small1" }) {
        held_tensor k(GGML_TYPE_F32, 1 << 10, 2100), want(GGML_TYPE_F32, 1 << 10, 2100); // 8.2 MiB
        const auto n = ggml_nelements(k.t);
        for (int64_t j = 0; j < n; ++j) {
            k.data<float>()[j] = want.data<float>()[j] = (float) j;
        }
        headkv_scratch scratch({ { k.t, nullptr } }, { on(device) }, 2100, false);
        scratch.load(0, 0, 2100);
        memset(k.t->data, 0, ggml_nbytes(k.t));
        store(scratch, 0, 1, 2100);
        CHECK(cells(k.t, 0, 1) == std::vector<uint8_t>(k.t->nb[1], 0));
        CHECK(cells(k.t, 1, 2100) == cells(want.t, 1, 2100));
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
    headkv_scratch scratch = c.scratch(/*.is_for_all =*/ true);
    CHECK(scratch.at(0).k != c.layers[0].k);
    CHECK(scratch.at(1).k->data == scratch.at(3).k->data); // one at a time
    CHECK(ggml_backend_buffer_is_host(scratch.at(0).k->buffer));
    scratch.load(0, 1, 4);
    each_tensor(c.layers[0], scratch.at(0), [](ggml_tensor * host, const ggml_tensor *) { memset(host->data, 0, ggml_nbytes(host)); });
    store(scratch, 0, 1, 4);
    each_tensor(c.layers[0], want.layers[0], [](const ggml_tensor * host, const ggml_tensor * before) {
        CHECK(cells(host, 0, 1) == std::vector<uint8_t>(host->nb[1], 0));
        CHECK(cells(host, 1, 4) == cells(before, 1, 4));
    });
}

static void test_no_memory() {
    cache c;
    for (const int n : { 1, 2, 3 }) { // devices, and the pinned memory of one of them
        headkv_alloc_fail(n);
        CHECK_REFUSED(c.scratch(), HEADKV_STATUS_NO_MEMORY, "out of memory");
    }
    headkv_alloc_fail(4);
    CHECK(c.scratch().bytes() > 0);
    headkv_alloc_fail(0);
}

int main() {
    fake_devices_add("Small", 2, 0);
    test_where_layers_lie();
    test_cells_travel();
    test_layers_in_turn();
    test_rows_travel_beside_the_next_layer();
    test_one_after_the_other();
    test_failure();
    test_large_layers();
    test_host_alone();
    test_for_all();
    test_no_memory();
    fake_devices_remove();
    return n_failed != 0;
}
