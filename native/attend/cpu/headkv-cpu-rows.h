// headkv-cpu-rows.h: rows of a cache type as f32.
//
// The same numbers as dequantize_row_* in ggml-quants.c. Those live in ggml-base, which is compiled without this machine's
// vector instructions, and compilers do not vectorise them; per row of 128 elements these take 8 to 20 ns instead of 30 to 200.
// Machines without a vector type of ours (headkv-cpu-simd.h) use ggml's.

#ifndef HEADKV_CPU_ROWS_H
#define HEADKV_CPU_ROWS_H

#define GGML_COMMON_DECL_C
#include "ggml-common.h"

#include "headkv-cpu-simd.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace headkv {

#if HEADKV_CPU_SIMD

// 16 bytes at once

#if defined(__AVX2__)

using bytes = __m128i;

inline bytes bytes_load(const void * x)              { return _mm_loadu_si128((const __m128i *) x); }
inline void  bytes_store(void * x, bytes a)          { _mm_storeu_si128((__m128i *) x, a); }
inline bytes bytes_make(uint64_t low, uint64_t high) { return _mm_set_epi64x((int64_t) high, (int64_t) low); }
inline bytes bytes_or(bytes a, bytes b)              { return _mm_or_si128(a, b); }
inline bytes bytes_lookup(bytes table, bytes index)  { return _mm_shuffle_epi8(table, index); }
inline bytes bytes_low_nibble(bytes a)               { return _mm_and_si128(a, _mm_set1_epi8(0xf)); }
inline bytes bytes_high_nibble(bytes a)              { return bytes_low_nibble(_mm_srli_epi16(a, 4)); }

#else

using bytes = uint8x16_t;

inline bytes bytes_load(const void * x)              { return vld1q_u8((const uint8_t *) x); }
inline void  bytes_store(void * x, bytes a)          { vst1q_u8((uint8_t *) x, a); }
inline bytes bytes_make(uint64_t low, uint64_t high) { return vcombine_u8(vcreate_u8(low), vcreate_u8(high)); }
inline bytes bytes_or(bytes a, bytes b)              { return vorrq_u8(a, b); }
inline bytes bytes_lookup(bytes table, bytes index)  { return vqtbl1q_u8(table, index); }
inline bytes bytes_low_nibble(bytes a)               { return vandq_u8(a, vdupq_n_u8(0xf)); }
inline bytes bytes_high_nibble(bytes a)              { return vshrq_n_u8(a, 4); }

#endif

constexpr int QK = 32; // elements of a block, of every type here

// the elements of a block before their scale: low, then high
struct block_bytes {
    bytes low;
    bytes high;
};

// two elements in a byte: the low nibbles come first
inline block_bytes unpack_nibbles(const uint8_t * qs) {
    const bytes x = bytes_load(qs);
    return { bytes_low_nibble(x), bytes_high_nibble(x) };
}

// bit i as 16 in byte i
inline uint64_t spread_fifth_bits(uint8_t bits) {
    const uint64_t x = (bits*0x0101010101010101u) & 0x8040201008040201u;
    return ((x + 0x7f7f7f7f7f7f7f7fu) & 0x8080808080808080u) >> 3;
}

inline block_bytes unpack_five_bits(const uint8_t * qs, const uint8_t * qh) {
    const block_bytes x = unpack_nibbles(qs);
    return {
        bytes_or(x.low,  bytes_make(spread_fifth_bits(qh[0]), spread_fifth_bits(qh[1]))),
        bytes_or(x.high, bytes_make(spread_fifth_bits(qh[2]), spread_fifth_bits(qh[3]))),
    };
}

// y[j] = x[j]*d + m
inline void scale_block(const int8_t * x, float d, float m, float * y) {
    for (int j = 0; j < QK; j += VEC) {
        vec_store(y + j, vec_fma(vec_load(x + j), vec_set(d), vec_set(m)));
    }
}

inline void scale_block(const block_bytes & x, float d, float m, float * y) {
    int8_t bytes[QK];
    bytes_store(bytes,        x.low);
    bytes_store(bytes + QK/2, x.high);
    scale_block(bytes, d, m, y);
}

