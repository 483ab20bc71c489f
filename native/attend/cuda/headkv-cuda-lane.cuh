// headkv-cuda-lane.cuh: what the kernel asks of the machine: its thread, barriers, exchange within a warp, one matrix
// instruction, and arithmetic on pairs of f16, which are passed around as words.
//
// On a GPU these are instructions. Compiled as plain C++ (tests/native/cuda-host.h) every thread is a coroutine, and the same
// kernel runs on a CPU.

#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)

#define HEADKV_DEVICE static __device__ __forceinline__
#define HEADKV_METHOD __device__ __forceinline__ // in a struct
#define HEADKV_UNROLL   _Pragma("unroll")
#define HEADKV_UNROLL_4 _Pragma("unroll 4")

namespace headkv {

HEADKV_DEVICE int  thread_index() { return threadIdx.x; }
HEADKV_DEVICE void sync_block()   { __syncthreads(); }

// the value of the lane whose number differs by the bits of mask
HEADKV_DEVICE float lane_xor(float x, int mask) { return __shfl_xor_sync(0xffffffff, x, mask); }

HEADKV_DEVICE uint32_t byte_perm(uint32_t a, uint32_t b, uint32_t selector) { return __byte_perm(a, b, selector); }

HEADKV_DEVICE uint32_t to_word(half2 x)      { return *(const uint32_t *) &x; }
HEADKV_DEVICE half2    to_half2(uint32_t x)  { return *(const half2 *) &x; }

HEADKV_DEVICE uint32_t half2_make(float low, float high)      { return to_word(__floats2half2_rn(low, high)); }
HEADKV_DEVICE float    half_to_float(uint16_t x)              { return __half2float(__ushort_as_half(x)); }
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 750
HEADKV_DEVICE uint32_t half2_sub (uint32_t a, uint32_t b)     { return to_word(__hsub2(to_half2(a), to_half2(b))); }
HEADKV_DEVICE uint32_t half2_mul (uint32_t a, uint32_t b)     { return to_word(__hmul2(to_half2(a), to_half2(b))); }
#else // never launched, as below; toolkits before 12.2 lack these for compute_50, which ggml builds for by default
HEADKV_DEVICE uint32_t half2_sub (uint32_t a, uint32_t)       { return a; }
HEADKV_DEVICE uint32_t half2_mul (uint32_t a, uint32_t)       { return a; }
#endif

// n words from an address that is a multiple of their size
template <int n> HEADKV_DEVICE void load_words(uint32_t * dst, const void * src) {
    static_assert(n == 1 || n == 2 || n == 4, "one load");
    if constexpr (n == 4) {
        const uint4 x = __ldg((const uint4 *) src);
        dst[0] = x.x;
        dst[1] = x.y;
        dst[2] = x.z;
        dst[3] = x.w;
    } else if constexpr (n == 2) {
        const uint2 x = __ldg((const uint2 *) src);
        dst[0] = x.x;
        dst[1] = x.y;
    } else {
        dst[0] = __ldg((const unsigned int *) src);
    }
}

HEADKV_DEVICE uint32_t load_u16(const void * src) { return __ldg((const unsigned short *) src); }

HEADKV_DEVICE void store_pair(float * dst, float a, float b) { *(float2 *) dst = make_float2(a, b); }

// D = A B + D for f16 A [16, 16], B [16, 8] and f32 D [16, 8]. Lane = 4 g + t holds
//     a[0] A[g][2t, 2t+1]   a[1] A[g+8][2t, 2t+1]   a[2] A[g][2t+8, 2t+9]   a[3] A[g+8][2t+8, 2t+9]
//     b0   B[2t, 2t+1][g]   b1   B[2t+8, 2t+9][g]
//     d[0], d[1] D[g][2t, 2t+1]                     d[2], d[3] D[g+8][2t, 2t+1]
// (PTX ISA, mma.m16n8k16; Turing has the half of it)
HEADKV_DEVICE void matrix_multiply_add(float * d, const uint32_t * a, uint32_t b0, uint32_t b1) {
#if __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#elif __CUDA_ARCH__ >= 750
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(b0));
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[2]), "r"(a[3]), "r"(b1));
#else
    (void) d, (void) a, (void) b0, (void) b1; // never launched: supported() asks for Turing
#endif
}

} // namespace headkv

#else

#define HEADKV_DEVICE static inline
#define HEADKV_METHOD
#define HEADKV_UNROLL
#define HEADKV_UNROLL_4

namespace headkv {

int   thread_index();
void  sync_block();
float lane_xor(float x, int mask);
void  matrix_multiply_add(float * d, const uint32_t * a, uint32_t b0, uint32_t b1);

uint32_t half2_make(float low, float high);
uint32_t half2_sub (uint32_t a, uint32_t b);
uint32_t half2_mul (uint32_t a, uint32_t b);
float    half_to_float(uint16_t x);

uint32_t byte_perm(uint32_t a, uint32_t b, uint32_t selector);

template <int n> void load_words(uint32_t * dst, const void * src);

uint32_t load_u16(const void * src);
void     store_pair(float * dst, float a, float b);

} // namespace headkv

#endif

namespace headkv {

constexpr int   WARP     = 32;
constexpr float NO_SCORE = -1e30f; // below every score; finite, so that two of them can be subtracted

} // namespace headkv
