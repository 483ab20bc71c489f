// api.h: streams, graphs and kernels as the entry points of libcudart see them. What a stream does is a queue of work; CUDAEMU_LATE
// decides when it is done: with the call, or not before something waits for it.
#pragma once

#include "emulator.h"

#include <cuda_runtime_api.h>

#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace emu {

using Action = std::function<cudaError_t()>;

enum class Kind { KERNEL, COPY, FILL, HOST };

struct Work {
    Kind     kind;
    uint32_t form; // of a kernel: is it cooperative; of a copy: the memory types. A graph's update must not change it
    Action   run;  // may be called many times
};

struct Node {
    Work                work;
    std::vector<size_t> after; // earlier nodes that it waits for
};

using Nodes = std::vector<Node>;

} // namespace emu

struct CUgraph_st     { emu::Nodes nodes; };
struct CUgraphExec_st { std::shared_ptr<const emu::Nodes> nodes; };

struct CUstream_st {
    int                   device;
    bool                  is_blocking; // the default stream waits for it, and it for the default stream
    std::deque<emu::Action>  queue;
    uint64_t              n_queued = 0, n_done = 0;
    CUgraph_st *          capture = nullptr;
    bool                  is_origin = false;
    std::vector<size_t>   tail; // nodes of the capture that the next one waits for
};

struct CUevent_st { // of its last record
    int                                   device;
    std::shared_ptr<CUstream_st>          stream;
    uint64_t                              position = 0; // of the stream's queue
    CUgraph_st *                          capture = nullptr;
    std::vector<size_t>                   tail;
    std::chrono::steady_clock::time_point time;
};

namespace emu {

// ---- errors (device.cpp)

int                    setting(const char * name, int otherwise); // of the environment
std::recursive_mutex & lock();                   // of all that is global here
cudaError_t            sticky();                 // a kernel's fault: every later call returns it
void                   set_sticky(cudaError_t e);
cudaError_t            done(cudaError_t e);      // what a call returns
cudaError_t            refuse(cudaError_t e, const std::string & why); // the same, with a line on stderr

// ---- devices (device.cpp)

struct Arch { // limits of a compute capability
    int      cc;
    uint32_t shared_block;  // bytes of a block, where its kernel asks for more than SHARED_DEFAULT
    uint32_t shared_sm;
    uint32_t threads_sm, blocks_sm;
};

constexpr uint32_t SHARED_DEFAULT = 48 << 10, REGISTERS_SM = 65536, N_SM = 4;

const Arch & arch();           // CUDAEMU_ARCH
int          n_devices();      // CUDAEMU_DEVICES
size_t       device_memory();  // CUDAEMU_MEMORY
int          current_device();

// ---- streams (stream.cpp)

CUstream_st & stream_of(cudaStream_t stream);
std::shared_ptr<CUstream_st> shared_stream(cudaStream_t stream);

// puts the work behind all that the stream has to do; into the graph of a stream that is captured
cudaError_t enqueue(cudaStream_t stream, Work work);
void        finish(CUstream_st & stream);                       // all that it has to do
void        finish(CUstream_st & stream, uint64_t position);
void        finish_all();
bool        is_late();

void join_capture(CUstream_st & stream, const CUevent_st & event);
void end_capture(const CUgraph_st * graph);           // no stream is captured into it any more
bool is_joined(const CUgraph_st & graph, const CUstream_st & origin); // everything captured comes before the end of `origin`

// ---- memory (transfer.cpp)

// reports and returns an error where the bytes are not all device memory of one allocation
cudaError_t check_device_memory(const void * p, size_t bytes, const char * what);

// where the emulator may touch it
inline uint8_t * touch(const void * p) { return is_device(p) ? host((uint64_t) p) : (uint8_t *) p; }

} // namespace emu
