// headkv-cpu-simd.h: the vector type of this machine and the two register tiles of attention.
//
// `vec` holds VEC floats: AVX-512 (16), AVX2 (8), NEON (4), else one plain float, which compilers widen as they can.
// Rows of the cache are loaded from f32, f16 or bf16 straight into a vec, so they are read once and never copied.
//
//     dot_tile   scores of a few queries against 4 rows at a time: s[query][row], for decoding
//     gemm_tile  C[m][j] = scale[m]*C[m][j] + sum_k A[m][k]*B[k][j]: weights x V rows, and scores when queries are many
//
// Lengths along a row are multiples of VEC here; headkv-cpu.cpp pads where a head size is not.

#ifndef HEADKV_CPU_SIMD_H
#define HEADKV_CPU_SIMD_H

#if defined(__GNUC__) && !defined(__clang__)
#    pragma GCC diagnostic ignored "-Wmaybe-uninitialized" // gcc 12 warns about its own AVX-512 header (bug 105593)
#endif

#include "ggml-cpu-impl.h"
#include "simd-mappings.h"
#include "vec.h"

#include <cmath>
#include <cstdint>
#include <cstring>

namespace headkv {

// Register tiles: DOT_QUERIES x 4 and GEMM_ROWS x GEMM_VECS accumulators, chosen to fill the registers without spilling

#if defined(__AVX512F__) && defined(__AVX512DQ__)
#define HEADKV_CPU_SIMD 1

using vec = __m512;

constexpr int VEC         = 16;
constexpr int DOT_QUERIES = 6;
constexpr int GEMM_ROWS   = 6;
constexpr int GEMM_VECS   = 4;

inline vec   vec_load(const float * x)       { return _mm512_loadu_ps(x); }
inline vec   vec_load(const ggml_fp16_t * x) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *) x)); }
inline vec   vec_load(const ggml_bf16_t * x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *) x)), 16));
}
inline vec   vec_load(const int8_t * x) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *) x)));
}
inline void  vec_store(float * x, vec a)     { _mm512_storeu_ps(x, a); }
inline vec   vec_set(float x)                { return _mm512_set1_ps(x); }
inline vec   vec_add(vec a, vec b)           { return _mm512_add_ps(a, b); }
inline vec   vec_sub(vec a, vec b)           { return _mm512_sub_ps(a, b); }
inline vec   vec_mul(vec a, vec b)           { return _mm512_mul_ps(a, b); }
inline vec   vec_div(vec a, vec b)           { return _mm512_div_ps(a, b); }
inline vec   vec_fma(vec a, vec b, vec c)    { return _mm512_fmadd_ps(a, b, c); }
inline vec   vec_max(vec a, vec b)           { return _mm512_max_ps(a, b); }
inline vec   vec_exp(vec a)                  { return ggml_v_expf(a); }
inline float vec_sum(vec a)                  { return _mm512_reduce_add_ps(a); }
inline float vec_top(vec a)                  { return _mm512_reduce_max_ps(a); }

// dst[i] = sum of a_i
inline void vec_sum4(float * dst, vec a0, vec a1, vec a2, vec a3) {
    const __m512 b0 = _mm512_add_ps(_mm512_unpacklo_ps(a0, a1), _mm512_unpackhi_ps(a0, a1));
    const __m512 b1 = _mm512_add_ps(_mm512_unpacklo_ps(a2, a3), _mm512_unpackhi_ps(a2, a3));
    const __m512 c  = _mm512_add_ps(_mm512_shuffle_ps(b0, b1, 0x44), _mm512_shuffle_ps(b0, b1, 0xee));
    const __m256 d  = _mm256_add_ps(_mm512_castps512_ps256(c), _mm512_extractf32x8_ps(c, 1));
    _mm_storeu_ps(dst, _mm_add_ps(_mm256_castps256_ps128(d), _mm256_extractf128_ps(d, 1)));
}

#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define HEADKV_CPU_SIMD 1

using vec = __m256;

constexpr int VEC         = 8;
constexpr int DOT_QUERIES = 3;
constexpr int GEMM_ROWS   = 6;
constexpr int GEMM_VECS   = 2;

