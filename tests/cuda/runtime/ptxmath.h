// ptxmath.h: the arithmetic of PTX instructions that C++ has no operator for. Included by kernel.h; no dependencies.
#pragma once

#include <stdint.h>

#define EMU_INLINE static inline __attribute__((always_inline))
#define EMU_UNLIKELY(x) __builtin_expect(!!(x), 0)

// ------------------------------------------------------------------------------------------------ bits

EMU_INLINE uint32_t f2u(float x)    { uint32_t y; __builtin_memcpy(&y, &x, 4); return y; }
EMU_INLINE float    u2f(uint32_t x) { float    y; __builtin_memcpy(&y, &x, 4); return y; }
EMU_INLINE uint64_t d2u(double x)   { uint64_t y; __builtin_memcpy(&y, &x, 8); return y; }
EMU_INLINE double   u2d(uint64_t x) { double   y; __builtin_memcpy(&y, &x, 8); return y; }
EMU_INLINE float    h2f(uint16_t x) { _Float16 h; __builtin_memcpy(&h, &x, 2); return (float) h; }
EMU_INLINE uint16_t f2h(float x)    { _Float16 h = (_Float16) x; uint16_t y; __builtin_memcpy(&y, &h, 2); return (x != x) ? 0x7fff : y; }
EMU_INLINE float    b2f(uint16_t x) { return u2f((uint32_t) x << 16); }
EMU_INLINE uint16_t f2b(float x) {
    const uint32_t u = f2u(x);
    return x != x ? 0x7fff : (uint16_t) ((u + 0x7fff + (u >> 16 & 1)) >> 16);
}
EMU_INLINE uint16_t f2b_rz(float x) { return x != x ? 0x7fff : (uint16_t) (f2u(x) >> 16); }
EMU_INLINE uint16_t f2h_rz(float x) { // toward zero
    if (x != x) { return 0x7fff; }
    uint16_t h = f2h(x);
    const float back = h2f(h);
    return (back < 0 ? -back : back) > (x < 0 ? -x : x) ? h - 1 : h;
}
EMU_INLINE float f2tf32(float x) { // round to nearest, ties away
    return x != x ? x : u2f((f2u(x) + 0x1000) & 0xffffe000);
}

// a double whose last bit says that bits were lost, as the nearest float below or above that does so too: rounding it once
// more to f16 or bf16 is then exact
EMU_INLINE double fma_odd(double a, double b, double c) { // a*b must be exact
    const double p = a*b, s = p + c, bb = s - p, e = (p - (s - bb)) + (c - bb);
    uint64_t u = d2u(s);
    if (e != 0 && !(u & 1) && s - s == 0) { u = (e > 0) == (s > 0) ? u + 1 : u - 1; }
    return u2d(u);
}
EMU_INLINE float d2f_odd(double x) {
    uint64_t u = d2u(x);
    u = (u & ~0x1fffffffull) | ((u & 0x1fffffff) ? 1ull << 29 : 0);
    return (float) u2d(u);
}

struct f16_ops {
    EMU_INLINE float    to(uint16_t x) { return h2f(x); }
    EMU_INLINE uint16_t from(float x)  { return f2h(x); }
};
struct bf16_ops {
    EMU_INLINE float    to(uint16_t x) { return b2f(x); }
    EMU_INLINE uint16_t from(float x)  { return f2b(x); }
};

EMU_INLINE float min_f(float a, float b) { return a != a ? b : b < a ? b : a; }
EMU_INLINE float max_f(float a, float b) { return a != a ? b : b > a ? b : a; }
EMU_INLINE double min_d(double a, double b) { return a != a ? b : b < a ? b : a; }
EMU_INLINE double max_d(double a, double b) { return a != a ? b : b > a ? b : a; }
EMU_INLINE float min_nan(float a, float b) { return a != a ? a : b != b ? b : b < a ? b : a; }
EMU_INLINE float max_nan(float a, float b) { return a != a ? a : b != b ? b : b > a ? b : a; }
EMU_INLINE float sat_f(float a) { return a > 0.0f ? a < 1.0f ? a : 1.0f : 0.0f; }

template <class O> EMU_INLINE uint16_t x_add(uint16_t a, uint16_t b) { return O::from(O::to(a) + O::to(b)); }
template <class O> EMU_INLINE uint16_t x_sub(uint16_t a, uint16_t b) { return O::from(O::to(a) - O::to(b)); }
template <class O> EMU_INLINE uint16_t x_mul(uint16_t a, uint16_t b) { return O::from(O::to(a) * O::to(b)); }
template <class O> EMU_INLINE uint16_t x_min(uint16_t a, uint16_t b) { return O::from(min_f(O::to(a), O::to(b))); }
template <class O> EMU_INLINE uint16_t x_max(uint16_t a, uint16_t b) { return O::from(max_f(O::to(a), O::to(b))); }
template <class O> EMU_INLINE uint16_t x_fma(uint16_t a, uint16_t b, uint16_t c) {
    return O::from(d2f_odd(fma_odd(O::to(a), O::to(b), O::to(c))));
}
template <class O> EMU_INLINE uint16_t x_neg(uint16_t a) { return a ^ 0x8000; }
template <class O> EMU_INLINE uint16_t x_abs(uint16_t a) { return a & 0x7fff; }
template <class O> EMU_INLINE uint16_t x_relu(uint16_t a) { return O::to(a) > 0 ? a : 0; }
template <class O> EMU_INLINE uint16_t x_ex2(uint16_t a) { return O::from(__builtin_exp2f(O::to(a))); }
template <class O> EMU_INLINE uint16_t x_tanh(uint16_t a) { return O::from(__builtin_tanhf(O::to(a))); }

