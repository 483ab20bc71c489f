// stream.cpp: streams and events.
//
// Environment: CUDAEMU_LATE  0 (default): work is done with the call
//                            1: it waits in its stream until something waits for it, an event, a synchronisation, a copy to
//                            pageable memory
//                            2: the same, and whatever else may be done is done before what is waited for
//
// Late, a stream that forgets to wait for another one, and host code that looks too early, find POISON or yesterday's bytes: of two
// streams that should be ordered, 1 does the one first that the host waits for first, 2 the other one.

#include "api.h"

#include <algorithm>
#include <map>

namespace emu {

namespace {

using Streams = std::map<CUstream_st *, std::shared_ptr<CUstream_st>>;

Streams & streams() { static Streams * s = new Streams; return *s; }

std::shared_ptr<CUstream_st> make_stream(int device, bool is_blocking) {
    const std::lock_guard<std::recursive_mutex> hold(lock());
    auto s = std::make_shared<CUstream_st>();
    s->device = device;
    s->is_blocking = is_blocking;
    streams()[s.get()] = s;
    return s;
}

std::shared_ptr<CUstream_st> default_stream() {
    static std::shared_ptr<CUstream_st> all[MAX_DEVICES];
    const std::lock_guard<std::recursive_mutex> hold(lock());
    auto & s = all[current_device()];
    if (!s) { s = make_stream(current_device(), false); }
    return s;
}

std::shared_ptr<CUstream_st> thread_stream() {
    static thread_local std::shared_ptr<CUstream_st> all[MAX_DEVICES];
    auto & s = all[current_device()];
    if (!s) { s = make_stream(current_device(), true); }
    return s;
}

void push(CUstream_st & s, Action run) {
    s.queue.push_back(std::move(run));
    s.n_queued++;
}

void wait_for(CUstream_st & s, const std::shared_ptr<CUstream_st> & other, uint64_t position) {
    if (other.get() == &s || other->n_done >= position) { return; }
    push(s, [other, position] { finish(*other, position); return cudaSuccess; });
}

bool is_default(const CUstream_st & s) { return &s == default_stream().get(); }

// the default stream and blocking ones wait for each other
void order_default(CUstream_st & s) {
    if (is_default(s)) {
        for (const auto & [_, other] : streams()) {
            if (other->is_blocking && other->device == s.device) { wait_for(s, other, other->n_queued); }
        }
    } else if (s.is_blocking) {
        const auto first = default_stream();
        if (first->device == s.device) { wait_for(s, first, first->n_queued); }
    }
}

bool breaks_capture(const CUstream_st & s) {
    return is_default(s) && std::any_of(streams().begin(), streams().end(), [&](const auto & other) {
        return other.second->is_blocking && other.second->capture && other.second->device == s.device;
    });
}

} // namespace

bool is_late() { static const bool is = setting("CUDAEMU_LATE", 0) != 0; return is; }

std::shared_ptr<CUstream_st> shared_stream(cudaStream_t stream) {
    if (!stream || stream == cudaStreamLegacy) { return default_stream(); }
    if (stream == cudaStreamPerThread) { return thread_stream(); }
    const std::lock_guard<std::recursive_mutex> hold(lock());
    return streams().at(stream);
}

CUstream_st & stream_of(cudaStream_t stream) { return *shared_stream(stream); }

cudaError_t enqueue(cudaStream_t stream, Work work) {
    const std::lock_guard<std::recursive_mutex> hold(lock());
    CUstream_st & s = stream_of(stream);
    if (work.kind == Kind::KERNEL && s.device != current_device()) { // copies may be of any device
        return refuse(cudaErrorInvalidResourceHandle, "work for a stream of device " + std::to_string(s.device) + " while device " +
            std::to_string(current_device()) + " is set");
    }
    if (s.capture) {
        s.capture->nodes.push_back({ std::move(work), s.tail });
        s.tail = { s.capture->nodes.size() - 1 };
        return done(cudaSuccess);
    }
    if (breaks_capture(s)) { return refuse(cudaErrorStreamCaptureImplicit, "the default stream would wait for one that is captured"); }
    order_default(s);
    push(s, std::move(work.run));
    if (!is_late()) { finish(s); }
    return done(cudaSuccess);
}

void finish(CUstream_st & s, uint64_t position) {
    const std::lock_guard<std::recursive_mutex> hold(lock());
    static bool is_within = false; // what a stream waits for has its own place
    if (setting("CUDAEMU_LATE", 0) == 2 && !is_within && s.n_done < position) {
        is_within = true;
        for (const auto & [_, other] : streams()) {
            if (other.get() != &s) { finish(*other); }
        }
        is_within = false;
    }
    while (s.n_done < position) {
        const Action run = std::move(s.queue.front());
        s.queue.pop_front();
        s.n_done++;
        if (sticky() == cudaSuccess) { run(); }
    }
}

void finish(CUstream_st & s) { finish(s, s.n_queued); }

void finish_all() {
    const std::lock_guard<std::recursive_mutex> hold(lock());
    for (const auto & [_, s] : streams()) { finish(*s); }
}

void join_capture(CUstream_st & s, const CUevent_st & event) {
    s.capture = event.capture;
    for (const size_t node : event.tail) {
        if (std::find(s.tail.begin(), s.tail.end(), node) == s.tail.end()) { s.tail.push_back(node); }
    }
}

void end_capture(const CUgraph_st * graph) {
    for (const auto & [_, s] : streams()) {
        if (s->capture == graph) {
            s->capture = nullptr;
            s->is_origin = false;
            s->tail.clear();
        }
    }
}

bool is_joined(const CUgraph_st & graph, const CUstream_st & origin) {
    std::vector<bool> is_before(graph.nodes.size(), false);
    for (const size_t node : origin.tail) { is_before[node] = true; }
    for (size_t i = graph.nodes.size(); i-- > 0;) {
        if (!is_before[i]) { return false; }
        for (const size_t node : graph.nodes[i].after) { is_before[node] = true; }
    }
    return true;
}

namespace {

// of a poll: whoever asks again and again sees it end
cudaError_t query(CUstream_st & s, uint64_t position) {
    const std::lock_guard<std::recursive_mutex> hold(lock());
    if (s.n_done >= position) { return done(cudaSuccess); }
    finish(s, s.n_done + 1);
    return cudaErrorNotReady;
}

cudaError_t refuse_captured(const char * call) {
    return refuse(cudaErrorStreamCaptureUnsupported, std::string(call) + " of a stream that is captured");
}

} // namespace

} // namespace emu

