// kernels.cpp: what nvcc's host code registers and launches.
//
// Environment: CUDAEMU_STATS  1: launches and seconds of each kernel, at the end
//
// A program that ends after races or reads of what nobody wrote were reported ends with exit code 86.

#include "api.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <set>

#include <unistd.h>

namespace emu {

namespace {

constexpr int EXIT_FOUND = 86;

struct Binary { // of __cudaRegisterFatBinary
    const uint8_t * data;
    Module *        module = nullptr;
};

struct Function {
    Binary *       binary;
    std::string    name;
    const Kernel * kernel = nullptr;
    uint32_t       dynamic_max = 0; // cudaFuncSetAttribute
    uint64_t       n_launch = 0;
    double         seconds = 0;
};

struct Registry {
    std::map<const void *, std::unique_ptr<Function>> functions; // by host address
    std::set<const void *> handles;
    std::map<const void *, std::pair<Binary *, std::string>> variables;

    Registry() { atexit(at_end); }

    static void at_end();
};

Registry & registry() { static Registry * r = new Registry; return *r; }

void print_stats() {
    uint64_t n = 0;
    double t = 0;
    for (const auto & [_, f] : registry().functions) {
        if (!f->n_launch) { continue; }
        fprintf(stderr, "cudaemu: %8llu launches %8.2f s  %.150s\n", (unsigned long long) f->n_launch, f->seconds, demangled(f->name).c_str());
        n += f->n_launch;
        t += f->seconds;
    }
    fprintf(stderr, "cudaemu: %8llu launches %8.2f s  in all\n", (unsigned long long) n, t);
}

void Registry::at_end() {
    if (setting("CUDAEMU_STATS", 0)) { print_stats(); }
    if (n_found()) {
        fprintf(stderr, "cudaemu: %llu races and reads of what nobody wrote\n", (unsigned long long) n_found());
        fflush(nullptr);
        _exit(EXIT_FOUND);
    }
}

// the newest PTX of a fat binary that the device can run: header, then entries, each with a header of its own
std::string ptx_of(const uint8_t * data) {
    struct Header { uint32_t magic; uint16_t version, header_size; uint64_t size; };
    struct Entry  { uint16_t kind, version; uint32_t header_size; uint64_t size; uint32_t compressed_size, unknown; uint16_t minor, major; uint32_t arch; };
    constexpr uint32_t MAGIC = 0xba55ed50;
    constexpr uint16_t IS_PTX = 1;
    Header h;
    memcpy(&h, data, sizeof(h));
    std::string best;
    uint32_t best_arch = 0;
    bool is_packed = false;
    for (const uint8_t * p = data + h.header_size, * end = p + h.size; h.magic == MAGIC && p + sizeof(Entry) <= end;) {
        Entry e;
        memcpy(&e, p, sizeof(e));
        const char * text = (const char *) p + e.header_size;
        is_packed |= e.kind == IS_PTX && e.compressed_size != 0;
        if (e.kind == IS_PTX && e.compressed_size == 0 && (int) e.arch <= arch().cc && e.arch > best_arch) {
            best.assign(text, strnlen(text, e.size));
            best_arch = e.arch;
        }
        p += e.header_size + e.size;
    }
    if (best.empty()) {
        fprintf(stderr, "cudaemu: a binary has no PTX for compute_%d or less%s\n", arch().cc, is_packed ? ": it is compressed, build with nvcc --no-compress" : "");
    }
    return best;
}

Function * function_of(const void * p) {
    const std::lock_guard<std::recursive_mutex> hold(lock());
    Registry & r = registry();
    if (r.handles.count(p)) { return (Function *) p; }
    const auto it = r.functions.find(p);
    return it == r.functions.end() ? nullptr : it->second.get();
}

const Kernel * load(Function & f) {
    const std::lock_guard<std::recursive_mutex> hold(lock());
    if (!f.kernel) {
        if (!f.binary->module) {
            const std::string text = ptx_of(f.binary->data);
            if (text.empty()) { return nullptr; }
            f.binary->module = module_of_text(text);
        }
        f.kernel = kernel(f.binary->module, f.name);
    }
    return f.kernel;
}

struct Grid { dim3 grid, block; size_t shared; };

// "" if the device can launch it
std::string excess(const Function & f, const KernelInfo & info, const Grid & g) {
    const uint64_t n = (uint64_t) g.block.x*g.block.y*g.block.z;
    if (info.static_shared + g.shared > SHARED_DEFAULT && (g.shared > f.dynamic_max || info.static_shared + g.shared > arch().shared_block)) {
        return "shared memory: " + std::to_string(info.static_shared) + " bytes static, " + std::to_string(g.shared) + " dynamic, " +
            std::to_string(f.dynamic_max) + " allowed by cudaFuncSetAttribute, " + std::to_string(arch().shared_block) + " at most";
    }
    if (n == 0 || n > 1024 || g.block.z > 64 || (info.max_threads && n > info.max_threads)) {
        return "threads: " + std::to_string(n) + ", at most " + std::to_string(info.max_threads ? info.max_threads : 1024);
    }
    if ((uint64_t) g.grid.x*g.grid.y*g.grid.z == 0 || g.grid.x > 0x7fffffff || g.grid.y > 65535 || g.grid.z > 65535) {
        return "blocks: " + std::to_string(g.grid.x) + " x " + std::to_string(g.grid.y) + " x " + std::to_string(g.grid.z);
    }
    return "";
}

std::shared_ptr<std::vector<uint64_t>> packed(const KernelInfo & info, void ** args) {
    auto params = std::make_shared<std::vector<uint64_t>>((info.params_size + 7)/8 + 1);
    for (uint32_t i = 0; i < info.n_params; i++) { memcpy((uint8_t *) params->data() + info.params[i].offset, args[i], info.params[i].size); }
    return params;
}

cudaError_t run_counted(Function & f, const Launch & l) {
    const auto start = std::chrono::steady_clock::now();
    const Result r = run(l);
    f.n_launch++;
    f.seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    if (r != Result::OK) { set_sticky(r == Result::FAULT ? cudaErrorIllegalAddress : cudaErrorLaunchFailure); }
    return sticky();
}

cudaError_t launch(const void * func, const Grid & g, void ** args, cudaStream_t stream, bool is_cooperative) {
    Function * f = function_of(func);
    if (!f) { return refuse(cudaErrorInvalidDeviceFunction, "launch of an unknown kernel"); }
    if (sticky() != cudaSuccess) { return done(sticky()); }
    const Kernel * k = load(*f);
    if (!k) { return done(cudaErrorInvalidKernelImage); }
    const std::string why = excess(*f, *k->info, g);
    if (!why.empty()) { return refuse(cudaErrorInvalidConfiguration, demangled(f->name) + ": " + why); }
    const auto params = packed(*k->info, args);
    const int  device = current_device();
    return enqueue(stream, { Kind::KERNEL, is_cooperative, [=] {
        return run_counted(*f, { k, { g.grid.x, g.grid.y, g.grid.z }, { g.block.x, g.block.y, g.block.z }, (uint32_t) g.shared, params->data(),
            is_cooperative, device });
    } });
}

// registers of a thread that ptxas may give at most
uint32_t most_registers(const KernelInfo & info) {
    const uint32_t threads = info.max_threads ? info.max_threads*std::max(1u, info.min_blocks) : 256;
    return std::min(255u, REGISTERS_SM/threads & ~7u);
}

int blocks_at_once(const KernelInfo & info, uint32_t threads, size_t dynamic) {
    const Arch & a = arch();
    const uint32_t reserved = a.cc >= 80 ? 1024 : 0;
    const size_t shared = info.static_shared + dynamic + reserved;
    if (threads == 0 || threads > 1024 || info.static_shared + dynamic > a.shared_block) { return 0; }
    const uint32_t warps = (threads + 31)/32;
    return (int) std::min({ a.blocks_sm, a.threads_sm/(warps*32), REGISTERS_SM/(most_registers(info)*warps*32), (uint32_t) (a.shared_sm/std::max<size_t>(shared, 1)) });
}

struct Configuration { dim3 grid, block; size_t shared; cudaStream_t stream; };
thread_local std::vector<Configuration> configurations;

} // namespace

} // namespace emu

