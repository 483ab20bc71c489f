// count-traffic.cpp: counts, for tests, what devices compute and what leaves them: the graphs that backends are given (one for each
// split of a decoded graph), the bytes that come to the host, and those that go from one device to another. It puts itself
// in front of the functions of devices, buffer types, buffers and backends that are made after traffic_watch().

#include "ggml-backend-impl.h"
#include "ggml-backend.h"
#include "ggml.h"

#include <cstdint>
#include <map>
#include <mutex>
#include <string>

struct traffic {
    int64_t n_graphs;       // of all backends, the CPU's too
    int64_t bytes_to_host;
    int64_t bytes_between;  // devices, and within one: copies that no graph does
};

static std::mutex  mutex; // of all that follows: tensors may be read on several threads
static traffic     counted;
static std::string names; // of what came to the host

static std::map<ggml_backend_dev_t, ggml_backend_device_i>              stock_devices;
static std::map<ggml_backend_buffer_type_t, ggml_backend_buffer_type_i> stock_types;
static std::map<ggml_backend_buffer_t, ggml_backend_buffer_i>           stock_buffers;
static std::map<ggml_backend_t, ggml_backend_i>                         stock_backends;

// the functions that were there before
template <typename K, typename F>
static F stock_of(std::map<K, F> & all, K key) {
    const std::lock_guard<std::mutex> lock(mutex);
    return all[key];
}

static void count_read(const ggml_tensor * t, size_t size) {
    const std::lock_guard<std::mutex> lock(mutex);
    counted.bytes_to_host += size;
    names += std::string(names.empty() ? "" : ", ") + t->name + " " + std::to_string(size);
}

//
// buffers
//

static void get_tensor(ggml_backend_buffer_t buffer, const ggml_tensor * t, void * data, size_t offset, size_t size) {
    count_read(t, size);
    stock_of(stock_buffers, buffer).get_tensor(buffer, t, data, offset, size);
}

static void get_tensor_2d(ggml_backend_buffer_t buffer, const ggml_tensor * t, void * data, size_t offset, size_t size,
        size_t n, size_t stride_tensor, size_t stride_data) {
    count_read(t, size*n);
    stock_of(stock_buffers, buffer).get_tensor_2d(buffer, t, data, offset, size, n, stride_tensor, stride_data);
}

static bool cpy_tensor(ggml_backend_buffer_t buffer, const ggml_tensor * src, ggml_tensor * dst) {
    const bool is_done = stock_of(stock_buffers, buffer).cpy_tensor(buffer, src, dst);
    const std::lock_guard<std::mutex> lock(mutex);
    counted.bytes_between += is_done ? ggml_nbytes(src) : 0;
    return is_done;
}

static ggml_backend_buffer_t watch_buffer(ggml_backend_buffer_t buffer) {
    if (buffer) {
        const std::lock_guard<std::mutex> lock(mutex);
        ggml_backend_buffer_i & iface = buffer->iface;
        stock_buffers[buffer] = iface; // of one that was at the same address before, what is kept is overwritten
        iface.get_tensor    = get_tensor;
        iface.get_tensor_2d = iface.get_tensor_2d ? get_tensor_2d : nullptr;
        iface.cpy_tensor    = iface.cpy_tensor ? cpy_tensor : nullptr;
    }
    return buffer;
}

static ggml_backend_buffer_t alloc_buffer(ggml_backend_buffer_type_t buft, size_t size) {
    return watch_buffer(stock_of(stock_types, buft).alloc_buffer(buft, size));
}

//
// backends
//

static void get_tensor_async(ggml_backend_t backend, const ggml_tensor * t, void * data, size_t offset, size_t size) {
    count_read(t, size);
    stock_of(stock_backends, backend).get_tensor_async(backend, t, data, offset, size);
}

static void get_tensor_2d_async(ggml_backend_t backend, const ggml_tensor * t, void * data, size_t offset, size_t size,
        size_t n, size_t stride_tensor, size_t stride_data) {
    count_read(t, size*n);
    stock_of(stock_backends, backend).get_tensor_2d_async(backend, t, data, offset, size, n, stride_tensor, stride_data);
}

static bool cpy_tensor_async(ggml_backend_t from, ggml_backend_t to, const ggml_tensor * src, ggml_tensor * dst) {
    const bool is_done = stock_of(stock_backends, to).cpy_tensor_async(from, to, src, dst);
    const std::lock_guard<std::mutex> lock(mutex);
    counted.bytes_between += is_done && !ggml_backend_buffer_is_host(src->buffer) ? ggml_nbytes(src) : 0;
    return is_done;
}

static ggml_status graph_compute(ggml_backend_t backend, ggml_cgraph * graph) {
    {
        const std::lock_guard<std::mutex> lock(mutex);
        counted.n_graphs++;
    }
    return stock_of(stock_backends, backend).graph_compute(backend, graph);
}

static ggml_backend_t init_backend(ggml_backend_dev_t dev, const char * params) {
    ggml_backend_t backend = stock_of(stock_devices, dev).init_backend(dev, params);
    if (backend) {
        const std::lock_guard<std::mutex> lock(mutex);
        ggml_backend_i & iface = backend->iface;
        stock_backends[backend] = iface;
        iface.graph_compute       = graph_compute;
        iface.get_tensor_async    = iface.get_tensor_async    ? get_tensor_async    : nullptr;
        iface.get_tensor_2d_async = iface.get_tensor_2d_async ? get_tensor_2d_async : nullptr;
        iface.cpy_tensor_async    = iface.cpy_tensor_async    ? cpy_tensor_async    : nullptr;
    }
    return backend;
}

static ggml_backend_buffer_t buffer_from_host_ptr(ggml_backend_dev_t dev, void * ptr, size_t size, size_t max_tensor_size) {
    return watch_buffer(stock_of(stock_devices, dev).buffer_from_host_ptr(dev, ptr, size, max_tensor_size));
}

static void watch_device(ggml_backend_dev_t dev) {
    if (dev->iface.init_backend == init_backend) {
        return;
    }
    stock_devices[dev] = dev->iface;
    dev->iface.init_backend = init_backend;
    if (ggml_backend_dev_type(dev) == GGML_BACKEND_DEVICE_TYPE_CPU) {
        return; // its buffers are the host's
    }
    if (dev->iface.buffer_from_host_ptr) {
        dev->iface.buffer_from_host_ptr = buffer_from_host_ptr;
    }
    ggml_backend_buffer_type_t buft = ggml_backend_dev_buffer_type(dev);
    stock_types[buft] = buft->iface;
    buft->iface.alloc_buffer = alloc_buffer;
}

extern "C" {

// from now on, for all devices that are registered now
__attribute__((visibility("default"))) void traffic_watch(void) {
    for (size_t i = 0; i < ggml_backend_dev_count(); i++) {
        watch_device(ggml_backend_dev_get(i));
    }
}

// what was counted since the last call
__attribute__((visibility("default"))) void traffic_take(traffic * out) {
    const std::lock_guard<std::mutex> lock(mutex);
    *out    = counted;
    counted = {};
    names.clear();
}

// names and bytes of the tensors that came to the host since then
__attribute__((visibility("default"))) const char * traffic_names(void) {
    return names.c_str();
}

}
