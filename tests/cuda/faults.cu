// faults.cu: `faults NAME` does one thing that is wrong in a CUDA program; the emulator must say so, or the numbers must. `faults` alone
// does the same things as they are right. Exit code 0: what the program computed is right and no call failed.

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <vector>

#define CHECK(x) do { const cudaError_t status = (x); if (status != cudaSuccess) { printf("%s: %s\n", #x, cudaGetErrorString(status)); return 1; } } while (0)

static const int N = 1024;

static std::string wrong; // the name

static bool is_wrong(const char * name) { return wrong == name; }

__constant__ float OFFSETS[4] = { 1, 2, 3, 4 };

__global__ void axpy(float * y, const float * x, float a, int n) {
    const int i = blockIdx.x*blockDim.x + threadIdx.x;
    if (i < n) { y[i] += a*x[i] + OFFSETS[i%4]; }
}

__global__ void set(float * y, float a, int n) {
    const int i = blockIdx.x*blockDim.x + threadIdx.x;
    if (i < n) { y[i] = a; }
}

__global__ void read_vectors(float * y, const char * x, int offset) {
    const float4 v = *(const float4 *) (x + offset + 16*threadIdx.x);
    y[threadIdx.x] = v.x + v.y + v.z + v.w;
}

template <bool has_barrier> __global__ void sum(float * out, const float * x) { // one sum for each block of 256
    __shared__ float part[8];
    float s = x[blockIdx.x*256 + threadIdx.x];
    for (int m = 16; m > 0; m /= 2) { s += __shfl_xor_sync(0xffffffff, s, m); }
    if (threadIdx.x%32 == 0) { part[threadIdx.x/32] = s; }
    if (has_barrier) { __syncthreads(); }
    if (threadIdx.x == 0) {
        s = 0;
        for (float p : part) { s += p; }
        out[blockIdx.x] = s;
    }
}

__global__ void shared_unwritten(float * out, int n) {
    __shared__ float part[64];
    if ((int) threadIdx.x < n) { part[threadIdx.x] = 1; }
    __syncthreads();
    out[threadIdx.x] = part[threadIdx.x];
}

__global__ void divergent(float * out, int n) {
    __shared__ float part[64];
    part[threadIdx.x] = threadIdx.x;
    if ((int) threadIdx.x < n) { // n: 64, or half a warp
        __syncthreads();
        out[threadIdx.x] = part[63 - threadIdx.x];
    } else {
        asm volatile("bar.sync 0;");
        out[threadIdx.x] = part[threadIdx.x];
    }
}

__global__ void missed(float * out, int n) { // a barrier that waits for all, while some wait for a shuffle
    float x = threadIdx.x;
    if ((int) threadIdx.x < n) { asm volatile("bar.sync 1, 64;"); }
    if ((int) threadIdx.x >= n) { asm volatile("bar.sync 2, 64;"); }
    out[threadIdx.x] = x;
}

template <bool waits> __global__ void copied(float * out, const float * x) {
    __shared__ alignas(16) float part[32*4];
    const uint32_t dst = (uint32_t) __cvta_generic_to_shared(part + 4*threadIdx.x);
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" :: "r"(dst), "l"(x + 4*threadIdx.x) : "memory");
    asm volatile("cp.async.commit_group;" ::: "memory");
    if (waits) { asm volatile("cp.async.wait_group 0;" ::: "memory"); }
#else
    (void) dst, (void) x;
#endif
    out[threadIdx.x] = part[4*threadIdx.x];
}

__global__ void dynamic_shared(float * out) {
    extern __shared__ float words[];
    words[threadIdx.x] = threadIdx.x;
    out[threadIdx.x] = words[threadIdx.x];
}

struct device_array {
    float * p = nullptr;

    explicit device_array(int n) { if (cudaMalloc(&p, n*sizeof(float)) != cudaSuccess) { exit(3); } }
    device_array(const std::vector<float> & x) : device_array((int) x.size()) {
        if (cudaMemcpy(p, x.data(), x.size()*sizeof(float), cudaMemcpyHostToDevice) != cudaSuccess) { exit(3); }
    }
    ~device_array() { cudaFree(p); }

    std::vector<float> get(int n) const {
        std::vector<float> x(n);
        cudaDeviceSynchronize();
        cudaMemcpy(x.data(), p, n*sizeof(float), cudaMemcpyDeviceToHost);
        return x;
    }
};

static int expect(const std::vector<float> & x, const std::function<float(int)> & want) {
    for (int i = 0; i < (int) x.size(); i++) {
        if (!(x[i] == want(i))) {
            printf("wrong: element %d is %g, not %g\n", i, x[i], want(i));
            return 1;
        }
    }
    return 0;
}

static std::vector<float> numbers(int n) {
    std::vector<float> x(n);
    for (int i = 0; i < n; i++) { x[i] = (float) (i%7); }
    return x;
}

