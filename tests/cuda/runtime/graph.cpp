// graph.cpp: capture, replay and update of graphs.
//
// A graph keeps what its streams were given while they were captured, with the parameters of that moment, and what each node waits
// for. With CUDAEMU_LATE=1 the nodes that may run run in the order in which the last captured comes first: a dependency
// that is missing shows.

#include "api.h"

#include <algorithm>
#include <atomic>
#include <cstring>

namespace emu {

namespace {

bool may_run(const Node & node, const std::vector<bool> & is_done) {
    return std::all_of(node.after.begin(), node.after.end(), [&](size_t i) { return is_done[i]; });
}

cudaError_t replay(const Nodes & nodes) {
    std::vector<bool> is_done(nodes.size(), false);
    for (size_t n = 0; n < nodes.size() && sticky() == cudaSuccess; n++) {
        size_t next = nodes.size();
        for (size_t i = 0; i < nodes.size() && (is_late() || next == nodes.size()); i++) {
            if (!is_done[i] && may_run(nodes[i], is_done)) { next = i; }
        }
        is_done[next] = true;
        nodes[next].work.run();
    }
    return sticky();
}

std::atomic<uint64_t> n_graphs{0}; // launched

// what the update of a graph must leave alone
cudaGraphExecUpdateResult difference(const Nodes & old, const Nodes & now) {
    if (old.size() != now.size()) { return cudaGraphExecUpdateErrorTopologyChanged; }
    for (size_t i = 0; i < old.size(); i++) {
        if (old[i].after != now[i].after) { return cudaGraphExecUpdateErrorTopologyChanged; }
        if (old[i].work.kind != now[i].work.kind) { return cudaGraphExecUpdateErrorNodeTypeChanged; }
        if (old[i].work.form != now[i].work.form) { return cudaGraphExecUpdateErrorParametersChanged; }
    }
    return cudaGraphExecUpdateSuccess;
}

} // namespace

} // namespace emu

using namespace emu;

extern "C" {

cudaError_t CUDARTAPI cudaStreamIsCapturing(cudaStream_t s, cudaStreamCaptureStatus * status) {
    *status = stream_of(s).capture ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    return done(cudaSuccess);
}
cudaError_t CUDARTAPI cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode) {
    const std::lock_guard<std::recursive_mutex> hold(lock());
    if (!s || s == cudaStreamLegacy) { return refuse(cudaErrorStreamCaptureUnsupported, "capture of the default stream"); }
    CUstream_st & stream = stream_of(s);
    if (stream.capture) { return refuse(cudaErrorIllegalState, "capture of a stream that is captured"); }
    stream.capture = new CUgraph_st;
    stream.is_origin = true;
    return done(cudaSuccess);
}
cudaError_t CUDARTAPI cudaStreamEndCapture(cudaStream_t s, cudaGraph_t * graph) {
    const std::lock_guard<std::recursive_mutex> hold(lock());
    CUstream_st & stream = stream_of(s);
    *graph = nullptr;
    if (!stream.capture || !stream.is_origin) { return refuse(cudaErrorIllegalState, "cudaStreamEndCapture without a capture"); }
    CUgraph_st * const made = stream.capture;
    const bool joined = is_joined(*made, stream);
    end_capture(made);
    if (!joined) {
        delete made;
        return refuse(cudaErrorStreamCaptureUnjoined, "a stream that joined the capture was not waited for");
    }
    *graph = made;
    return done(cudaSuccess);
}
cudaError_t CUDARTAPI cudaGraphInstantiate(cudaGraphExec_t * e, cudaGraph_t g, unsigned long long) {
    *e = new CUgraphExec_st{ std::make_shared<Nodes>(g->nodes) };
    return done(cudaSuccess);
}
cudaError_t CUDARTAPI cudaGraphExecUpdate(cudaGraphExec_t e, cudaGraph_t g, cudaGraphExecUpdateResultInfo * info) {
    const cudaGraphExecUpdateResult result = difference(*e->nodes, g->nodes);
    if (info) {
        memset(info, 0, sizeof(*info));
        info->result = result;
    }
    if (result != cudaGraphExecUpdateSuccess) { return done(cudaErrorGraphExecUpdateFailure); }
    e->nodes = std::make_shared<Nodes>(g->nodes);
    return done(cudaSuccess);
}
cudaError_t CUDARTAPI cudaGraphLaunch(cudaGraphExec_t e, cudaStream_t s) {
    if (stream_of(s).capture) { return refuse(cudaErrorNotSupported, "a graph within a graph: not emulated"); }
    n_graphs++;
    const auto nodes = e->nodes; // an update changes later launches only
    return enqueue(s, { Kind::KERNEL, 0, [nodes] { return replay(*nodes); } });
}
unsigned long long cudaemu_n_graphs() { return n_graphs; } // for tests
cudaError_t CUDARTAPI cudaGraphDestroy(cudaGraph_t g) { delete g; return done(cudaSuccess); }
cudaError_t CUDARTAPI cudaGraphExecDestroy(cudaGraphExec_t e) { delete e; return done(cudaSuccess); }

} // extern "C"
