// kernel.h: what a translated kernel (../ptx/) and the runtime share: threads, blocks, checked memory access, and the
// places where threads meet.
//
// Every CUDA thread is a fiber. A kernel calls the runtime (struct Rt) where threads meet (barriers, shuffles, matrix
// instructions), and where something is wrong.
//
// Device memory is one file, mapped twice. Device pointers point into the mapping at ARENA, which nobody can touch; kernels
// and copies go through the mapping at ARENA + ALIAS. So a host function that takes a device pointer for its own crashes.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "ptxmath.h"

static constexpr uint64_t ARENA      = 0x200000000000;
static constexpr uint64_t ALIAS      = 0x100000000000;
static constexpr uint64_t ARENA_SIZE = 0x004000000000; // 256 GiB of addresses
static constexpr uint32_t SLOT_BITS  = 21;             // an allocation has whole slots of 2 MiB to itself
static constexpr uint32_t N_SLOT     = ARENA_SIZE >> SLOT_BITS;
static constexpr uint64_t SHARED_WIN = 0x010000000000; // generic addresses of shared memory

struct Block;
struct Thread;

enum Op : uint32_t { // what the lanes of a warp do together, computed once for all
    OP_SHFL, OP_VOTE, OP_MATCH, OP_REDUX, OP_SYNCWARP, OP_LDMATRIX, OP_MOVMATRIX, OP_MMA,
};
enum { SHFL_UP, SHFL_DOWN, SHFL_BFLY, SHFL_IDX };
enum { VOTE_ALL, VOTE_ANY, VOTE_UNI, VOTE_BALLOT };
enum { MATCH_ANY, MATCH_ALL };
enum { REDUX_ADD, REDUX_MIN, REDUX_MAX, REDUX_AND, REDUX_OR, REDUX_XOR, REDUX_MIN_U, REDUX_MAX_U };
enum { TYPE_F16, TYPE_F32, TYPE_BF16, TYPE_TF32, TYPE_S32, TYPE_S8, TYPE_U8 };
static constexpr uint32_t op_code(uint32_t op, uint32_t a = 0, uint32_t b = 0, uint32_t c = 0) { return op | a << 8 | b << 16 | c << 24; }

// of D = A B + C: type of the factors, of the sums, rows of A, columns of A; B has 8 columns
static constexpr uint32_t mma_code(uint32_t factors, uint32_t sums, uint32_t m, uint32_t k) { return OP_MMA | factors << 8 | sums << 12 | m << 16 | k << 24; }

enum Fault : uint32_t { FAULT_GLOBAL, FAULT_SHARED, FAULT_LOCAL, FAULT_GENERIC, FAULT_ALIGN, FAULT_TRAP, FAULT_READONLY };

enum Bar : uint32_t { BAR_PLAIN, BAR_AND, BAR_OR, BAR_POPC };

// the runtime's functions
struct Rt {
    void (*collective)(Thread *, uint32_t op, uint32_t mask, uint32_t site);
    void (*barrier)(Thread *, uint32_t id, uint32_t count, uint32_t reduce, uint32_t site); // count 0: the whole block
    void (*arrive)(Thread *, uint32_t id, uint32_t count, uint32_t site);
    void (*fault)(Thread *, uint32_t fault, uint64_t address, uint32_t bytes, uint32_t site);
    uint8_t * (*global)(Thread *, uint64_t address, uint32_t bytes, uint32_t site); // not plainly inside an allocation
    void (*race)(Thread *, uint32_t offset, uint32_t bytes, uint32_t access, uint32_t site);
    void (*copy_async)(Thread *, uint64_t dst, uint64_t src, uint32_t bytes, uint32_t from_src, uint32_t site);
    void (*copy_commit)(Thread *);
    void (*copy_wait)(Thread *, uint32_t n_left);
    int32_t (*vprintf)(Thread *, uint64_t format, uint64_t arguments);
    void (*spin)(Thread *); // a thread that waits for memory
};

struct Range { uint64_t lo, hi; }; // of a live allocation

struct Block {
    const Rt *       rt;
    const Range *    ranges;  // one for each slot of the arena
    const uint64_t * vars;    // device addresses of the kernel's module variables
    uint8_t *        shared;  // static variables, then dynamic
    uint32_t         shared_size;
    uint32_t         dynamic_size;
    const uint8_t *  params;
    uint32_t         params_size;
    uint32_t         ntid[3], ctaid[3], nctaid[3];
    uint32_t         sm, n_sm;
    uint32_t         race;    // accesses to shared memory are told to the race detector
};

struct Thread {
    Block *  block;
    uint32_t tid[3];
    uint32_t lane, warp, index;
    uint64_t stack_lo, stack_hi;
    uint32_t in[24];
    uint32_t out[8];
};

struct Site  { uint32_t ptx_line, file, line; };
struct Param { uint32_t offset, size; };
struct Var   { const char * name; uint64_t size; const uint8_t * init; uint64_t init_size; };

struct KernelInfo { // what a translated kernel exports as `emu_kernel`
    void (*run)(Thread *);
    const char * name;
    uint32_t meets;         // 0: its threads never meet; they need no fibers
    uint32_t flush;         // has .ftz instructions
    uint32_t static_shared;
    uint32_t local_size;
    uint32_t max_threads;   // .maxntid, 0: none
    uint32_t min_blocks;    // .minnctapersm
    uint32_t n_params;
    uint32_t params_size;
    const Param * params;
    uint32_t n_vars;
    const Var * vars;
    const Site * sites;
    const char * const * files;
};

enum { READ, WRITE, ATOMIC };

// ------------------------------------------------------------------------------------------------ memory