using namespace emu;

extern "C" {

void ** CUDARTAPI __cudaRegisterFatBinary(void * p) {
    struct Wrapper { uint32_t magic, version; const uint8_t * data; void * more; };
    return (void **) new Binary{ ((const Wrapper *) p)->data };
}
void CUDARTAPI __cudaRegisterFatBinaryEnd(void **) {}
void CUDARTAPI __cudaUnregisterFatBinary(void **) {}
char CUDARTAPI __cudaInitModule(void **) { return 1; }
void CUDARTAPI __cudaRegisterFunction(void ** handle, const char * host, char *, const char * name, int, uint3 *, uint3 *, dim3 *, dim3 *, int *) {
    const std::lock_guard<std::recursive_mutex> hold(lock());
    Registry & r = registry();
    auto & f = r.functions[host];
    f.reset(new Function{ (Binary *) handle, name });
    r.handles.insert(f.get());
}
void CUDARTAPI __cudaRegisterVar(void ** handle, char * host, char *, const char * name, int, size_t, int, int) {
    registry().variables[host] = { (Binary *) handle, name };
}
void CUDARTAPI __cudaRegisterManagedVar(void **, void **, char *, const char * name, int, size_t, int, int) {
    fprintf(stderr, "cudaemu: managed variable %s: not emulated\n", name);
}

unsigned CUDARTAPI __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, struct CUstream_st * stream) {
    configurations.push_back({ grid, block, shared, stream });
    return 0;
}
cudaError_t CUDARTAPI __cudaPopCallConfiguration(dim3 * grid, dim3 * block, size_t * shared, void * stream) {
    if (configurations.empty()) { return cudaErrorMissingConfiguration; }
    const Configuration c = configurations.back();
    configurations.pop_back();
    *grid = c.grid;
    *block = c.block;
    *shared = c.shared;
    *(cudaStream_t *) stream = c.stream;
    return cudaSuccess;
}
cudaError_t CUDARTAPI __cudaGetKernel(cudaKernel_t * kernel, const void * host) {
    Function * f = function_of(host);
    *kernel = (cudaKernel_t) f;
    return f ? cudaSuccess : done(cudaErrorInvalidDeviceFunction);
}
cudaError_t CUDARTAPI __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void ** args, size_t shared, cudaStream_t stream) {
    return launch(kernel, { grid, block, shared }, args, stream, false);
}
cudaError_t CUDARTAPI cudaLaunchKernel(const void * func, dim3 grid, dim3 block, void ** args, size_t shared, cudaStream_t stream) {
    return launch(func, { grid, block, shared }, args, stream, false);
}
cudaError_t CUDARTAPI cudaLaunchCooperativeKernel(const void * func, dim3 grid, dim3 block, void ** args, size_t shared, cudaStream_t stream) {
    return launch(func, { grid, block, shared }, args, stream, true);
}
cudaError_t CUDARTAPI cudaLaunchKernelExC(const cudaLaunchConfig_t * c, const void * func, void ** args) {
    bool is_cooperative = false;
    for (unsigned i = 0; i < c->numAttrs; i++) {
        is_cooperative |= c->attrs[i].id == cudaLaunchAttributeCooperative && c->attrs[i].val.cooperative;
        if (c->attrs[i].id == cudaLaunchAttributeClusterDimension) { return refuse(cudaErrorNotSupported, "clusters: not emulated"); }
    }
    return launch(func, { c->gridDim, c->blockDim, c->dynamicSmemBytes }, args, c->stream, is_cooperative);
}