static int memory() {
    const std::vector<float> x = numbers(N);
    device_array dx(x), dy(std::vector<float>(N, 1));
    float * y = dy.p;
    float * freed;
    CHECK(cudaMalloc(&freed, N*sizeof(float)));
    CHECK(cudaFree(freed));
    std::vector<float> on_host(N, 1);
    if (is_wrong("freed")) { y = freed; }
    if (is_wrong("host-memory")) { y = on_host.data(); }
    if (is_wrong("device-memory")) { y[0] = 1; }
    axpy<<<5, 256>>>(y, dx.p, 2.0f, is_wrong("bounds") ? N + 1 : N);
    CHECK(cudaDeviceSynchronize());
    read_vectors<<<1, 32>>>(dx.p, (const char *) dy.p, is_wrong("alignment") ? 8 : 16);
    CHECK(cudaDeviceSynchronize());
    device_array unwritten(N);
    if (!is_wrong("unwritten")) { CHECK(cudaMemset(unwritten.p, 0, N*sizeof(float))); }
    axpy<<<4, 256>>>(unwritten.p, dy.p, 0.0f, N);
    return expect(dy.get(N), [&](int i) { return 1 + 2*x[i] + 1 + i%4; }) + expect(unwritten.get(N), [](int i) { return 1 + i%4; });
}

static int shared() {
    device_array dx(numbers(N)), ds(N), dt(64);
    (is_wrong("race") ? sum<false> : sum<true>)<<<N/256, 256>>>(ds.p, dx.p);
    CHECK(cudaDeviceSynchronize());
    shared_unwritten<<<1, 64>>>(dt.p, is_wrong("shared-unwritten") ? 63 : 64);
    CHECK(cudaDeviceSynchronize());
    divergent<<<1, 64>>>(dt.p, is_wrong("divergent-barrier") ? 16 : 64);
    CHECK(cudaDeviceSynchronize());
    missed<<<1, 64>>>(dt.p, is_wrong("missed-barrier") ? 32 : 64);
    CHECK(cudaDeviceSynchronize());
    cudaDeviceProp p;
    CHECK(cudaGetDeviceProperties(&p, 0));
    if (p.major >= 8) {
        (is_wrong("async-copy") ? copied<false> : copied<true>)<<<1, 32>>>(ds.p, dx.p);
        return expect(ds.get(32), [](int i) { return (float) (4*i%7); });
    }
    return 0;
}

static int limits() {
    cudaDeviceProp p;
    CHECK(cudaGetDeviceProperties(&p, 0));
    device_array dx(N);
    const int bytes = (int) p.sharedMemPerBlockOptin;
    if (!is_wrong("shared-opt-in")) { CHECK(cudaFuncSetAttribute(dynamic_shared, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes)); }
    dynamic_shared<<<1, 32, is_wrong("shared-size") ? bytes + 4 : bytes>>>(dx.p);
    CHECK(cudaGetLastError());
    dynamic_shared<<<dim3(1, is_wrong("grid") ? 65536 : 1), 32, 128>>>(dx.p);
    CHECK(cudaGetLastError());
    dynamic_shared<<<1, is_wrong("threads") ? 1056 : N, 4*N>>>(dx.p);
    CHECK(cudaGetLastError());
    CHECK(cudaDeviceSynchronize());
    return 0;
}

static int streams() {
    cudaStream_t a, b;
    cudaEvent_t event;
    CHECK(cudaStreamCreateWithFlags(&a, cudaStreamNonBlocking));
    CHECK(cudaStreamCreateWithFlags(&b, cudaStreamNonBlocking));
    CHECK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
    device_array dx(std::vector<float>(N, 0)), dy(std::vector<float>(N, 0));
    CHECK(cudaDeviceSynchronize());
    float * pinned;
    CHECK(cudaMallocHost(&pinned, N*sizeof(float)));
    set<<<4, 256, 0, a>>>(dx.p, 3, N);
    CHECK(cudaEventRecord(event, a));
    if (!is_wrong("missing-event")) { CHECK(cudaStreamWaitEvent(b, event, 0)); }
    CHECK(cudaMemcpyAsync(dy.p, dx.p, N*sizeof(float), cudaMemcpyDeviceToDevice, is_wrong("wrong-stream") ? nullptr : b));
    CHECK(cudaMemcpyAsync(pinned, dy.p, N*sizeof(float), cudaMemcpyDeviceToHost, b));
    if (!is_wrong("early-look")) { CHECK(cudaStreamSynchronize(b)); }
    const std::vector<float> seen(pinned, pinned + N);
    for (int i = 0; i < N; i++) { pinned[i] = 5; }
    CHECK(cudaMemcpyAsync(dx.p, pinned, N*sizeof(float), cudaMemcpyHostToDevice, b));
    if (!is_wrong("early-write")) { CHECK(cudaStreamSynchronize(b)); }
    for (int i = 0; i < N; i++) { pinned[i] = 6; }
    int bad = expect(seen, [](int) { return 3.0f; }) + expect(dx.get(N), [](int) { return 5.0f; });
    CHECK(cudaFreeHost(pinned));
    set<<<4, 256, 0, a>>>(dx.p, 4, N); // the same, and the host waits for the first stream first
    CHECK(cudaEventRecord(event, a));
    if (!is_wrong("missing-event-of-the-first")) { CHECK(cudaStreamWaitEvent(b, event, 0)); }
    CHECK(cudaMemcpyAsync(dy.p, dx.p, N*sizeof(float), cudaMemcpyDeviceToDevice, b));
    CHECK(cudaStreamSynchronize(a));
    bad += expect(dy.get(N), [](int) { return 4.0f; });
    return bad;
}

