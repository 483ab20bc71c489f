// matrix.cpp: matrix instructions of a warp. Sums are taken in double and rounded once: a GPU's own order is not known.

#include "run.h"

#include <algorithm>
#include <cstring>

namespace emu {

namespace {

uint8_t * address_of(const Lane * l) { uint64_t a; memcpy(&a, l->in, 8); return (uint8_t *) a; }

uint32_t bits_of(uint32_t type) { return type == TYPE_S8 || type == TYPE_U8 ? 8 : type == TYPE_F16 || type == TYPE_BF16 ? 16 : 32; }

double number(uint32_t type, uint32_t word, uint32_t i) {
    switch (type) {
        case TYPE_F16:  return h2f((uint16_t) (word >> 16*i));
        case TYPE_BF16: return b2f((uint16_t) (word >> 16*i));
        case TYPE_F32:  return u2f(word);
        case TYPE_TF32: return u2f(word & 0xffffe000);
        case TYPE_S8:   return (int8_t) (word >> 8*i);
        case TYPE_U8:   return (uint8_t) (word >> 8*i);
        default:        return (int32_t) word;
    }
}

void set_number(uint32_t type, uint32_t & word, uint32_t i, double x) {
    switch (type) {
        case TYPE_F16: word = (word & ~(0xffffu << 16*i)) | (uint32_t) f2h((float) d2f_odd(x)) << 16*i; break;
        case TYPE_F32: word = f2u((float) x); break;
        default:       word = (uint32_t) (int64_t) x; break; // sums of integers are exact: far below 2^53
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

// D = A B + C. The order in which a GPU adds is not known: sums are taken in double and rounded once.
void do_mma(Lanes & x, uint32_t code) {
    constexpr uint32_t N = 8; // columns of B and C, for every shape
    const uint32_t ta = code >> 8 & 15, tc = code >> 12 & 15, m = (code >> 16 & 7)*8, k = (code >> 22)*4;
    static thread_local double a[16][32], b[32][N], c[16][N];
    const uint32_t p = 32/bits_of(ta), pc = 32/bits_of(tc);

    for (uint32_t l = 0; l < WARP; l++) {
        const uint32_t g = l/4, t = l%4;
        const uint32_t * in = x[l]->in;
        for (uint32_t r = 0; r < m/8*(k/(4*p)); r++) {
            for (uint32_t i = 0; i < p; i++) { a[g + r%(m/8)*8][r/(m/8)*4*p + p*t + i] = number(ta, in[r], i); }
        }
        for (uint32_t r = 0; r < k/(4*p); r++) {
            for (uint32_t i = 0; i < p; i++) { b[r*4*p + p*t + i][g] = number(ta, in[8 + r], i); }
        }
        for (uint32_t r = 0; r < m/8; r++) {
            for (uint32_t i = 0; i < 2; i++) { c[g + 8*r][2*t + i] = number(tc, in[16 + (2*r + i)/pc], (2*r + i)%pc); }
        }
    }
    for (uint32_t i = 0; i < m; i++) {
        for (uint32_t j = 0; j < k; j++) {
            const double f = a[i][j];
            for (uint32_t o = 0; o < N; o++) { c[i][o] += f*b[j][o]; }
        }
    }
    for (uint32_t l = 0; l < WARP; l++) {
        const uint32_t g = l/4, t = l%4;
        for (uint32_t r = 0; r < m/8; r++) {
            for (uint32_t i = 0; i < 2; i++) { set_number(tc, x[l]->out[(2*r + i)/pc], (2*r + i)%pc, c[g + 8*r][2*t + i]); }
        }
    }
}

} // namespace emu