cudaError_t CUDARTAPI cudaGetSymbolAddress(void ** p, const void * symbol) {
    const auto & all = registry().variables;
    const auto it = all.find(symbol);
    *p = it == all.end() || !it->second.first->module ? nullptr : (void *) variable_address(it->second.first->module, it->second.second);
    return *p ? done(cudaSuccess) : refuse(cudaErrorInvalidSymbol, "cudaGetSymbolAddress: no kernel that uses the variable is loaded");
}
cudaError_t CUDARTAPI cudaFuncSetAttribute(const void * func, cudaFuncAttribute a, int v) {
    Function * f = function_of(func);
    if (!f) { return done(cudaErrorInvalidDeviceFunction); }
    if (a == cudaFuncAttributeMaxDynamicSharedMemorySize) {
        if (v < 0 || v > (int) arch().shared_block) {
            return refuse(cudaErrorInvalidValue, demangled(f->name) + ": " + std::to_string(v) + " bytes of shared memory, a block has " + std::to_string(arch().shared_block));
        }
        f->dynamic_max = (uint32_t) v;
    }
    return done(cudaSuccess);
}
cudaError_t CUDARTAPI cudaFuncGetAttributes(cudaFuncAttributes * a, const void * func) {
    Function * f = function_of(func);
    const Kernel * k = f ? load(*f) : nullptr;
    if (!k) { return done(cudaErrorInvalidDeviceFunction); }
    const KernelInfo & info = *k->info;
    memset(a, 0, sizeof(*a));
    a->sharedSizeBytes = info.static_shared;
    a->localSizeBytes = info.local_size;
    a->maxThreadsPerBlock = info.max_threads ? (int) info.max_threads : 1024;
    a->numRegs = (int) most_registers(info);
    a->ptxVersion = a->binaryVersion = arch().cc;
    a->maxDynamicSharedSizeBytes = f->dynamic_max ? (int) f->dynamic_max : (int) (SHARED_DEFAULT - info.static_shared);
    return done(cudaSuccess);
}
cudaError_t CUDARTAPI cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int * n, const void * func, int threads, size_t shared, unsigned) {
    Function * f = function_of(func);
    const Kernel * k = f ? load(*f) : nullptr;
    if (!k) { return done(cudaErrorInvalidDeviceFunction); }
    *n = blocks_at_once(*k->info, (uint32_t) threads, shared);
    return done(cudaSuccess);
}
cudaError_t CUDARTAPI cudaOccupancyMaxActiveBlocksPerMultiprocessor(int * n, const void * func, int threads, size_t shared) {
    return cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(n, func, threads, shared, 0);
}

} // extern "C"