#define EMU_PAIR1(name) template <class O> EMU_INLINE uint32_t name##2(uint32_t a) { \
    return name<O>((uint16_t) a) | (uint32_t) name<O>((uint16_t) (a >> 16)) << 16; }
#define EMU_PAIR2(name) template <class O> EMU_INLINE uint32_t name##2(uint32_t a, uint32_t b) { \
    return name<O>((uint16_t) a, (uint16_t) b) | (uint32_t) name<O>((uint16_t) (a >> 16), (uint16_t) (b >> 16)) << 16; }
#define EMU_PAIR3(name) template <class O> EMU_INLINE uint32_t name##2(uint32_t a, uint32_t b, uint32_t c) { \
    return name<O>((uint16_t) a, (uint16_t) b, (uint16_t) c) | \
        (uint32_t) name<O>((uint16_t) (a >> 16), (uint16_t) (b >> 16), (uint16_t) (c >> 16)) << 16; }
EMU_PAIR1(x_neg) EMU_PAIR1(x_abs) EMU_PAIR1(x_relu) EMU_PAIR1(x_ex2) EMU_PAIR1(x_tanh)
EMU_PAIR2(x_add) EMU_PAIR2(x_sub) EMU_PAIR2(x_mul) EMU_PAIR2(x_min) EMU_PAIR2(x_max) EMU_PAIR3(x_fma)

// ------------------------------------------------------------------------------------------------ integers

