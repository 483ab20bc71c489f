// device.cpp: devices, their limits, and errors.
//
// Environment:
//     CUDAEMU_DEVICES  number of devices (default 1, at most 4)
//     CUDAEMU_ARCH     compute capability of all of them, as 80 (default)
//     CUDAEMU_MEMORY   MiB of a device (default 16384)

#include "api.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace emu {

namespace {

// CUDA programming guide, "compute capabilities": technical specifications
constexpr uint32_t KIB = 1024;
const Arch ARCHS[] = {
    {  75,  64*KIB,  64*KIB, 1024, 16 },
    {  80, 163*KIB, 164*KIB, 2048, 32 },
    {  86,  99*KIB, 100*KIB, 1536, 16 },
    {  89,  99*KIB, 100*KIB, 1536, 24 },
    {  90, 227*KIB, 228*KIB, 2048, 32 },
    { 100, 227*KIB, 228*KIB, 2048, 32 },
    { 120,  99*KIB, 100*KIB, 1536, 24 },
};

cudaError_t sticky_error = cudaSuccess;
thread_local cudaError_t last_error = cudaSuccess;
thread_local int         set_device = 0;

} // namespace

int setting(const char * name, int otherwise) {
    const char * s = getenv(name);
    return s && *s ? atoi(s) : otherwise;
}

int    n_devices()      { static const int n = std::clamp(setting("CUDAEMU_DEVICES", 1), 0, MAX_DEVICES); return n; }
size_t device_memory()  { static const size_t n = (size_t) setting("CUDAEMU_MEMORY", 16384) << 20; return n; }
int    current_device() { return set_device; }

const Arch & arch() {
    static const Arch * found = [] {
        const int cc = setting("CUDAEMU_ARCH", 80);
        for (const Arch & a : ARCHS) {
            if (a.cc == cc) { return &a; }
        }
        fprintf(stderr, "cudaemu: CUDAEMU_ARCH=%d: its limits are not known\n", cc);
        exit(2);
    }();
    return *found;
}

std::recursive_mutex & lock() { static auto * m = new std::recursive_mutex; return *m; }

cudaError_t sticky() { return sticky_error; }
void set_sticky(cudaError_t e) { sticky_error = e; }

cudaError_t done(cudaError_t e) {
    if (e == cudaSuccess) { e = sticky_error; }
    if (e != cudaSuccess) { last_error = e; }
    return e;
}

cudaError_t refuse(cudaError_t e, const std::string & why) {
    fprintf(stderr, "cudaemu: %s\n", why.c_str());
    return done(e);
}

namespace {

bool has_device(int d) { return d >= 0 && d < n_devices(); }

cudaError_t set_peer(int peer, bool may) {
    if (!has_device(peer) || peer == current_device()) { return done(cudaErrorInvalidDevice); }
    allow_peer(current_device(), peer, may);
    return done(cudaSuccess);
}

} // namespace

} // namespace emu

using namespace emu;

