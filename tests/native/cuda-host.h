// cuda-host.h: a thread block of a GPU on the CPU, for native/attend/cuda/*.cuh compiled as plain C++.
//
// Each thread of the block is a coroutine. One runs until it must wait for others (a barrier of the block, an exchange within
// its warp), then the next one does; so every thread really has its own registers, and a barrier that not all threads reach is a
// deadlock that is noticed. Arithmetic on f16 rounds once to nearest, as the instructions do; sums of the matrix instruction are
// taken in double, the GPU's own order being unknown. What this cannot show: races that a GPU's timing would bring to light, its
// memory alignment rules (loads are checked here for that), and speed.

#pragma once

#include "headkv-cuda-lane.cuh"

#include "ggml.h"

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <vector>

#include <ucontext.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace headkv {

class thread_block {
    static constexpr int    N_WORDS_MAX  = 12;
    static constexpr int    N_THREAD_MAX = 512;
    static constexpr size_t STACK_BYTES  = 256 << 10;

public:
    // body runs in each of n_thread threads
    static void run(int n_thread, const std::function<void()> & body) {
        static thread_block block; // coroutines are costly to make: all blocks take the same ones
        block.body = &body;
        block.loop(n_thread);
    }

    static thread_block & get() { return *current; }

    int thread() const { return i_thread; }

    void sync() { wait(all); }

    using table = float[WARP][N_WORDS_MAX];

    // every lane of the warp shows its numbers and then looks at those of the others: table[l] are lane l's
    const table & exchange(const float * x, int n) {
        warp & w = warps[i_thread/WARP];
        // two tables in turn: nobody writes to one before all have looked at it, since all must have come to the other first
        table & shown = w.shown[threads[i_thread].n_exchange++ % 2];
        for (int i = 0; i < n; i++) {
            shown[i_thread%WARP][i] = x[i];
        }
        wait(w.barrier);
        return shown;
    }

private:
    struct barrier_state {
        int n_wanted  = 0;
        int n_arrived = 0;
        int round     = 0;
    };

    struct warp {
        barrier_state barrier;
        table         shown[2];
    };

    struct thread_state {
        ucontext_t              context;
        std::unique_ptr<char[]> stack;
        bool                    is_done    = false;
        int                     n_exchange = 0;
        barrier_state *         waits_for  = nullptr;
        int                     round      = 0;
    };

    thread_block() : threads(N_THREAD_MAX), warps(N_THREAD_MAX/WARP) {
        current = this;
        for (thread_state & t : threads) {
            t.stack.reset(new char[STACK_BYTES]);
            getcontext(&t.context);
            t.context.uc_stack.ss_sp   = t.stack.get();
            t.context.uc_stack.ss_size = STACK_BYTES;
            t.context.uc_link          = nullptr;
            makecontext(&t.context, start, 0);
        }
    }

    void loop(int n_thread) {
        all = { n_thread, 0, 0 };
        for (warp & w : warps) {
            w.barrier = { WARP, 0, 0 };
        }
        for (int i = 0; i < n_thread; i++) {
            threads[i].is_done    = false;
            threads[i].n_exchange = 0;
        }
        for (int n_done = 0; n_done < n_thread;) {
            int n_moved = 0;
            for (int begin = 0; begin < n_thread; begin += WARP) {
                // a warp runs ahead of the others as far as it can, so that a barrier that is missing shows
                for (int n = 1; n > 0; n_moved += n) {
                    n = step(begin, begin + WARP, n_done);
                }
            }
            if (n_moved == 0) {
                fprintf(stderr, "deadlock: not all threads reach a barrier\n");
                abort();
            }
        }
    }

    // each of these threads runs until it waits; returns how many could
    int step(int begin, int end, int & n_done) {
        int n_moved = 0;
        for (i_thread = begin; i_thread < end; i_thread++) {
            thread_state & t = threads[i_thread];
            if (t.is_done || (t.waits_for && t.waits_for->round == t.round)) {
                continue;
            }
            t.waits_for = nullptr;
            enter(t);
            n_done += t.is_done;
            n_moved++;
        }
        return n_moved;
    }

    void wait(barrier_state & b) {
        if (++b.n_arrived == b.n_wanted) {
            b.n_arrived = 0;
            b.round++;
            return;
        }
        thread_state & t = threads[i_thread];
        t.waits_for = &b;
        t.round     = b.round;
        leave(t);
    }

    static void start() {
#if defined(__SANITIZE_ADDRESS__)
        __sanitizer_finish_switch_fiber(nullptr, &current->main_stack, &current->main_stack_size);
#endif
        for (;;) {
            (*current->body)();
            thread_state & t = current->threads[current->i_thread];
            t.is_done = true;
            current->leave(t);
        }
    }

    void enter(thread_state & t) {
#if defined(__SANITIZE_ADDRESS__)
        void * fake = nullptr;
        __sanitizer_start_switch_fiber(&fake, t.stack.get(), STACK_BYTES);
        swapcontext(&main_context, &t.context);
        __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#else
        swapcontext(&main_context, &t.context);
#endif
    }