template <class T> EMU_INLINE T div_i(T a, T b) { // a GPU does not trap
    if (b == 0) { return (T) -1; }
    if ((T) -1 < 0 && b == (T) -1) { return (T) (0 - (unsigned long long) a); }
    return a/b;
}
template <class T> EMU_INLINE T rem_i(T a, T b) {
    if (b == 0) { return a; }
    if ((T) -1 < 0 && b == (T) -1) { return 0; }
    return a%b;
}
template <class T> EMU_INLINE T shl_i(T a, uint32_t n) { return n >= 8*sizeof(T) ? 0 : (T) (a << n); }
template <class T> EMU_INLINE T shr_i(T a, uint32_t n) {
    if (n >= 8*sizeof(T)) { n = 8*sizeof(T) - 1; if ((T) -1 > 0) { return 0; } }
    return (T) (a >> n);
}
EMU_INLINE uint32_t shf_l(uint32_t a, uint32_t b, uint32_t n, bool wrap) {
    n = wrap ? n & 31 : n > 32 ? 32 : n;
    return (uint32_t) (((uint64_t) b << 32 | a) << n >> 32);
}
EMU_INLINE uint32_t shf_r(uint32_t a, uint32_t b, uint32_t n, bool wrap) {
    n = wrap ? n & 31 : n > 32 ? 32 : n;
    return (uint32_t) (((uint64_t) b << 32 | a) >> n);
}
EMU_INLINE uint32_t prmt(uint32_t a, uint32_t b, uint32_t c) {
    const uint64_t x = (uint64_t) b << 32 | a;
    uint32_t r = 0;
    for (int i = 0; i < 4; i++) {
        const uint32_t s = c >> 4*i & 15;
        uint8_t v = (uint8_t) (x >> 8*(s & 7));
        if (s & 8) { v = v & 0x80 ? 0xff : 0; }
        r |= (uint32_t) v << 8*i;
    }
    return r;
}
template <class T> EMU_INLINE T bfe_i(T a, uint32_t pos, uint32_t len) {
    const uint32_t bits = 8*sizeof(T);
    pos &= 0xff; len &= 0xff;
    if (len == 0) { return 0; }
    if ((T) -1 > 0) {
        const T x = pos >= bits ? 0 : a >> pos;
        return len >= bits ? x : x & (((T) 1 << len) - 1);
    }
    const bool sign = pos + len > bits ? a < 0 : (a >> (pos + len - 1)) & 1;
    T x = pos >= bits ? (T) (sign ? -1 : 0) : a >> pos;
    if (len < bits) {
        const T mask = (T) (((uint64_t) 1 << len) - 1);
        x = sign ? x | ~mask : x & mask;
    }
    return x;
}
template <class T> EMU_INLINE T bfi_u(T a, T b, uint32_t pos, uint32_t len) {
    const uint32_t bits = 8*sizeof(T);
    pos &= 0xff; len &= 0xff;
    if (pos >= bits || len == 0) { return b; }
    T mask = len >= bits ? ~(T) 0 : ((T) 1 << len) - 1;
    mask <<= pos;
    return (b & ~mask) | (a << pos & mask);
}
EMU_INLINE uint32_t bmsk(uint32_t pos, uint32_t len, bool wrap) {
    if (wrap) { pos &= 31; len &= 31; }
    if (pos >= 32 || len == 0) { return 0; }
    return (len >= 32 ? 0xffffffff : (1u << len) - 1) << pos;
}
EMU_INLINE uint32_t brev32(uint32_t x) {
    x = (x >> 1 & 0x55555555) | (x & 0x55555555) << 1;
    x = (x >> 2 & 0x33333333) | (x & 0x33333333) << 2;
    x = (x >> 4 & 0x0f0f0f0f) | (x & 0x0f0f0f0f) << 4;
    return __builtin_bswap32(x);
}
EMU_INLINE uint64_t brev64(uint64_t x) { return (uint64_t) brev32((uint32_t) x) << 32 | brev32((uint32_t) (x >> 32)); }
EMU_INLINE uint32_t clz32(uint32_t x) { return x ? __builtin_clz(x) : 32; }
EMU_INLINE uint32_t clz64(uint64_t x) { return x ? __builtin_clzll(x) : 64; }
EMU_INLINE uint32_t bfind_u(uint64_t x) { return x ? 63 - __builtin_clzll(x) : 0xffffffff; }
EMU_INLINE uint32_t lop3(uint32_t a, uint32_t b, uint32_t c, uint32_t lut) {
    uint32_t r = 0;
    if (lut & 0x01) r |= ~a & ~b & ~c;
    if (lut & 0x02) r |= ~a & ~b &  c;
    if (lut & 0x04) r |= ~a &  b & ~c;
    if (lut & 0x08) r |= ~a &  b &  c;
    if (lut & 0x10) r |=  a & ~b & ~c;
    if (lut & 0x20) r |=  a & ~b &  c;
    if (lut & 0x40) r |=  a &  b & ~c;
    if (lut & 0x80) r |=  a &  b &  c;
    return r;
}
template <class A, class B> EMU_INLINE uint32_t dp4a(uint32_t a, uint32_t b, uint32_t c) {
    for (int i = 0; i < 4; i++) { c += (int32_t) (A) (a >> 8*i) * (int32_t) (B) (b >> 8*i); }
    return c;
}
template <class A, class B> EMU_INLINE uint32_t dp2a(uint32_t a, uint32_t b, uint32_t c, int hi) {
    for (int i = 0; i < 2; i++) { c += (int32_t) (A) (a >> 16*i) * (int32_t) (B) (b >> 8*(i + 2*hi)); }
    return c;
}
template <class T, class S> EMU_INLINE T sat_i(S x) { // S wider than T, or of another sign
    const T lo = (T) -1 > 0 ? 0 : (T) ((T) 1 << (8*sizeof(T) - 1)), hi = (T) -1 > 0 ? (T) -1 : (T) ~((T) 1 << (8*sizeof(T) - 1));
    if ((S) -1 > 0) { return (unsigned long long) x > (unsigned long long) hi ? hi : (T) x; }
    if ((long long) x < 0) { return lo == 0 || (long long) x < (long long) lo ? lo : (T) x; }
    return (unsigned long long) x > (unsigned long long) hi ? hi : (T) x;
}
// float to integer, which saturates; NaN is 0 (for 64 bits, the smallest integer)
template <class T> EMU_INLINE T f2i(double x) { // x: a whole number
    if (x != x) { return sizeof(T) == 8 ? (T) ((T) 1 << 63) : 0; }
    const double hi = (T) -1 > 0 ? __builtin_ldexp(1.0, 8*sizeof(T)) : __builtin_ldexp(1.0, 8*sizeof(T) - 1);
    if (x >= hi) { return (T) -1 > 0 ? (T) -1 : (T) ~((T) 1 << (8*sizeof(T) - 1)); }
    if ((T) -1 > 0) { return x <= 0 ? 0 : (T) x; }
    return x <= -hi ? (T) ((T) 1 << (8*sizeof(T) - 1)) : (T) x;
}
EMU_INLINE double round_even(double x) { return __builtin_rint(x); } // the host rounds to nearest even
EMU_INLINE double round_zero(double x) { return __builtin_trunc(x); }
EMU_INLINE double round_down(double x) { return __builtin_floor(x); }
EMU_INLINE double round_up  (double x) { return __builtin_ceil(x); }
EMU_INLINE float d2f_rz(double x) { float f = (float) x; double a = f < 0 ? -f : f, b = x < 0 ? -x : x; return a > b ? u2f(f2u(f) - 1) : f; }
EMU_INLINE float d2f_rd(double x) { float f = (float) x; return (double) f > x ? (f > 0 ? u2f(f2u(f) - 1) : f == 0 ? -1.4e-45f : u2f(f2u(f) + 1)) : f; }
EMU_INLINE float d2f_ru(double x) { float f = (float) x; return (double) f < x ? (f < 0 ? u2f(f2u(f) - 1) : u2f(f2u(f) + 1)) : f; }