extern "C" {

cudaError_t CUDARTAPI cudaGetDeviceCount(int * n) { *n = n_devices(); return n_devices() > 0 ? cudaSuccess : done(cudaErrorNoDevice); }
cudaError_t CUDARTAPI cudaGetDevice(int * d) { *d = current_device(); return done(cudaSuccess); }
cudaError_t CUDARTAPI cudaSetDevice(int d) {
    if (!has_device(d)) { return done(cudaErrorInvalidDevice); }
    set_device = d;
    return done(cudaSuccess);
}
cudaError_t CUDARTAPI cudaSetDeviceFlags(unsigned) { return done(cudaSuccess); }
cudaError_t CUDARTAPI cudaGetDeviceProperties(cudaDeviceProp * p, int d) {
    if (!has_device(d)) { return done(cudaErrorInvalidDevice); }
    const Arch & a = arch();
    memset(p, 0, sizeof(*p));
    snprintf(p->name, sizeof(p->name), "emulated sm_%d", a.cc);
    memset(p->uuid.bytes, d + 1, sizeof(p->uuid.bytes));
    p->totalGlobalMem = device_memory();
    p->sharedMemPerBlock = SHARED_DEFAULT;
    p->sharedMemPerBlockOptin = a.shared_block;
    p->sharedMemPerMultiprocessor = a.shared_sm;
    p->reservedSharedMemPerBlock = a.cc >= 80 ? KIB : 0;
    p->regsPerBlock = p->regsPerMultiprocessor = REGISTERS_SM;
    p->warpSize = 32;
    p->maxThreadsPerBlock = 1024;
    p->maxThreadsPerMultiProcessor = (int) a.threads_sm;
    p->maxBlocksPerMultiProcessor = (int) a.blocks_sm;
    p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
    p->maxThreadsDim[2] = 64;
    p->maxGridSize[0] = 0x7fffffff;
    p->maxGridSize[1] = p->maxGridSize[2] = 65535;
    p->totalConstMem = 64*KIB;
    p->memPitch = 0x7fffffff;
    p->textureAlignment = 512;
    p->major = a.cc/10;
    p->minor = a.cc%10;
    p->multiProcessorCount = N_SM;
    p->l2CacheSize = 4 << 20;
    p->concurrentKernels = p->unifiedAddressing = p->asyncEngineCount = p->cooperativeLaunch = p->canMapHostMemory = 1;
    p->pciBusID = d + 1;
    return done(cudaSuccess);
}
cudaError_t CUDARTAPI cudaDeviceGetAttribute(int * v, cudaDeviceAttr a, int d) {
    cudaDeviceProp p;
    const cudaError_t e = cudaGetDeviceProperties(&p, d);
    if (e != cudaSuccess) { return e; }
    switch (a) {
        case cudaDevAttrCooperativeLaunch:            *v = 1; break;
        case cudaDevAttrMultiProcessorCount:          *v = p.multiProcessorCount; break;
        case cudaDevAttrMaxThreadsPerBlock:           *v = p.maxThreadsPerBlock; break;
        case cudaDevAttrWarpSize:                     *v = p.warpSize; break;
        case cudaDevAttrComputeCapabilityMajor:       *v = p.major; break;
        case cudaDevAttrComputeCapabilityMinor:       *v = p.minor; break;
        case cudaDevAttrMaxSharedMemoryPerBlock:      *v = (int) p.sharedMemPerBlock; break;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin: *v = (int) p.sharedMemPerBlockOptin; break;
        default: *v = 0; return refuse(cudaErrorInvalidValue, "device attribute " + std::to_string(a) + ": not emulated");
    }
    return done(cudaSuccess);
}
cudaError_t CUDARTAPI cudaDeviceGetPCIBusId(char * s, int n, int d) { snprintf(s, n, "0000:%02x:00.0", d + 1); return done(cudaSuccess); }
cudaError_t CUDARTAPI cudaDeviceCanAccessPeer(int * can, int device, int peer) { *can = device != peer; return done(cudaSuccess); }
cudaError_t CUDARTAPI cudaDeviceEnablePeerAccess(int peer, unsigned) { return set_peer(peer, true); }
cudaError_t CUDARTAPI cudaDeviceDisablePeerAccess(int peer) { return set_peer(peer, false); }
cudaError_t CUDARTAPI cudaDeviceReset() { finish_all(); return done(cudaSuccess); }
cudaError_t CUDARTAPI cudaRuntimeGetVersion(int * v) { *v = CUDART_VERSION; return cudaSuccess; }
cudaError_t CUDARTAPI cudaDriverGetVersion(int * v) { *v = CUDART_VERSION; return cudaSuccess; }
cudaError_t CUDARTAPI cudaGetLastError() { const cudaError_t e = last_error; last_error = sticky(); return e; }
cudaError_t CUDARTAPI cudaPeekAtLastError() { return last_error; }
const char * CUDARTAPI cudaGetErrorName(cudaError_t e) {
    static thread_local char s[40];
    snprintf(s, sizeof(s), "cudaError %d", (int) e);
    return s;
}
const char * CUDARTAPI cudaGetErrorString(cudaError_t e) {
    switch (e) {
        case cudaSuccess:                       return "no error";
        case cudaErrorInvalidValue:             return "invalid argument";
        case cudaErrorInvalidConfiguration:     return "invalid configuration argument";
        case cudaErrorInvalidResourceHandle:    return "invalid resource handle";
        case cudaErrorMemoryAllocation:         return "out of memory";
        case cudaErrorIllegalAddress:           return "an illegal memory access was encountered";
        case cudaErrorLaunchFailure:            return "unspecified launch failure";
        case cudaErrorLaunchOutOfResources:     return "too many resources requested for launch";
        case cudaErrorNotSupported:             return "operation not supported";
        case cudaErrorInvalidKernelImage:       return "device kernel image is invalid";
        case cudaErrorGraphExecUpdateFailure:   return "the graph update was not performed because it included changes which violated constraints";
        default:                                return cudaGetErrorName(e);
    }
}
cudaError_t CUDARTAPI cudaProfilerStart() { return done(cudaSuccess); }
cudaError_t CUDARTAPI cudaProfilerStop() { return done(cudaSuccess); }

} // extern "C"
