// transfer.cpp: allocations, copies, fills.
//
// What waits for what is that of CUDA's documentation ("API synchronization behavior"): a copy from pageable memory takes its bytes
// with the call and brings them later, a copy to pageable memory ends before the call returns, pinned memory is read and
// written when its turn comes.

#include "api.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <map>

namespace emu {

namespace {

enum class Where : uint32_t { PAGEABLE, PINNED, DEVICE };

std::map<const uint8_t *, size_t> & registered() { static auto * r = new std::map<const uint8_t *, size_t>; return *r; }

bool is_registered(const void * p) {
    const std::lock_guard<std::recursive_mutex> hold(lock());
    auto it = registered().upper_bound((const uint8_t *) p);
    return it != registered().begin() && (const uint8_t *) p < std::prev(it)->first + std::prev(it)->second;
}

Where where(const void * p) {
    if (is_device(p)) { return Where::DEVICE; }
    return is_pinned(p) || is_registered(p) ? Where::PINNED : Where::PAGEABLE;
}

struct Rectangle { // rows of `width` bytes
    void *       dst;
    size_t       dst_pitch;
    const void * src;
    size_t       src_pitch;
    size_t       width, height;
};

size_t span(size_t pitch, const Rectangle & r) { return pitch*(r.height - 1) + r.width; }

void copy_rows(const Rectangle & r, const uint8_t * src, size_t src_pitch) {
    for (size_t i = 0; i < r.height; i++) { memmove(touch(r.dst) + i*r.dst_pitch, src + i*src_pitch, r.width); }
}

cudaError_t check_direction(cudaMemcpyKind kind, Where dst, Where src) {
    const bool to_device = dst == Where::DEVICE, from_device = src == Where::DEVICE;
    const bool fits = kind == cudaMemcpyDefault || (to_device == (kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice) &&
        from_device == (kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice));
    return fits ? cudaSuccess : refuse(cudaErrorInvalidMemcpyDirection, "a copy of another direction than it says");
}

cudaError_t check_copy(const Rectangle & r, cudaMemcpyKind kind) {
    if (r.width > r.dst_pitch || r.width > r.src_pitch) { return refuse(cudaErrorInvalidPitchValue, "2D copy: rows are longer than their distance"); }
    cudaError_t e = check_direction(kind, where(r.dst), where(r.src));
    if (e == cudaSuccess && is_device(r.dst)) { e = check_device_memory(r.dst, span(r.dst_pitch, r), "copy to"); }
    if (e == cudaSuccess && is_device(r.src)) { e = check_device_memory(r.src, span(r.src_pitch, r), "copy from"); }
    return e;
}

// the bytes of pageable memory as they are now
std::shared_ptr<std::vector<uint8_t>> taken(const Rectangle & r) {
    auto bytes = std::make_shared<std::vector<uint8_t>>(r.width*r.height);
    for (size_t i = 0; i < r.height; i++) { memcpy(bytes->data() + i*r.width, (const uint8_t *) r.src + i*r.src_pitch, r.width); }
    return bytes;
}

cudaError_t copy(const Rectangle & r, cudaMemcpyKind kind, cudaStream_t stream, bool is_blocking) {
    if (r.width == 0 || r.height == 0) { return done(cudaSuccess); }
    const cudaError_t e = check_copy(r, kind);
    if (e != cudaSuccess) { return done(e); }
    const Where dst = where(r.dst), src = where(r.src);
    Work work = { Kind::COPY, (uint32_t) dst << 8 | (uint32_t) src, [r] { copy_rows(r, touch(r.src), r.src_pitch); return cudaSuccess; } };
    CUstream_st & s = stream_of(stream);
    if (s.capture) { return enqueue(stream, std::move(work)); }
    if (src == Where::PAGEABLE && dst == Where::DEVICE) {
        if (is_blocking) { finish(s); }
        work.run = [r, bytes = taken(r)] { copy_rows(r, bytes->data(), r.width); return cudaSuccess; };
        return enqueue(stream, std::move(work));
    }
    const cudaError_t queued = enqueue(stream, std::move(work));
    const bool is_device_only = src == Where::DEVICE && dst == Where::DEVICE;
    if (queued == cudaSuccess && ((is_blocking && !is_device_only) || dst == Where::PAGEABLE)) { finish(s); }
    return done(queued);
}

cudaError_t copy_line(void * dst, const void * src, size_t n, cudaMemcpyKind kind, cudaStream_t stream, bool is_blocking) {
    return copy({ dst, n, src, n, n, n ? 1u : 0u }, kind, stream, is_blocking);
}

cudaError_t fill(void * dst, int value, size_t bytes, cudaStream_t stream) {
    if (bytes == 0) { return done(cudaSuccess); }
    const cudaError_t e = check_device_memory(dst, bytes, "memset of");
    if (e != cudaSuccess) { return done(e); }
    return enqueue(stream, { Kind::FILL, 0, [=] { memset(touch(dst), value, bytes); return cudaSuccess; } });
}

cudaError_t allocate_for(void ** p, size_t bytes, bool is_pinned) {
    *p = nullptr;
    if (bytes == 0) { return done(cudaSuccess); }
    const int device = current_device();
    const bool fits = is_pinned || bytes_live(device) + bytes <= device_memory();
    const uint64_t a = fits ? allocate(bytes, device, is_pinned) : 0;
    if (!a) { return done(cudaErrorMemoryAllocation); }
    *p = is_pinned ? (void *) host(a) : (void *) a;
    return done(cudaSuccess);
}

cudaError_t release_of(uint64_t address, const char * call) {
    finish_all(); // freeing waits for the device
    return release(address) ? done(cudaSuccess) : refuse(cudaErrorInvalidValue, std::string(call) + " of what is no allocation");
}

} // namespace

cudaError_t check_device_memory(const void * p, size_t bytes, const char * what) {
    Range r;
    const void * const device = is_pinned(p) ? (const uint8_t *) p - ALIAS : (const uint8_t *) p;
    if (find((uint64_t) device, r) && (uint64_t) device + bytes <= r.hi) { return cudaSuccess; }
    char text[200];
    snprintf(text, sizeof(text), "%s %zu bytes at %p: not inside an allocation of a device", what, bytes, p);
    return refuse(cudaErrorInvalidValue, text);
}

} // namespace emu

