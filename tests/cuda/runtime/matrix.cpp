// matrix.cpp: matrix instructions of a warp. Sums are taken in double and rounded once: a GPU's own order is not known.

#include "run.h"

#include <algorithm>
#include <cstring>

namespace emu {

namespace {

uint8_t * address_of(const Lane * l) { uint64_t a; memcpy(&a, l->in, 8); return (uint8_t *) a; }

// elements of a register: how many, and the i-th as the number that it stands for
struct f16  { static constexpr uint32_t N = 2; using sum = double;  static sum get(uint32_t w, uint32_t i) { return h2f((uint16_t) (w >> 16*i)); } };
struct bf16 { static constexpr uint32_t N = 2; using sum = double;  static sum get(uint32_t w, uint32_t i) { return b2f((uint16_t) (w >> 16*i)); } };
struct tf32 { static constexpr uint32_t N = 1; using sum = double;  static sum get(uint32_t w, uint32_t)   { return u2f(w & 0xffffe000); } };
struct s8   { static constexpr uint32_t N = 4; using sum = int32_t; static sum get(uint32_t w, uint32_t i) { return (int8_t) (w >> 8*i); } };
struct u8   { static constexpr uint32_t N = 4; using sum = int32_t; static sum get(uint32_t w, uint32_t i) { return (uint8_t) (w >> 8*i); } };

// the two sums that a lane has of a row of C, in registers c[0] and, if each fills one, c[1]
struct f32_pair {
    static constexpr uint32_t N_WORD = 2;
    static double get(const uint32_t * c, uint32_t i) { return u2f(c[i]); }
    static void   set(uint32_t * c, double x, double y) { c[0] = f2u((float) x); c[1] = f2u((float) y); }
};
struct f16_pair {
    static constexpr uint32_t N_WORD = 1;
    static double get(const uint32_t * c, uint32_t i) { return h2f((uint16_t) (c[0] >> 16*i)); }
    static void   set(uint32_t * c, double x, double y) { c[0] = f2h((float) d2f_odd(x)) | (uint32_t) f2h((float) d2f_odd(y)) << 16; }
};
struct s32_pair {
    static constexpr uint32_t N_WORD = 2;
    static int32_t get(const uint32_t * c, uint32_t i) { return (int32_t) c[i]; }
    static void    set(uint32_t * c, int32_t x, int32_t y) { c[0] = (uint32_t) x; c[1] = (uint32_t) y; }
};

// PTX ISA, "matrix fragments for mma.m16n8k*": lane 4 g + t. M and K of the shape, which is M x 8 x K
template <class A, class C, uint32_t M, uint32_t K> void multiply(Lanes & x) {
    constexpr uint32_t N = 8, N_HALF = M/8, STEP = 4*A::N; // STEP elements of k lie in the registers of four lanes
    typename A::sum a[M][K], b[K][N], c[M][N];
    for (uint32_t l = 0; l < WARP; l++) {
        const uint32_t g = l/4, t = l%4;
        const uint32_t * in = x[l]->in;
        for (uint32_t r = 0; r < N_HALF*(K/STEP); r++) {
            for (uint32_t i = 0; i < A::N; i++) { a[g + r%N_HALF*8][r/N_HALF*STEP + A::N*t + i] = A::get(in[r], i); }
        }
        for (uint32_t r = 0; r < K/STEP; r++) {
            for (uint32_t i = 0; i < A::N; i++) { b[r*STEP + A::N*t + i][g] = A::get(in[8 + r], i); }
        }
        for (uint32_t r = 0; r < N_HALF; r++) {
            for (uint32_t i = 0; i < 2; i++) { c[g + 8*r][2*t + i] = C::get(in + 16 + r*C::N_WORD, i); }
        }
    }
    for (uint32_t i = 0; i < M; i++) {
        for (uint32_t j = 0; j < K; j++) {
            for (uint32_t o = 0; o < N; o++) { c[i][o] += a[i][j]*b[j][o]; }
        }
    }
    for (uint32_t l = 0; l < WARP; l++) {
        const uint32_t g = l/4, t = l%4;
        for (uint32_t r = 0; r < N_HALF; r++) { C::set(x[l]->out + r*C::N_WORD, c[g + 8*r][2*t], c[g + 8*r][2*t + 1]); }
    }
}

} // namespace

void do_ldmatrix(Lanes & x, uint32_t n, bool trans) {
    for (uint32_t j = 0; j < n; j++) {
        uint16_t m[8][8];
        for (int r = 0; r < 8; r++) { memcpy(m[r], address_of(x[8*j + r]), 16); }
        for (uint32_t i = 0; i < WARP; i++) {
            const uint32_t g = i/4, t = i%4*2;
            x[i]->out[j] = trans ? m[t][g] | (uint32_t) m[t + 1][g] << 16 : m[g][t] | (uint32_t) m[g][t + 1] << 16;
        }
    }
}

void do_movmatrix(Lanes & x) {
    uint16_t m[8][8];
    for (uint32_t i = 0; i < WARP; i++) {
        m[i/4][i%4*2] = (uint16_t) x[i]->in[0];
        m[i/4][i%4*2 + 1] = (uint16_t) (x[i]->in[0] >> 16);
    }
    for (uint32_t i = 0; i < WARP; i++) { x[i]->out[0] = m[i%4*2][i/4] | (uint32_t) m[i%4*2 + 1][i/4] << 16; }
}

bool do_mma(Lanes & x, uint32_t code) {
    switch (code) {
        case mma_code(TYPE_F16,  TYPE_F32, 16,  8): multiply<f16,  f32_pair, 16,  8>(x); return true;
        case mma_code(TYPE_F16,  TYPE_F32, 16, 16): multiply<f16,  f32_pair, 16, 16>(x); return true;
        case mma_code(TYPE_F16,  TYPE_F16, 16,  8): multiply<f16,  f16_pair, 16,  8>(x); return true;
        case mma_code(TYPE_F16,  TYPE_F16, 16, 16): multiply<f16,  f16_pair, 16, 16>(x); return true;
        case mma_code(TYPE_BF16, TYPE_F32, 16,  8): multiply<bf16, f32_pair, 16,  8>(x); return true;
        case mma_code(TYPE_BF16, TYPE_F32, 16, 16): multiply<bf16, f32_pair, 16, 16>(x); return true;
        case mma_code(TYPE_TF32, TYPE_F32, 16,  8): multiply<tf32, f32_pair, 16,  8>(x); return true;
        case mma_code(TYPE_S8,   TYPE_S32,  8, 16): multiply<s8,   s32_pair,  8, 16>(x); return true;
        case mma_code(TYPE_S8,   TYPE_S32, 16, 16): multiply<s8,   s32_pair, 16, 16>(x); return true;
        case mma_code(TYPE_S8,   TYPE_S32, 16, 32): multiply<s8,   s32_pair, 16, 32>(x); return true;
        case mma_code(TYPE_U8,   TYPE_S32, 16, 32): multiply<u8,   s32_pair, 16, 32>(x); return true;
        default: return false;
    }
}

} // namespace emu
