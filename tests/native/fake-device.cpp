// fake-device.cpp: GPUs for tests, on machines that have none. A device is the CPU backend behind memory of its own, which can be touched
// only while the device computes or its buffers' functions copy: whoever takes a tensor on it for host memory crashes, as on
// a GPU. Which backend it says to be is up to the test. POSIX.

#include "attend/node.h"

#include "ggml-backend-impl.h"
#include "ggml-backend.h"
#include "ggml.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

enum refusal { REFUSE_NOTHING, REFUSE_HOT, REFUSE_ATTENTION };

static refusal refused = REFUSE_NOTHING;

//
// memory
//

struct memory {
    void * base;
    size_t size;
    int    n_opened = 0; // on all threads

    void open(int n) {
        if ((n_opened > 0) != (n_opened + n > 0) && mprotect(base, size, n > 0 ? PROT_READ | PROT_WRITE : PROT_NONE) != 0) { abort(); }
        n_opened += n;
    }
};

static std::mutex         mutex; // of the memories, of each one's count, and of their bytes
static std::set<memory *> memories;
static size_t             n_bytes = 0, n_bytes_peak = 0;

// while it lives, one buffer or the memory of all devices can be touched
struct opened {
    std::vector<memory *> what;

    opened() {
        const std::lock_guard<std::mutex> lock(mutex);
        what.assign(memories.begin(), memories.end());
        for (memory * m : what) { m->open(1); }
    }
    explicit opened(ggml_backend_buffer_t buffer) : what(1, (memory *) buffer->context) {
        const std::lock_guard<std::mutex> lock(mutex);
        what[0]->open(1);
    }
    opened(const opened &) = delete;
    ~opened() {
        const std::lock_guard<std::mutex> lock(mutex);
        for (memory * m : what) { m->open(-1); }
    }
};

static void free_buffer(ggml_backend_buffer_t buffer) {
    std::unique_ptr<memory> m { (memory *) buffer->context };
    {
        const std::lock_guard<std::mutex> lock(mutex);
        memories.erase(m.get());
        n_bytes -= m->size;
    }
    munmap(m->base, m->size);
}

static void * get_base(ggml_backend_buffer_t buffer) {
    return ((memory *) buffer->context)->base;
}

static void memset_tensor(ggml_backend_buffer_t buffer, ggml_tensor * t, uint8_t value, size_t offset, size_t size) {
    const opened o(buffer);
    memset((char *) t->data + offset, value, size);
}

static void set_tensor(ggml_backend_buffer_t buffer, ggml_tensor * t, const void * data, size_t offset, size_t size) {
    const opened o(buffer);
    memcpy((char *) t->data + offset, data, size);
}

static void get_tensor(ggml_backend_buffer_t buffer, const ggml_tensor * t, void * data, size_t offset, size_t size) {
    const opened o(buffer);
    memcpy(data, (const char *) t->data + offset, size);
}

static bool is_ours(ggml_backend_buffer_t buffer) {
    return buffer->iface.free_buffer == free_buffer;
}

// between devices, without the host
static bool cpy_tensor(ggml_backend_buffer_t, const ggml_tensor * src, ggml_tensor * dst) {
    if (!is_ours(src->view_src ? src->view_src->buffer : src->buffer)) {
        return false;
    }
    const opened o;
    memcpy(dst->data, src->data, ggml_nbytes(src));
    return true;
}

static void clear(ggml_backend_buffer_t buffer, uint8_t value) {
    const opened o(buffer);
    memset(get_base(buffer), value, buffer->size);
}

static ggml_backend_buffer_t alloc_buffer(ggml_backend_buffer_type_t buft, size_t size) {
    void * base = mmap(nullptr, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED) {
        return nullptr;
    }
    ggml_backend_buffer_i iface = {};
    iface.free_buffer   = free_buffer;
    iface.get_base      = get_base;
    iface.memset_tensor = memset_tensor;
    iface.set_tensor    = set_tensor;
    iface.get_tensor    = get_tensor;
    iface.cpy_tensor    = cpy_tensor;
    iface.clear         = clear;
    memory * m = new memory { base, size };
    {
        const std::lock_guard<std::mutex> lock(mutex);
        memories.insert(m);
        n_bytes     += size;
        n_bytes_peak = std::max(n_bytes_peak, n_bytes);
    }
    return ggml_backend_buffer_init(buft, iface, m, size);
}

//
// computing
//

static ggml_backend_dev_t cpu() {
    return ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
}

static const char * get_backend_name(ggml_backend_t backend) {
    return ggml_backend_dev_name(backend->device);
}

static void free_backend(ggml_backend_t backend) {
    ggml_backend_free((ggml_backend_t) backend->context);
    delete backend;
}

static ggml_status graph_compute(ggml_backend_t backend, ggml_cgraph * graph) {
    const opened o;
    return ggml_backend_graph_compute((ggml_backend_t) backend->context, graph);
}