using namespace emu;

extern "C" {

cudaError_t CUDARTAPI cudaStreamCreateWithFlags(cudaStream_t * s, unsigned flags) {
    *s = make_stream(current_device(), !(flags & cudaStreamNonBlocking)).get();
    return done(cudaSuccess);
}
cudaError_t CUDARTAPI cudaStreamCreate(cudaStream_t * s) { return cudaStreamCreateWithFlags(s, cudaStreamDefault); }
cudaError_t CUDARTAPI cudaStreamDestroy(cudaStream_t s) {
    const std::lock_guard<std::recursive_mutex> hold(lock());
    finish(stream_of(s));
    streams().erase(s);
    return done(cudaSuccess);
}
cudaError_t CUDARTAPI cudaStreamSynchronize(cudaStream_t s) {
    CUstream_st & stream = stream_of(s);
    if (stream.capture) { return refuse_captured("cudaStreamSynchronize"); }
    if (is_default(stream)) { order_default(stream); }
    finish(stream);
    return done(cudaSuccess);
}
cudaError_t CUDARTAPI cudaStreamQuery(cudaStream_t s) {
    CUstream_st & stream = stream_of(s);
    return stream.capture ? refuse_captured("cudaStreamQuery") : query(stream, stream.n_queued);
}
cudaError_t CUDARTAPI cudaDeviceSynchronize() { finish_all(); return done(cudaSuccess); }

cudaError_t CUDARTAPI cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned) {
    const std::lock_guard<std::recursive_mutex> hold(lock());
    CUstream_st & stream = stream_of(s);
    if (e->capture) {
        if (stream.capture && stream.capture != e->capture) { return refuse(cudaErrorStreamCaptureMerge, "a capture waits for another one"); }
        join_capture(stream, *e);
    } else if (stream.capture) {
        if (e->stream) { return refuse(cudaErrorStreamCaptureIsolation, "a capture waits for what is no part of it"); }
    } else if (e->stream) {
        wait_for(stream, e->stream, e->position);
        if (!is_late()) { finish(stream); }
    }
    return done(cudaSuccess);
}

cudaError_t CUDARTAPI cudaEventCreateWithFlags(cudaEvent_t * e, unsigned) {
    *e = new CUevent_st;
    (*e)->device = current_device();
    return done(cudaSuccess);
}
cudaError_t CUDARTAPI cudaEventCreate(cudaEvent_t * e) { return cudaEventCreateWithFlags(e, cudaEventDefault); }
cudaError_t CUDARTAPI cudaEventDestroy(cudaEvent_t e) { delete e; return done(cudaSuccess); }
cudaError_t CUDARTAPI cudaEventRecord(cudaEvent_t e, cudaStream_t s) {
    const std::lock_guard<std::recursive_mutex> hold(lock());
    const auto stream = shared_stream(s);
    if (stream->device != e->device) { return refuse(cudaErrorInvalidResourceHandle, "cudaEventRecord: event and stream are of different devices"); }
    e->capture = stream->capture;
    e->tail    = stream->tail;
    e->stream  = stream->capture ? nullptr : stream;
    order_default(*stream);
    e->position = stream->n_queued;
    if (!is_late()) { finish(*stream); }
    e->time = std::chrono::steady_clock::now();
    return done(cudaSuccess);
}
cudaError_t CUDARTAPI cudaEventSynchronize(cudaEvent_t e) {
    if (e->capture) { return refuse(cudaErrorCapturedEvent, "cudaEventSynchronize of an event that was captured"); }
    if (e->stream) { finish(*e->stream, e->position); }
    return done(cudaSuccess);
}
cudaError_t CUDARTAPI cudaEventQuery(cudaEvent_t e) { return e->stream ? query(*e->stream, e->position) : done(cudaSuccess); }
cudaError_t CUDARTAPI cudaEventElapsedTime(float * ms, cudaEvent_t a, cudaEvent_t b) {
    *ms = std::chrono::duration<float, std::milli>(b->time - a->time).count();
    return done(cudaSuccess);
}
cudaError_t CUDARTAPI cudaLaunchHostFunc(cudaStream_t s, cudaHostFn_t f, void * data) {
    return enqueue(s, { Kind::HOST, 0, [=] { f(data); return cudaSuccess; } });
}

} // extern "C"
