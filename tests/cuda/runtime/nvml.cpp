// nvml.cpp: of the driver's library NVML, what scripts/gpu-check asks: one device, its name and its memory.
//
// Environment: CUDAEMU_USED    the file that programs over the emulator write (memory.cpp)
//              CUDAEMU_MEMORY  MiB of the device, CUDAEMU_ARCH  its compute capability; as for libcudart

#include <cstdint>
#include <cstdio>
#include <cstdlib>

namespace {

int setting(const char * name, int otherwise) {
    const char * s = getenv(name);
    return s && *s ? atoi(s) : otherwise;
}

struct memory { unsigned long long total, unused, used; };

// no bus and no clock: figures of an emulation mean nothing
constexpr unsigned BUS_BITS = 0, CLOCK_MHZ = 0;

} // namespace

extern "C" {

int nvmlInit_v2() { return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void ** device) { *device = nullptr; return index == 0 ? 0 : 2; }
int nvmlDeviceGetName(void *, char * name, unsigned n) { snprintf(name, n, "emulated"); return 0; }
int nvmlSystemGetDriverVersion(char * version, unsigned n) { snprintf(version, n, "none"); return 0; }
int nvmlDeviceGetCudaComputeCapability(void *, int * major, int * minor) {
    const int cc = setting("CUDAEMU_ARCH", 80);
    *major = cc/10;
    *minor = cc%10;
    return 0;
}
int nvmlDeviceGetMemoryBusWidth(void *, unsigned * bits) { *bits = BUS_BITS; return 0; }
int nvmlDeviceGetMaxClockInfo(void *, int, unsigned * mhz) { *mhz = CLOCK_MHZ; return 0; }
int nvmlDeviceGetMemoryInfo(void *, memory * m) {
    uint64_t used = 0;
    if (FILE * file = getenv("CUDAEMU_USED") ? fopen(getenv("CUDAEMU_USED"), "rb") : nullptr) {
        if (fread(&used, sizeof(used), 1, file) != 1) { used = 0; }
        fclose(file);
    }
    m->total  = (unsigned long long) setting("CUDAEMU_MEMORY", 16384) << 20;
    m->used   = used;
    m->unused = m->total - m->used;
    return 0;
}

} // extern "C"