static ggml_backend_t init_backend(ggml_backend_dev_t dev, const char *) {
    static ggml_guid guid = { 'h', 'e', 'a', 'd', 'k', 'v', ' ', 't', 'e', 's', 't' };

    ggml_backend_i iface = {};
    iface.get_name      = get_backend_name;
    iface.free          = free_backend;
    iface.graph_compute = graph_compute;
    ggml_backend_t inner = ggml_backend_dev_init(cpu(), nullptr);
    const auto set_n_threads = (ggml_backend_set_n_threads_t)
        ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(cpu()), "ggml_backend_set_n_threads");
    set_n_threads(inner, 1);
    return new ggml_backend { &guid, iface, dev, inner };
}

//
// devices
//

struct device {
    std::string              name;
    ggml_backend_device      dev;
    ggml_backend_buffer_type buft;
};

static std::vector<std::unique_ptr<device>> devices, removed;
static std::string      backend_name;
static ggml_backend_reg backend_reg;

static device & device_of(ggml_backend_dev_t dev) {
    return *(device *) dev->context;
}

static void get_memory(ggml_backend_dev_t, size_t * free, size_t * total) {
    *free = *total = (size_t) 1 << 30;
}

static const char * get_name(ggml_backend_dev_t dev) {
    return device_of(dev).name.c_str();
}

static enum ggml_backend_dev_type get_type(ggml_backend_dev_t) {
    return GGML_BACKEND_DEVICE_TYPE_GPU;
}

static void get_props(ggml_backend_dev_t dev, ggml_backend_dev_props * props) {
    *props = {};
    props->name = props->description = get_name(dev);
    props->type = get_type(dev);
    get_memory(dev, &props->memory_free, &props->memory_total);
}

// the first device has memory of the host that it reaches best
static ggml_backend_buffer_type_t get_host_buffer_type(ggml_backend_dev_t dev) {
    return dev == &devices[0]->dev ? ggml_backend_cpu_buffer_type() : nullptr;
}

static bool supports_op(ggml_backend_dev_t, const ggml_tensor * op) {
    const bool is_refused = refused == REFUSE_ATTENTION || (refused == REFUSE_HOT && op->src[HEADKV_SRC_K_HOT]);
    if (op->op == GGML_OP_FLASH_ATTN_EXT && is_refused) {
        return false;
    }
    return ggml_backend_dev_supports_op(cpu(), op);
}

static ggml_backend_device_i device_functions() {
    ggml_backend_device_i iface = {};
    iface.get_name        = get_name;
    iface.get_description = get_name;
    iface.get_memory      = get_memory;
    iface.get_type        = get_type;
    iface.get_props       = get_props;
    iface.init_backend    = init_backend;
    iface.get_buffer_type = [](ggml_backend_dev_t dev) { return &device_of(dev).buft; };
    iface.get_host_buffer_type = get_host_buffer_type;
    iface.supports_op     = supports_op;
    iface.supports_buft   = [](ggml_backend_dev_t dev, ggml_backend_buffer_type_t buft) { return buft == &device_of(dev).buft; };
    return iface;
}

static ggml_backend_buffer_type_i memory_functions() {
    ggml_backend_buffer_type_i iface = {};
    iface.get_name      = [](ggml_backend_buffer_type_t buft) { return get_name(buft->device); };
    iface.alloc_buffer  = alloc_buffer;
    iface.get_alignment = [](ggml_backend_buffer_type_t) { return (size_t) 64; };
    return iface;
}

static ggml_backend_reg_i reg_functions() {
    ggml_backend_reg_i iface = {};
    iface.get_name         = [](ggml_backend_reg_t) { return backend_name.c_str(); };
    iface.get_device_count = [](ggml_backend_reg_t) { return devices.size(); };
    iface.get_device       = [](ggml_backend_reg_t, size_t i) { return &devices[i]->dev; };
    iface.get_proc_address = [](ggml_backend_reg_t, const char *) { return (void *) nullptr; };
    return iface;
}

extern "C" {

// n devices of a backend with this name, until fake_devices_remove(); what: see refusal (PREFIX: our attention node, ATTENTION: any)
__attribute__((visibility("default"))) void fake_devices_add(const char * name, int n, int what) {
    refused      = (refusal) what;
    backend_name = name;
    backend_reg  = { GGML_BACKEND_API_VERSION, reg_functions(), nullptr };
    for (int i = 0; i < n; i++) {
        devices.push_back(std::make_unique<device>());
        device & d = *devices.back();
        d.name = backend_name + std::to_string(i);
        d.dev  = { device_functions(), &backend_reg, &d };
        d.buft = { memory_functions(), &d.dev, nullptr };
    }
    ggml_backend_register(&backend_reg);
}

// bytes of all devices: those in use, and the most since the last call
__attribute__((visibility("default"))) void fake_devices_bytes(size_t * now, size_t * peak) {
    const std::lock_guard<std::mutex> lock(mutex);
    *now  = n_bytes;
    *peak = std::exchange(n_bytes_peak, n_bytes);
}

// what lies on them can still be freed
__attribute__((visibility("default"))) void fake_devices_remove(void) {
    ggml_backend_unload(&backend_reg);
    for (auto & d : devices) { removed.push_back(std::move(d)); }
    devices.clear();
}

}