template <class T> EMU_INLINE T peek(const uint8_t * a) { T x; __builtin_memcpy(&x, a, sizeof(T)); return x; }
template <class T> EMU_INLINE void poke(uint8_t * a, T x) { __builtin_memcpy(a, &x, sizeof(T)); }
template <class T> EMU_INLINE T peek_now(const uint8_t * a) { return __atomic_load_n((const T *) a, __ATOMIC_ACQUIRE); }

EMU_INLINE bool in_global(const Range * ranges, uint64_t a, uint32_t n) {
    const Range & r = ranges[a >> SLOT_BITS & (N_SLOT - 1)];
    return !((a < r.lo) | (a + n > r.hi));
}

// each returns the host address of n bytes, after its checks
template <uint32_t n> EMU_INLINE uint8_t * at_global(Thread * t, uint64_t a, uint32_t site, int) {
    const Range & r = t->block->ranges[a >> SLOT_BITS & (N_SLOT - 1)];
    if (EMU_UNLIKELY((a < r.lo) | (a + n > r.hi) | ((a & (n - 1)) != 0))) { return t->block->rt->global(t, a, n, site); }
    return (uint8_t *) (a + ALIAS);
}
template <uint32_t n> EMU_INLINE uint8_t * at_const(Thread * t, uint64_t a, uint32_t site, int access) {
    return at_global<n>(t, a, site, access);
}
template <uint32_t n> EMU_INLINE uint8_t * at_shared(Thread * t, uint64_t a, uint32_t site, int access) {
    if (EMU_UNLIKELY((a + n > t->block->shared_size) | (a >= t->block->shared_size) | ((a & (n - 1)) != 0))) {
        t->block->rt->fault(t, a & (n - 1) ? FAULT_ALIGN : FAULT_SHARED, a, n, site);
    }
    if (EMU_UNLIKELY(t->block->race)) { t->block->rt->race(t, (uint32_t) a, n, access, site); }
    return t->block->shared + a;
}
template <uint32_t n> EMU_INLINE uint8_t * at_local(Thread * t, uint64_t a, uint32_t site, int) {
    if (EMU_UNLIKELY((a < t->stack_lo) | (a + n > t->stack_hi) | ((a & (n - 1)) != 0))) {
        t->block->rt->fault(t, a & (n - 1) ? FAULT_ALIGN : FAULT_LOCAL, a, n, site);
    }
    return (uint8_t *) a;
}
// a variable of the function itself: exact bounds
template <uint32_t n> EMU_INLINE uint8_t * at_depot(Thread * t, uint64_t a, const uint8_t * depot, uint32_t size, uint32_t site) {
    const uint64_t o = a - (uint64_t) depot;
    if (EMU_UNLIKELY((o + n > size) | (o >= size) | ((a & (n - 1)) != 0))) {
        t->block->rt->fault(t, a & (n - 1) ? FAULT_ALIGN : FAULT_LOCAL, a, n, site);
    }
    return (uint8_t *) a;
}
EMU_INLINE bool is_shared(uint64_t a) { return a - SHARED_WIN < 0x1000000; }
template <uint32_t n> static __attribute__((noinline)) uint8_t * at_generic(Thread * t, uint64_t a, uint32_t site, int access) {
    if (is_shared(a)) { return at_shared<n>(t, a - SHARED_WIN, site, access); }
    if (a >= t->stack_lo && a < t->stack_hi) { return at_local<n>(t, a, site, access); }
    if (a - (uint64_t) t->block->params < t->block->params_size) {
        if (access != READ) { t->block->rt->fault(t, FAULT_READONLY, a, n, site); }
        return (uint8_t *) a;
    }
    return at_global<n>(t, a, site, access);
}

// read, change, write; returns what was there
template <class T, class F> EMU_INLINE T atomic_apply(uint8_t * a, F && change) {
    T old = __atomic_load_n((T *) a, __ATOMIC_RELAXED);
    while (!__atomic_compare_exchange_n((T *) a, &old, (T) change(old), false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED)) {}
    return old;
}

// ------------------------------------------------------------------------------------------------ threads that meet

EMU_INLINE void meet(Thread * t, uint32_t op, uint32_t mask, uint32_t site) { t->block->rt->collective(t, op, mask, site); }
EMU_INLINE uint32_t shfl(Thread * t, uint32_t mode, uint32_t a, uint32_t b, uint32_t c, uint32_t mask, uint32_t site, bool & p) {
    t->in[0] = a; t->in[1] = b; t->in[2] = c;
    meet(t, op_code(OP_SHFL, mode), mask, site);
    p = t->out[1];
    return t->out[0];
}
EMU_INLINE uint32_t vote(Thread * t, uint32_t mode, bool p, uint32_t mask, uint32_t site) {
    t->in[0] = p;
    meet(t, op_code(OP_VOTE, mode), mask, site);
    return t->out[0];
}
EMU_INLINE uint32_t match(Thread * t, uint32_t mode, uint64_t x, uint32_t mask, uint32_t site, bool & p) {
    t->in[0] = (uint32_t) x; t->in[1] = (uint32_t) (x >> 32);
    meet(t, op_code(OP_MATCH, mode), mask, site);
    p = t->out[1];
    return t->out[0];
}
EMU_INLINE uint32_t redux(Thread * t, uint32_t mode, uint32_t x, uint32_t mask, uint32_t site) {
    t->in[0] = x;
    meet(t, op_code(OP_REDUX, mode), mask, site);
    return t->out[0];
}
EMU_INLINE uint32_t barrier(Thread * t, uint32_t id, uint32_t count, uint32_t reduce, bool p, uint32_t site) {
    t->in[0] = p;
    t->block->rt->barrier(t, id, count, reduce, site);
    return t->out[0];
}