    void leave(thread_state & t) {
#if defined(__SANITIZE_ADDRESS__)
        void * fake = nullptr;
        __sanitizer_start_switch_fiber(&fake, main_stack, main_stack_size);
        swapcontext(&t.context, &main_context);
        __sanitizer_finish_switch_fiber(fake, &main_stack, &main_stack_size);
#else
        swapcontext(&t.context, &main_context);
#endif
    }

    static inline thread_block * current = nullptr;

    const std::function<void()> * body = nullptr;
    std::vector<thread_state>     threads;
    std::vector<warp>             warps;
    barrier_state                 all;
    int                           i_thread = 0;
    ucontext_t                    main_context;
    const void *                  main_stack      = nullptr;
    size_t                        main_stack_size = 0;
};

inline int  thread_index() { return thread_block::get().thread(); }
inline void sync_block()   { thread_block::get().sync(); }

inline float lane_xor(float x, int mask) {
    const auto & lanes = thread_block::get().exchange(&x, 1);
    return lanes[(thread_index()%WARP) ^ mask][0];
}

// what -use_fast_math, with which ggml builds, makes of them: a tanh of 11 bits, and exp as a power of two
inline float tanhf(float x) {
    int e;
    const float y = frexpf(::tanhf(x), &e);
    return ldexpf(roundf(y*2048.0f)/2048.0f, e);
}
inline float expf(float x) { return exp2f(x*1.44269504f); }

inline float    half_to_float(uint16_t x)             { return ggml_fp16_to_fp32(x); }
inline float    half_of(uint32_t x, int i)            { return ggml_fp16_to_fp32((uint16_t) (x >> 16*i)); }
inline uint32_t half2_make(float low, float high)     { return ggml_fp32_to_fp16(low) | (uint32_t) ggml_fp32_to_fp16(high) << 16; }
inline uint32_t half2_sub(uint32_t a, uint32_t b)     { return half2_make(half_of(a, 0) - half_of(b, 0), half_of(a, 1) - half_of(b, 1)); }
inline uint32_t half2_mul(uint32_t a, uint32_t b)     { return half2_make(half_of(a, 0)*half_of(b, 0), half_of(a, 1)*half_of(b, 1)); }

// nibble i of the selector names the byte of b:a that becomes byte i
inline uint32_t byte_perm(uint32_t a, uint32_t b, uint32_t selector) {
    const uint64_t bytes = a | (uint64_t) b << 32;
    uint32_t x = 0;
    for (int i = 0; i < 4; i++) {
        x |= (uint32_t) (bytes >> 8*(selector >> 4*i & 7) & 0xff) << 8*i;
    }
    return x;
}

// shared memory of a block: aligned as its type asks and no better, and full of NaN
template <class T> class shared_memory {
public:
    shared_memory() : bytes(new char[sizeof(T) + 3*alignof(T)]) {
        const uintptr_t begin = (uintptr_t) bytes.get();
        place = (void *) ((begin/(2*alignof(T)) + 1)*2*alignof(T) + alignof(T));
        memset(place, 0xff, sizeof(T));
    }

    T & operator*() const { return *(T *) place; }

private:
    std::unique_ptr<char[]> bytes;
    void *                  place;
};

inline void check_aligned(const void * p, size_t bytes) {
    if ((uintptr_t) p % bytes != 0) {
        fprintf(stderr, "an access of %zu bytes is not aligned\n", bytes);
        abort();
    }
}

template <int n> inline void load_words(uint32_t * dst, const void * src) {
    check_aligned(src, 4*n);
    memcpy(dst, src, 4*n);
}

inline uint32_t load_u16(const void * src) {
    check_aligned(src, 2);
    return *(const uint16_t *) src;
}

inline void store_pair(float * dst, float a, float b) {
    check_aligned(dst, 8);
    dst[0] = a;
    dst[1] = b;
}

// by the table in headkv-cuda-lane.cuh
inline void matrix_multiply_add(float * d, const uint32_t * a, uint32_t b0, uint32_t b1) {
    const uint32_t words[6] = { a[0], a[1], a[2], a[3], b0, b1 };
    float x[12];
    for (int i = 0; i < 12; i++) {
        x[i] = half_of(words[i/2], i%2);
    }
    const auto & lanes = thread_block::get().exchange(x, 12);
    const int    lane  = thread_index()%WARP;

    const auto a_at = [&](int row, int k) { return lanes[4*(row%8) + k%8/2][2*(row/8 + k/8*2) + k%2]; };
    const auto b_at = [&](int k, int col) { return lanes[4*col + k%8/2][8 + 2*(k/8) + k%2]; };
    for (int i = 0; i < 4; i++) {
        const int row = lane/4 + i/2*8;
        const int col = lane%4*2 + i%2;
        double sum = d[i];
        for (int k = 0; k < 16; k++) {
            sum += (double) a_at(row, k)*b_at(k, col);
        }
        d[i] = (float) sum;
    }
}

} // namespace headkv