inline vec   vec_load(const float * x)       { return _mm256_loadu_ps(x); }
inline vec   vec_load(const ggml_fp16_t * x) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *) x)); }
inline vec   vec_load(const ggml_bf16_t * x) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *) x)), 16));
}
inline vec   vec_load(const int8_t * x) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *) x)));
}
inline void  vec_store(float * x, vec a)     { _mm256_storeu_ps(x, a); }
inline vec   vec_set(float x)                { return _mm256_set1_ps(x); }
inline vec   vec_add(vec a, vec b)           { return _mm256_add_ps(a, b); }
inline vec   vec_sub(vec a, vec b)           { return _mm256_sub_ps(a, b); }
inline vec   vec_mul(vec a, vec b)           { return _mm256_mul_ps(a, b); }
inline vec   vec_div(vec a, vec b)           { return _mm256_div_ps(a, b); }
inline vec   vec_fma(vec a, vec b, vec c)    { return _mm256_fmadd_ps(a, b, c); }
inline vec   vec_max(vec a, vec b)           { return _mm256_max_ps(a, b); }
inline vec   vec_exp(vec a)                  { return ggml_v_expf(a); }

inline float vec_sum(vec a) {
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}
inline float vec_top(vec a) {
    __m128 x = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}
inline void vec_sum4(float * dst, vec a0, vec a1, vec a2, vec a3) {
    const __m256 b = _mm256_hadd_ps(_mm256_hadd_ps(a0, a1), _mm256_hadd_ps(a2, a3));
    _mm_storeu_ps(dst, _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1)));
}

#elif defined(__ARM_NEON) && defined(__aarch64__)
#define HEADKV_CPU_SIMD 1

using vec = float32x4_t;

constexpr int VEC         = 4;
constexpr int DOT_QUERIES = 6;
constexpr int GEMM_ROWS   = 6;
constexpr int GEMM_VECS   = 4;

inline vec   vec_load(const float * x)       { return vld1q_f32(x); }
inline vec   vec_load(const ggml_fp16_t * x) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16((const uint16_t *) x))); }
inline vec   vec_load(const ggml_bf16_t * x) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16((const uint16_t *) x), 16)); }
inline vec   vec_load(const int8_t * x) {
    int32_t bytes;
    memcpy(&bytes, x, sizeof(bytes));
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vcreate_s8((uint32_t) bytes)))));
}
inline void  vec_store(float * x, vec a)     { vst1q_f32(x, a); }
inline vec   vec_set(float x)                { return vdupq_n_f32(x); }
inline vec   vec_add(vec a, vec b)           { return vaddq_f32(a, b); }
inline vec   vec_sub(vec a, vec b)           { return vsubq_f32(a, b); }
inline vec   vec_mul(vec a, vec b)           { return vmulq_f32(a, b); }
inline vec   vec_div(vec a, vec b)           { return vdivq_f32(a, b); }
inline vec   vec_fma(vec a, vec b, vec c)    { return vfmaq_f32(c, a, b); }
inline vec   vec_max(vec a, vec b)           { return vmaxq_f32(a, b); }
inline float vec_sum(vec a)                  { return vaddvq_f32(a); }
inline float vec_top(vec a)                  { return vmaxvq_f32(a); }

#if defined(__ARM_FEATURE_SVE)
// ggml has only a version for SVE vectors then. The same polynomial, but 0 below the smallest normal number
inline vec vec_exp(vec x) {
    const vec n = vrndnq_f32(vmulq_n_f32(x, 0x1.715476p+0f));
    const vec b = vfmsq_f32(vfmsq_f32(x, n, vdupq_n_f32(0x1.62e4p-1f)), n, vdupq_n_f32(0x1.7f7d1cp-20f));
    const vec u = vmulq_f32(b, b);
    const vec j = vfmaq_f32(vmulq_n_f32(b, 0x1.ffffecp-1f),
        vfmaq_f32(vfmaq_f32(vdupq_n_f32(0x1.fffdb6p-2f), vdupq_n_f32(0x1.555e66p-3f), b),
                  vfmaq_f32(vdupq_n_f32(0x1.573e2ep-5f), vdupq_n_f32(0x1.0e4020p-7f), b), u), u);
    const vec k = vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127)), 23));
    const vec r = vbslq_f32(vcltq_f32(x, vdupq_n_f32(-87.0f)), vdupq_n_f32(0.0f), vfmaq_f32(k, j, k));
    return vbslq_f32(vcgtq_f32(x, vdupq_n_f32(88.0f)), vdupq_n_f32(INFINITY), r);
}
#else
inline vec vec_exp(vec a) { return ggml_v_expf(a); }
#endif

