// run.h: one thread block while it runs: its threads (fibers), warps, barriers, and what the checks know of shared memory. Inside
// of the emulator; run.cpp schedules, warp.cpp and matrix.cpp compute what lanes do together, checks.cpp reports.
#pragma once

#include "emulator.h"

#include <atomic>
#include <mutex>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace emu {

constexpr uint32_t WARP       = 32;
constexpr uint32_t MAX_THREAD = 1024;
constexpr uint32_t MAX_WARP   = MAX_THREAD/WARP;
constexpr uint32_t N_BARRIER  = 16;

enum State : uint8_t { READY, IN_WARP, AT_BARRIER, DONE };

struct Access { // of a thread to a byte of shared memory
    uint16_t thread; // index + 1, 0: none
    uint16_t atomic;
    uint32_t clock, syncs, site;
};
struct Shadow { Access write, read[2]; };

struct Copy { // cp.async: done when it is waited for
    uint64_t dst, src;
    uint32_t bytes, from_src, site; // what src lacks is zero
};

struct Run;

struct Lane : Thread {
    Run *    run;
    void *   sp;
    State    state;
    uint32_t op, mask, site;
    uint32_t bar;
    std::vector<Copy>   copies;
    std::vector<size_t> groups; // committed ones that nobody waited for: copies of each
};

struct Warp {
    uint32_t size, live, ready, waiting; // lanes
    uint32_t syncs;                      // __syncwarp() so far
    uint32_t clock[MAX_WARP];            // what it knows of each warp; its own: since the last barrier
};

struct Barrier {
    uint32_t arrived, expected;
    uint32_t n_true;
    uint32_t clock[MAX_WARP];
};

// which of several goes on: CUDAEMU_ORDER
struct Order {
    enum { FWD, REV, RAND } kind = FWD;
    std::mt19937 rng;

    Order();
    uint32_t pick(uint32_t bits, uint32_t after); // one of the bits, which are not 0
    uint64_t block(uint64_t i, uint64_t n) const; // the i-th block to run
};

struct Context { // of a launch
    const Launch *        launch;
    std::atomic<uint64_t> next_block{0};
    std::atomic<bool>     failed{false};
    std::string           name;
    std::mutex            mutex;
    std::set<std::pair<uint32_t, uint32_t>> races; // sites
};

struct Run {
    Block     block{};
    Context * context = nullptr;
    const KernelInfo * info = nullptr;
    std::vector<Lane> lanes;
    std::vector<Warp> warps;
    Barrier   bars[N_BARRIER];
    uint32_t  n = 0, live = 0;
    bool      failed = false;
    uint64_t  spins = 0;
    void *    scheduler = nullptr; // its stack pointer
    uint8_t * stacks = nullptr;
    size_t    stack_bytes = 0, n_stack = 0;
    std::vector<uint8_t> shared_bytes;
    std::vector<Shadow>  shadow;
    Order     order;

    Run() = default;
    ~Run();
    Run(const Run &) = delete;
    Run & operator=(const Run &) = delete;

    // run.cpp
    void prepare(Context & c);
    void start(uint64_t index);
    bool step();             // true: somebody could go on
    void leave(Lane & lane); // another thread goes on; returns when this one may
    void finish(Lane & lane);
    [[noreturn]] void abandon();
    // warp.cpp
    void check_warp(uint32_t w);
    // checks.cpp
    void fail(const std::string & text); // reported; nobody goes on
    void say(const std::string & text) const;
    std::string place(const Lane & lane, uint32_t site) const;

private:
    void make_stacks();
    void make_fiber(Lane & lane);
    void release(uint32_t id);
    void check_barrier(uint32_t id);
    void arrive_at(Lane & lane, uint32_t id, uint32_t count);
    void complete(Warp & warp, uint32_t w, uint32_t members);
    void deadlock();

    friend void rt_barrier(Thread *, uint32_t, uint32_t, uint32_t, uint32_t);
    friend void rt_arrive(Thread *, uint32_t, uint32_t, uint32_t);
};

using Lanes = Lane * [WARP]; // null: not there

// matrix.cpp; all 32 lanes
void do_ldmatrix(Lanes & x, uint32_t n, bool trans);
void do_movmatrix(Lanes & x);
bool do_mma(Lanes & x, uint32_t code); // D = A B + C; false: a shape that is not known

// of struct Rt
void      rt_collective(Thread * t, uint32_t op, uint32_t mask, uint32_t site);
void      rt_barrier(Thread * t, uint32_t id, uint32_t count, uint32_t reduce, uint32_t site);
void      rt_arrive(Thread * t, uint32_t id, uint32_t count, uint32_t site);
void      rt_spin(Thread * t);
void      rt_fault(Thread * t, uint32_t fault, uint64_t address, uint32_t bytes, uint32_t site);
uint8_t * rt_global(Thread * t, uint64_t address, uint32_t bytes, uint32_t site);
void      rt_race(Thread * t, uint32_t offset, uint32_t bytes, uint32_t access, uint32_t site);
void      rt_copy_async(Thread * t, uint64_t dst, uint64_t src, uint32_t bytes, uint32_t from_src, uint32_t site);
void      rt_copy_commit(Thread * t);
void      rt_copy_wait(Thread * t, uint32_t n_left); // groups that may be under way still
int32_t   rt_vprintf(Thread * t, uint64_t format, uint64_t arguments);

} // namespace emu