inline void block_to_f32(const block_q8_0 & b, float * y) {
    scale_block(b.qs, GGML_CPU_FP16_TO_FP32(b.d), 0.0f, y);
}

inline void block_to_f32(const block_q4_0 & b, float * y) {
    const float d = GGML_CPU_FP16_TO_FP32(b.d);
    scale_block(unpack_nibbles(b.qs), d, -8*d, y);
}

inline void block_to_f32(const block_q4_1 & b, float * y) {
    scale_block(unpack_nibbles(b.qs), GGML_CPU_FP16_TO_FP32(b.d), GGML_CPU_FP16_TO_FP32(b.m), y);
}

inline void block_to_f32(const block_q5_0 & b, float * y) {
    const float d = GGML_CPU_FP16_TO_FP32(b.d);
    scale_block(unpack_five_bits(b.qs, b.qh), d, -16*d, y);
}

inline void block_to_f32(const block_q5_1 & b, float * y) {
    scale_block(unpack_five_bits(b.qs, b.qh), GGML_CPU_FP16_TO_FP32(b.d), GGML_CPU_FP16_TO_FP32(b.m), y);
}

inline void block_to_f32(const block_iq4_nl & b, float * y) {
    static const int8_t values[16] = { -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113 };
    const bytes       table = bytes_load(values);
    const block_bytes x     = unpack_nibbles(b.qs);
    scale_block({ bytes_lookup(table, x.low), bytes_lookup(table, x.high) }, GGML_CPU_FP16_TO_FP32(b.d), 0.0f, y);
}

template <class Block> inline bool blocks_to_f32(const char * row, int64_t n, float * y) {
    const Block * b = (const Block *) row;
    for (int64_t i = 0; i < n/QK; i++) {
        block_to_f32(b[i], y + i*QK);
    }
    return true;
}

// false: not one of our types
inline bool quantised_row_to_f32(ggml_type type, const char * row, int64_t n, float * y) {
    switch (type) {
        case GGML_TYPE_Q8_0:   return blocks_to_f32<block_q8_0>  (row, n, y);
        case GGML_TYPE_Q4_0:   return blocks_to_f32<block_q4_0>  (row, n, y);
        case GGML_TYPE_Q4_1:   return blocks_to_f32<block_q4_1>  (row, n, y);
        case GGML_TYPE_Q5_0:   return blocks_to_f32<block_q5_0>  (row, n, y);
        case GGML_TYPE_Q5_1:   return blocks_to_f32<block_q5_1>  (row, n, y);
        case GGML_TYPE_IQ4_NL: return blocks_to_f32<block_iq4_nl>(row, n, y);
        default:               return false;
    }
}

#else

inline bool quantised_row_to_f32(ggml_type, const char *, int64_t, float *) {
    return false;
}

#endif // HEADKV_CPU_SIMD

inline void row_to_f32(ggml_type type, const char * row, int64_t n, float * y) {
    if (type == GGML_TYPE_F32) {
        memcpy(y, row, n*sizeof(float));
    } else if (type == GGML_TYPE_F16) {
        ggml_cpu_fp16_to_fp32((const ggml_fp16_t *) row, y, n);
    } else if (type == GGML_TYPE_BF16) {
        ggml_cpu_bf16_to_fp32((const ggml_bf16_t *) row, y, n);
    } else if (!quantised_row_to_f32(type, row, n, y)) {
        ggml_get_type_traits(type)->to_float(row, y, n);
    }
}

// n rows of n_elements, padded with zeros to ld
inline void rows_to_f32(ggml_type type, const char * const * rows, int n, int64_t n_elements, float * dst, int64_t ld) {
    for (int i = 0; i < n; i++) {
        row_to_f32(type, rows[i], n_elements, dst + i*ld);
        std::fill(dst + i*ld + n_elements, dst + (i + 1)*ld, 0.0f);
    }
}

} // namespace headkv

#endif // HEADKV_CPU_ROWS_H
