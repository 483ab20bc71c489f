// run.cpp: runs the threads of a block: fibers, whose turn it is, barriers.
//
// Environment: CUDAEMU_ORDER    fwd (default), rev, rand:SEED: which block, warp and lane goes on where several can

#include "run.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include <sys/mman.h>

extern "C" void emu_switch(void ** from, void * to);
extern "C" void emu_fiber_start();
asm(R"(
.text
.globl emu_switch
.type emu_switch, @function
emu_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emu_switch, .-emu_switch
.globl emu_fiber_start
.type emu_fiber_start, @function
emu_fiber_start:
    movq %r12, %rdi
    call *%r13
    ud2
.size emu_fiber_start, .-emu_fiber_start
)");

namespace emu {

namespace {

constexpr size_t   STACK    = 256 << 10; // and what the kernel's local variables need
constexpr size_t   PAGE     = 4096;
constexpr uint32_t N_SM     = 4;
constexpr uint64_t SPIN_MAX = 1 << 20;   // rounds in which all that happens is waiting

const Rt RT = {
    rt_collective, rt_barrier, rt_arrive, rt_fault, rt_global, rt_race, rt_copy_async, rt_copy_commit, rt_copy_wait, rt_vprintf, rt_spin,
};

void fiber_main(Lane * lane) {
    Run & run = *lane->run;
    if (run.info->meets) {
        run.info->run(lane);
        rt_copy_wait(lane, 0);
    } else { // one fiber for all of them
        for (uint32_t i = 0; i < run.n; i++) {
            Lane & l = run.lanes[i];
            l.stack_lo = lane->stack_lo;
            l.stack_hi = lane->stack_hi;
            run.info->run(&l);
            rt_copy_wait(&l, 0);
        }
        run.live = 1;
        for (Warp & w : run.warps) { w.ready = w.live = 0; }
        run.warps[0].live = 1;
    }
    run.finish(*lane);
    __builtin_unreachable();
}

} // namespace

// ------------------------------------------------------------------------------------------------ order

Order::Order() {
    const char * s = getenv("CUDAEMU_ORDER");
    if (s && strcmp(s, "rev") == 0) { kind = REV; }
    if (s && strncmp(s, "rand:", 5) == 0) { kind = RAND; rng.seed((unsigned) atoi(s + 5)); }
}

uint32_t Order::pick(uint32_t bits, uint32_t after) {
    if (kind == REV) { return 31 - __builtin_clz(bits); }
    if (kind == RAND) {
        for (uint32_t n = rng() % __builtin_popcount(bits); n > 0; n--) { bits &= bits - 1; }
        return __builtin_ctz(bits);
    }
    const uint32_t later = after < 31 ? bits & ~((2u << after) - 1) : 0;
    return __builtin_ctz(later ? later : bits);
}

uint64_t Order::block(uint64_t i, uint64_t n) const {
    return kind == FWD ? i : n - 1 - i;
}

// ------------------------------------------------------------------------------------------------ a block begins

Run::~Run() {
    if (stacks) { munmap(stacks, stack_bytes*n_stack); }
}

void Run::make_stacks() {
    const size_t want  = STACK + ((info->local_size + PAGE - 1) & ~(PAGE - 1));
    const size_t count = info->meets ? n : 1;
    if (want <= stack_bytes && count <= n_stack) { return; }
    if (stacks) { munmap(stacks, stack_bytes*n_stack); }
    stack_bytes = std::max(want, stack_bytes);
    n_stack = std::max(count, n_stack);
    stacks = (uint8_t *) mmap(nullptr, stack_bytes*n_stack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stacks == MAP_FAILED) { perror("cudaemu: stacks"); abort(); }
    for (size_t i = 0; i < n_stack; i++) { mprotect(stacks + i*stack_bytes, PAGE, PROT_NONE); }
}

void Run::prepare(Context & c) {
    context = &c;
    const Launch & l = *c.launch;
    info = l.kernel->info;
    n = l.block[0]*l.block[1]*l.block[2];
    block.rt = &RT;
    block.ranges = ranges(l.device);
    block.vars = l.kernel->vars.data();
    block.dynamic_size = l.dynamic_shared;
    block.shared_size = info->static_shared + l.dynamic_shared;
    block.params = (const uint8_t *) l.params;
    block.params_size = info->params_size;
    block.n_sm = N_SM;
    block.race = checks_shared();
    for (int i = 0; i < 3; i++) { block.ntid[i] = l.block[i]; block.nctaid[i] = l.grid[i]; }
    shared_bytes.resize(block.shared_size + 256);
    block.shared = (uint8_t *) (((uintptr_t) shared_bytes.data() + 127) & ~(uintptr_t) 127);
    make_stacks();
    lanes.resize(n);
    warps.resize((n + WARP - 1)/WARP);
}

void Run::make_fiber(Lane & lane) {
    uint8_t * lo = stacks + (info->meets ? lane.index : 0)*stack_bytes;
    lane.stack_lo = (uint64_t) lo + PAGE;
    lane.stack_hi = (uint64_t) lo + stack_bytes;
    uint64_t * s = (uint64_t *) lane.stack_hi - 9; // r15 r14 r13 r12 rbx rbp, return address; the stack is then aligned
    s[0] = s[1] = 0;
    s[2] = (uint64_t) (void (*)(Lane *)) fiber_main;
    s[3] = (uint64_t) &lane;
    s[4] = s[5] = 0;
    s[6] = (uint64_t) emu_fiber_start;
    lane.sp = s;
}

void Run::start(uint64_t index) {
    const Launch & l = *context->launch;
    block.ctaid[0] = (uint32_t) (index % l.grid[0]);
    block.ctaid[1] = (uint32_t) (index / l.grid[0] % l.grid[1]);
    block.ctaid[2] = (uint32_t) (index / l.grid[0] / l.grid[1]);
    block.sm = (uint32_t) (index % N_SM);
    memset(block.shared, POISON, block.shared_size);
    memset(bars, 0, sizeof(bars));
    shadow.clear();
    live = n;
    failed = false;
    spins = 0;
    for (uint32_t w = 0; w < warps.size(); w++) {
        Warp & warp = warps[w];
        warp = {};
        warp.size  = std::min(WARP, n - w*WARP);
        warp.live  = warp.size == WARP ? 0xffffffff : (1u << warp.size) - 1;
        warp.ready = info->meets ? warp.live : w == 0;
        warp.clock[w] = 1;
    }
    for (uint32_t i = 0; i < n; i++) {
        Lane & lane = lanes[i];
        lane.run = this;
        lane.block = &block;
        lane.tid[0] = i % l.block[0];
        lane.tid[1] = i / l.block[0] % l.block[1];
        lane.tid[2] = i / l.block[0] / l.block[1];
        lane.lane = i % WARP;
        lane.warp = i / WARP;
        lane.index = i;
        lane.state = READY;
        lane.copies.clear();
        lane.groups.clear();
        if (info->meets || i == 0) { make_fiber(lane); }
    }
}

// ------------------------------------------------------------------------------------------------ whose turn it is

bool Run::step() {
    bool moved = false;
    const uint32_t n_warp = (uint32_t) warps.size();
    const uint32_t first = order.kind == Order::RAND ? order.rng() % n_warp : 0;
    for (uint32_t i = 0; i < n_warp && !failed; i++) {
        const uint32_t w = order.kind == Order::REV ? n_warp - 1 - i : (i + first) % n_warp;
        if (warps[w].ready) { // it runs ahead of the others as far as it can, so that a barrier that is missing shows
            moved = true;
            const uint32_t l = order.pick(warps[w].ready, 31);
            emu_switch(&scheduler, lanes[w*WARP + l].sp);
        }
    }
    if (!moved && live && !failed) { deadlock(); }
    return moved;
}

void Run::leave(Lane & lane) {
    Warp & warp = warps[lane.warp];
    if (!warp.ready) {
        emu_switch(&lane.sp, scheduler);
        return;
    }
    Lane & next = lanes[lane.warp*WARP + order.pick(warp.ready, lane.lane)];
    if (&next != &lane) { emu_switch(&lane.sp, next.sp); }
}

void Run::finish(Lane & lane) {
    Warp & warp = warps[lane.warp];
    const uint32_t bit = 1u << lane.lane;
    lane.state = DONE;
    warp.live  &= ~bit;
    warp.ready &= ~bit;
    live--;
    spins = 0;
    if (info->meets) {
        if (warp.waiting) { check_warp(lane.warp); }
        for (uint32_t id = 0; id < N_BARRIER; id++) {
            if (bars[id].arrived) { check_barrier(id); }
        }
    }
    void * unused;
    emu_switch(&unused, warp.ready && !failed ? lanes[lane.warp*WARP + order.pick(warp.ready, lane.lane)].sp : scheduler);
}

void Run::abandon() {
    void * unused;
    emu_switch(&unused, scheduler);
    __builtin_unreachable();
}

void Run::deadlock() {
    std::string text = "deadlock: nobody can go on";
    uint32_t told = 0;
    for (const Lane & lane : lanes) {
        if (lane.state == DONE || (lane.index && lanes[lane.index - 1].state == lane.state && lanes[lane.index - 1].site == lane.site)) { continue; }
        text += "\n    waits at a " + std::string(lane.state == AT_BARRIER ? "barrier: " : lane.state == IN_WARP ? "warp instruction: " : "?: ") + place(lane, lane.site);
        if (++told == 8) { break; }
    }
    fail(text);
}

// ------------------------------------------------------------------------------------------------ barriers

void Run::release(uint32_t id) {
    Barrier & b = bars[id];
    const Barrier done = b;
    memset(&b, 0, sizeof(b));
    for (uint32_t w = 0; w < warps.size(); w++) {
        Warp & warp = warps[w];
        bool any = false;
        uint32_t site = 0;
        for (uint32_t l = 0; l < warp.size; l++) {
            Lane & lane = lanes[w*WARP + l];
            if (lane.state != AT_BARRIER || lane.bar != id) { continue; }
            if (any && lane.site != site) {
                fail("lanes of a warp come to different barriers: " + place(lane, lane.site) + " and line " + std::to_string(info->sites[site].ptx_line));
            }
            any = true;
            site = lane.site;
            lane.state = READY;
            warp.ready |= 1u << l;
            switch (lane.op) {
                case BAR_AND:  lane.out[0] = done.n_true == done.arrived; break;
                case BAR_OR:   lane.out[0] = done.n_true != 0; break;
                case BAR_POPC: lane.out[0] = done.n_true; break;
            }
        }
        if (any) {
            for (uint32_t v = 0; v < warps.size(); v++) { warp.clock[v] = std::max(warp.clock[v], done.clock[v]); }
            warp.clock[w]++;
            warp.syncs++;
        }
    }
}

void Run::check_barrier(uint32_t id) {
    const Barrier & b = bars[id];
    if (b.arrived >= (b.expected ? b.expected : live)) { release(id); }
}

void Run::arrive_at(Lane & lane, uint32_t id, uint32_t count) {
    Barrier & b = bars[id % N_BARRIER];
    const Warp & warp = warps[lane.warp];
    b.expected = count;
    b.arrived++;
    b.n_true += lane.in[0] != 0;
    for (uint32_t v = 0; v < warps.size(); v++) { b.clock[v] = std::max(b.clock[v], warp.clock[v]); }
    spins = 0;
}

void rt_barrier(Thread * t, uint32_t id, uint32_t count, uint32_t reduce, uint32_t site) {
    Lane & lane = *static_cast<Lane *>(t);
    Run & run = *lane.run;
    lane.state = AT_BARRIER;
    lane.bar = id % N_BARRIER;
    lane.op = reduce;
    lane.site = site;
    run.warps[lane.warp].ready &= ~(1u << lane.lane);
    run.arrive_at(lane, id, count);
    run.check_barrier(lane.bar);
    if (run.failed) { run.abandon(); }
    if (lane.state == AT_BARRIER) { run.leave(lane); }
}

void rt_arrive(Thread * t, uint32_t id, uint32_t count, uint32_t) {
    Lane & lane = *static_cast<Lane *>(t);
    Run & run = *lane.run;
    lane.in[0] = 0;
    run.arrive_at(lane, id, count);
    run.warps[lane.warp].clock[lane.warp]++;
    run.check_barrier(id % N_BARRIER);
    if (run.failed) { run.abandon(); }
}

// a thread that waits for memory: others of the warp go on, then the other warps
void rt_spin(Thread * t) {
    Lane & lane = *static_cast<Lane *>(t);
    Run & run = *lane.run;
    if (!run.info->meets) { return; }
    if (++run.spins > SPIN_MAX*run.n) {
        run.fail("endless wait for memory: " + run.place(lane, 0));
        run.abandon();
    }
    Warp & warp = run.warps[lane.warp];
    const uint32_t others = warp.ready & ~(1u << lane.lane);
    emu_switch(&lane.sp, others ? run.lanes[lane.warp*WARP + run.order.pick(others, lane.lane)].sp : run.scheduler);
}

} // namespace emu