using namespace emu;

extern "C" {

cudaError_t CUDARTAPI cudaMalloc(void ** p, size_t bytes) { return allocate_for(p, bytes, false); }
cudaError_t CUDARTAPI cudaFree(void * p) { return p ? release_of((uint64_t) p, "cudaFree") : done(cudaSuccess); }
cudaError_t CUDARTAPI cudaMallocAsync(void ** p, size_t bytes, cudaStream_t) { return cudaMalloc(p, bytes); }
cudaError_t CUDARTAPI cudaFreeAsync(void * p, cudaStream_t) { return cudaFree(p); }
cudaError_t CUDARTAPI cudaMallocManaged(void ** p, size_t, unsigned) { *p = nullptr; return refuse(cudaErrorNotSupported, "managed memory: not emulated"); }
cudaError_t CUDARTAPI cudaMemAdvise(const void *, size_t, cudaMemoryAdvise, cudaMemLocation) { return done(cudaSuccess); }
cudaError_t CUDARTAPI cudaHostAlloc(void ** p, size_t bytes, unsigned) { return allocate_for(p, bytes, true); }
cudaError_t CUDARTAPI cudaMallocHost(void ** p, size_t bytes) { return allocate_for(p, bytes, true); }
cudaError_t CUDARTAPI cudaFreeHost(void * p) { return p ? release_of((uint64_t) p - ALIAS, "cudaFreeHost") : done(cudaSuccess); }
cudaError_t CUDARTAPI cudaHostGetDevicePointer(void ** d, void * p, unsigned) {
    *d = p;
    return done(is_pinned(p) ? cudaSuccess : cudaErrorInvalidValue);
}
cudaError_t CUDARTAPI cudaHostRegister(void * p, size_t bytes, unsigned) {
    const std::lock_guard<std::recursive_mutex> hold(lock());
    registered()[(const uint8_t *) p] = bytes;
    return done(cudaSuccess);
}
cudaError_t CUDARTAPI cudaHostUnregister(void * p) {
    const std::lock_guard<std::recursive_mutex> hold(lock());
    return done(registered().erase((const uint8_t *) p) ? cudaSuccess : cudaErrorHostMemoryNotRegistered);
}
cudaError_t CUDARTAPI cudaMemGetInfo(size_t * unused, size_t * total) {
    *total = device_memory();
    *unused = *total - std::min(*total, bytes_live(current_device()));
    return done(cudaSuccess);
}
cudaError_t CUDARTAPI cudaPointerGetAttributes(cudaPointerAttributes * a, const void * p) {
    memset(a, 0, sizeof(*a));
    const Where w = where(p);
    a->type = w == Where::DEVICE ? cudaMemoryTypeDevice : w == Where::PINNED ? cudaMemoryTypeHost : cudaMemoryTypeUnregistered;
    a->device = w == Where::DEVICE ? device_of((uint64_t) p) : 0;
    a->devicePointer = w == Where::PAGEABLE ? nullptr : (void *) p;
    a->hostPointer = w == Where::PINNED ? (void *) p : nullptr;
    return done(cudaSuccess);
}
cudaError_t CUDARTAPI cudaMemcpy(void * d, const void * s, size_t n, cudaMemcpyKind kind) { return copy_line(d, s, n, kind, nullptr, true); }
cudaError_t CUDARTAPI cudaMemcpyAsync(void * d, const void * s, size_t n, cudaMemcpyKind kind, cudaStream_t stream) {
    return copy_line(d, s, n, kind, stream, false);
}
cudaError_t CUDARTAPI cudaMemcpyPeerAsync(void * d, int d_device, const void * s, int s_device, size_t n, cudaStream_t stream) {
    if (device_of((uint64_t) d) != d_device || device_of((uint64_t) s) != s_device) {
        return refuse(cudaErrorInvalidValue, "cudaMemcpyPeerAsync: memory of other devices than it says");
    }
    return copy_line(d, s, n, cudaMemcpyDeviceToDevice, stream, false);
}
cudaError_t CUDARTAPI cudaMemcpy2D(void * d, size_t dp, const void * s, size_t sp, size_t w, size_t h, cudaMemcpyKind kind) {
    return copy({ d, dp, s, sp, w, h }, kind, nullptr, true);
}
cudaError_t CUDARTAPI cudaMemcpy2DAsync(void * d, size_t dp, const void * s, size_t sp, size_t w, size_t h, cudaMemcpyKind kind, cudaStream_t stream) {
    return copy({ d, dp, s, sp, w, h }, kind, stream, false);
}
cudaError_t CUDARTAPI cudaMemset(void * d, int v, size_t n) { return fill(d, v, n, nullptr); }
cudaError_t CUDARTAPI cudaMemsetAsync(void * d, int v, size_t n, cudaStream_t stream) { return fill(d, v, n, stream); }

} // extern "C"