static int devices() {
    int n;
    CHECK(cudaGetDeviceCount(&n));
    if (n < 2) { return 0; }
    cudaStream_t first;
    CHECK(cudaStreamCreateWithFlags(&first, cudaStreamNonBlocking));
    device_array dx(std::vector<float>(N, 0));
    CHECK(cudaDeviceSynchronize());
    if (is_wrong("stream-of-other-device")) { CHECK(cudaSetDevice(1)); }
    set<<<4, 256, 0, first>>>(dx.p, 3, N);
    CHECK(cudaGetLastError());
    CHECK(cudaStreamSynchronize(first));
    CHECK(cudaSetDevice(1));
    CHECK(cudaMemcpyAsync(dx.p, dx.p + N/2, N/2*sizeof(float), cudaMemcpyDeviceToDevice, first)); // copies may be of any device
    CHECK(cudaStreamSynchronize(first));
    if (!is_wrong("no-peer")) { CHECK(cudaDeviceEnablePeerAccess(0, 0)); }
    device_array dy(std::vector<float>(N, 0));
    axpy<<<4, 256>>>(dy.p, dx.p, 1.0f, N);
    CHECK(cudaDeviceSynchronize());
    const int bad = expect(dy.get(N), [](int i) { return 3.0f + 1 + i%4; });
    CHECK(cudaSetDevice(0));
    return bad;
}

// y = value everywhere, by a branch of its own; then x += y
static int capture(cudaStream_t main, cudaStream_t side, cudaEvent_t * events, float * x, float * y, float value, int n_nodes, cudaGraph_t * graph) {
    CHECK(cudaStreamBeginCapture(main, cudaStreamCaptureModeRelaxed));
    set<<<4, 256, 0, main>>>(x, 0, N);
    CHECK(cudaEventRecord(events[0], main));
    CHECK(cudaStreamWaitEvent(side, events[0], 0));
    set<<<4, 256, 0, side>>>(y, value, N);
    if (is_wrong("sync-in-capture")) { CHECK(cudaStreamSynchronize(main)); }
    CHECK(cudaEventRecord(events[1], side));
    if (!is_wrong("unjoined-capture")) { CHECK(cudaStreamWaitEvent(main, events[1], 0)); }
    for (int i = 0; i < n_nodes; i++) { axpy<<<4, 256, 0, main>>>(x, y, 1, N); }
    CHECK(cudaStreamEndCapture(main, graph));
    return 0;
}

static int graphs() {
    cudaStream_t main, side;
    cudaEvent_t  events[2];
    cudaGraph_t  graph, other, longer;
    cudaGraphExec_t exec;
    cudaGraphExecUpdateResultInfo info;
    CHECK(cudaStreamCreateWithFlags(&main, cudaStreamNonBlocking));
    CHECK(cudaStreamCreateWithFlags(&side, cudaStreamNonBlocking));
    for (cudaEvent_t & e : events) { CHECK(cudaEventCreateWithFlags(&e, cudaEventDisableTiming)); }
    device_array dx(N), dy(N);
    if (capture(main, side, events, dx.p, dy.p, 1, 1, &graph)) { return 1; }
    if (capture(main, side, events, dx.p, dy.p, 2, 1, &other)) { return 1; }
    if (capture(main, side, events, dx.p, dy.p, 2, 2, &longer)) { return 1; }
    CHECK(cudaGraphInstantiate(&exec, graph, 0));
    CHECK(cudaGraphLaunch(exec, main));
    CHECK(cudaStreamSynchronize(main));
    int bad = expect(dx.get(N), [](int i) { return 1.0f + 1 + i%4; });
    if (!is_wrong("stale-graph")) { CHECK(cudaGraphExecUpdate(exec, is_wrong("other-graph") ? longer : other, &info)); }
    CHECK(cudaGraphLaunch(exec, main));
    CHECK(cudaStreamSynchronize(main));
    bad += expect(dx.get(N), [](int i) { return 2.0f + 1 + i%4; });
    return bad;
}

int main(int argc, char ** argv) {
    wrong = argc > 1 ? argv[1] : "";
    return memory() || shared() || limits() || streams() || devices() || graphs() ? 1 : 0;
}