inline void vec_sum4(float * dst, vec a0, vec a1, vec a2, vec a3) {
    vst1q_f32(dst, vpaddq_f32(vpaddq_f32(a0, a1), vpaddq_f32(a2, a3)));
}

#else
#define HEADKV_CPU_SIMD 0

using vec = float;

constexpr int VEC         = 1;
constexpr int DOT_QUERIES = 2;
constexpr int GEMM_ROWS   = 2;
constexpr int GEMM_VECS   = 4;

inline vec   vec_load(const float * x)       { return *x; }
inline vec   vec_load(const ggml_fp16_t * x) { return GGML_CPU_FP16_TO_FP32(*x); }
inline vec   vec_load(const ggml_bf16_t * x) { return GGML_BF16_TO_FP32(*x); }
inline void  vec_store(float * x, vec a)     { *x = a; }
inline vec   vec_set(float x)                { return x; }
inline vec   vec_add(vec a, vec b)           { return a + b; }
inline vec   vec_sub(vec a, vec b)           { return a - b; }
inline vec   vec_mul(vec a, vec b)           { return a*b; }
inline vec   vec_div(vec a, vec b)           { return a/b; }
inline vec   vec_fma(vec a, vec b, vec c)    { return a*b + c; }
inline vec   vec_max(vec a, vec b)           { return a > b ? a : b; }
inline vec   vec_exp(vec a)                  { return expf(a); }
inline float vec_sum(vec a)                  { return a; }
inline float vec_top(vec a)                  { return a; }

inline void vec_sum4(float * dst, vec a0, vec a1, vec a2, vec a3) {
    dst[0] = a0;
    dst[1] = a1;
    dst[2] = a2;
    dst[3] = a3;
}

#endif

// asks for the cache line of x before it is needed
inline void prefetch(const void * x) {
#if defined(__GNUC__)
    __builtin_prefetch(x, 0, 2);
#else
    GGML_UNUSED(x);
#endif
}

inline int64_t vec_pad(int64_t n) {
    return (n + VEC - 1)/VEC*VEC;
}

// cap*tanh(s), written with one exp: exact at both infinities
inline vec vec_softcap(vec s, float cap) {
    const vec e = vec_exp(vec_add(s, s));
    return vec_mul(vec_set(cap), vec_sub(vec_set(1.0f), vec_div(vec_set(2.0f), vec_add(e, vec_set(1.0f)))));
}

// how a tile finds row k of its right-hand side
template <class T> struct row_list {
    const char * const * rows;

    const T * operator()(int64_t k) const { return (const T *) rows[k]; }
};

struct row_matrix {
    const float * data;
    int64_t       ld; // floats between rows

    const float * operator()(int64_t k) const { return data + k*ld; }
};

// s[i][r] = q[i] . rows(r) for NQ queries and n_rows rows, a multiple of 4. n: floats of a row
template <int NQ, class Rows>
inline void dot_tile(float * s, int64_t ld_s, const float * q, int64_t ld_q, const Rows & rows, int n_rows, int64_t n) {
    for (int r = 0; r < n_rows; r += 4) {
        const auto * k0 = rows(r);
        const auto * k1 = rows(r + 1);
        const auto * k2 = rows(r + 2);
        const auto * k3 = rows(r + 3);

        vec acc[NQ][4];
        for (int i = 0; i < NQ; i++) {
            acc[i][0] = acc[i][1] = acc[i][2] = acc[i][3] = vec_set(0.0f);
        }
        for (int64_t d = 0; d < n; d += VEC) {
            const vec k[4] = { vec_load(k0 + d), vec_load(k1 + d), vec_load(k2 + d), vec_load(k3 + d) };
            for (int i = 0; i < NQ; i++) {
                const vec qi = vec_load(q + i*ld_q + d);
                for (int j = 0; j < 4; j++) {
                    acc[i][j] = vec_fma(k[j], qi, acc[i][j]);
                }
            }
        }
        for (int i = 0; i < NQ; i++) {
            vec_sum4(s + i*ld_s + r, acc[i][0], acc[i][1], acc[i][2], acc[i][3]);
        }
    }
}

template <int NQ = DOT_QUERIES, class Rows>
inline void dot_queries(
        int nq, float * s, int64_t ld_s, const float * q, int64_t ld_q, const Rows & rows, int n_rows, int64_t n) {
    if (nq == NQ) {
        dot_tile<NQ>(s, ld_s, q, ld_q, rows, n_rows, n);
    } else if constexpr (NQ > 1) {
        dot_queries<NQ - 1>(nq, s, ld_s, q, ld_q, rows, n_rows, n);
    }
}

// the left-hand side of a gemm: element (m, k) is data[m*ld_m + k*ld_k]
struct gemm_lhs {
    const float * data;
    int64_t       ld_m;
    int64_t       ld_k;
};

// MR x NR vecs of C, from column j on. scale NULL: C is overwritten
template <int MR, int NR, class Rows>
inline void gemm_tile(float * c, int64_t ld_c, const float * scale, const gemm_lhs & a, const Rows & b, int64_t j, int n_k) {
    vec acc[MR][NR];
    for (int m = 0; m < MR; m++) {
        for (int v = 0; v < NR; v++) {
            acc[m][v] = scale ? vec_mul(vec_set(scale[m]), vec_load(c + m*ld_c + j + v*VEC)) : vec_set(0.0f);
        }
    }
    for (int k = 0; k < n_k; k++) {
        const auto * row = b(k) + j;
        vec bk[NR];
        for (int v = 0; v < NR; v++) {
            bk[v] = vec_load(row + v*VEC);
        }
        for (int m = 0; m < MR; m++) {
            const vec am = vec_set(a.data[m*a.ld_m + k*a.ld_k]);
            for (int v = 0; v < NR; v++) {
                acc[m][v] = vec_fma(am, bk[v], acc[m][v]);
            }
        }
    }
    for (int m = 0; m < MR; m++) {
        for (int v = 0; v < NR; v++) {
            vec_store(c + m*ld_c + j + v*VEC, acc[m][v]);
        }
    }
}

template <int NR, int MR = GEMM_ROWS, class Rows>
inline void gemm_rows(
        int nm, float * c, int64_t ld_c, const float * scale, const gemm_lhs & a, const Rows & b, int64_t j, int n_k) {
    if (nm == MR) {
        gemm_tile<MR, NR>(c, ld_c, scale, a, b, j, n_k);
    } else if constexpr (MR > 1) {
        gemm_rows<NR, MR - 1>(nm, c, ld_c, scale, a, b, j, n_k);
    }
}

template <int NR = GEMM_VECS, class Rows>
inline void gemm_columns(
        int nv, int nm, float * c, int64_t ld_c, const float * scale, const gemm_lhs & a, const Rows & b, int64_t j, int n_k) {
    if (nv == NR) {
        gemm_rows<NR>(nm, c, ld_c, scale, a, b, j, n_k);
    } else if constexpr (NR > 1) {
        gemm_columns<NR - 1>(nv, nm, c, ld_c, scale, a, b, j, n_k);
    }
}

// n work tiles in groups of at most n_max, as even as can be: the size of the group that starts at i
inline int even_group(int64_t n, int64_t i, int n_max) {
    const int64_t n_group = (n + n_max - 1)/n_max;
    const int64_t g       = (i*n_group + n - 1)/n; // groups before i
    return (int) ((g + 1)*n/n_group - i);
}

// s[i][r] = q[i] . rows(r), any number of queries
template <class Rows>
inline void dot(int64_t nq, float * s, int64_t ld_s, const float * q, int64_t ld_q, const Rows & rows, int n_rows, int64_t n) {
    for (int64_t i = 0; i < nq; ) {
        const int ni = even_group(nq, i, DOT_QUERIES);
        dot_queries(ni, s + i*ld_s, ld_s, q + i*ld_q, ld_q, rows, n_rows, n);
        i += ni;
    }
}

// C = scale*C + A*B, or A*B if scale is NULL. C: [n_m][n], n a multiple of VEC; scale: [n_m]
template <class Rows>
inline void gemm(
        int64_t n_m, int64_t n, int n_k, float * c, int64_t ld_c, const float * scale, const gemm_lhs & a, const Rows & b) {
    for (int64_t m = 0; m < n_m; ) {
        const int      nm = even_group(n_m, m, GEMM_ROWS);
        const gemm_lhs am = { a.data + m*a.ld_m, a.ld_m, a.ld_k };
        for (int64_t j = 0; j < n; ) {
            const int nv = even_group(n/VEC, j/VEC, GEMM_VECS);
            gemm_columns(nv, nm, c + m*ld_c, ld_c, scale ? scale + m : nullptr, am, b, j, n_k);
            j += nv*VEC;
        }
        m += nm;
    }
}

} // namespace headkv

#endif // HEADKV_CPU_SIMD_H
