// headkv-cuda-rows.cuh: rows of a cache type, in pieces of the size that a lane takes at once.
//
// A piece is n elements (8, 4 or 2) of one row. The 4 or 8 lanes that share a row cut 32 of its elements (16 at the end of a row
// whose size is no multiple of 32) into equal pieces, so that together they read neighbouring bytes. Which elements a
// piece holds is up to the type (`element`): attention sums over the elements of K, and each element of V has its own
// column, so any assignment will do as long as Q and the output use the same.
//
// load() fetches the raw bytes, words() turns them into n/2 pairs of f16, in the order of `element`. Keys and values are f16 in
// the matrix units; bf16 beyond 65504 would overflow there, as it does in upstream's kernels.

#pragma once

#include "headkv-cuda-lane.cuh"

namespace headkv {

struct row_f16 {
    static constexpr int BLOCK = 1; // elements of a block of the type

    template <int n> struct piece {
        uint32_t w[n/2];

        // base: first element of the 4*n or 8*n ones that are shared; pos: number of the piece among them
        HEADKV_METHOD void load(const char * row, int base, int pos) { load_words<n/2>(w, row + 2*(base + n*pos)); }

        HEADKV_METHOD void words(uint32_t * x) const {
            HEADKV_UNROLL
            for (int i = 0; i < n/2; i++) {
                x[i] = w[i];
            }
        }
    };

    // element i of piece pos, counted from base
    template <int n> HEADKV_METHOD static constexpr int element(int pos, int i) { return n*pos + i; }
};

struct row_bf16 {
    static constexpr int BLOCK = 1;

    template <int n> struct piece {
        uint32_t w[n/2];

        HEADKV_METHOD void load(const char * row, int base, int pos) { load_words<n/2>(w, row + 2*(base + n*pos)); }

        HEADKV_METHOD void words(uint32_t * x) const {
            HEADKV_UNROLL
            for (int i = 0; i < n/2; i++) {
                const uint32_t bits[2] = { w[i] << 16, w[i] & 0xffff0000 };
                float f[2];
                memcpy(f, bits, sizeof(f));
                x[i] = half2_make(f[0], f[1]);
            }
        }
    };

    template <int n> HEADKV_METHOD static constexpr int element(int pos, int i) { return n*pos + i; }
};

// Two bytes u as a pair of f16, times d: 0x6400 | u is 1024 + u as f16, so that one subtraction leaves u - zero, exactly.
// Much cheaper than conversions from integers, of which a GPU does few in a cycle.
template <int first> HEADKV_DEVICE uint32_t bytes_to_half2(uint32_t bytes, uint32_t zero, uint32_t d) {
    const uint32_t x = byte_perm(bytes, 0x64646464, first == 0 ? 0x4140 : 0x4342);
    return half2_mul(half2_sub(x, zero), d);
}

// block: f16 d, then 32 int8; element = d*q
struct row_q8_0 {
    static constexpr int BLOCK       = 32;
    static constexpr int BLOCK_BYTES = 34;

    template <int n> struct piece {
        static_assert(n % 4 == 0, "whole words");
        uint32_t w[n/4];
        uint32_t d;

        HEADKV_METHOD void load(const char * row, int base, int pos) {
            const char * block = row + base/BLOCK*BLOCK_BYTES; // a multiple of 2 bytes, not of 4
            const char * q     = block + 2 + n*pos;
            d = load_u16(block);
            HEADKV_UNROLL
            for (int i = 0; i < n/4; i++) {
                w[i] = load_u16(q + 4*i) | load_u16(q + 4*i + 2) << 16;
            }
        }

        HEADKV_METHOD void words(uint32_t * x) const {
            const uint32_t d2 = d | d << 16;
            HEADKV_UNROLL
            for (int i = 0; i < n/4; i++) {
                const uint32_t u = w[i] ^ 0x80808080; // q + 128
                x[2*i]     = bytes_to_half2<0>(u, 0x64806480, d2); // 1024 + 128
                x[2*i + 1] = bytes_to_half2<2>(u, 0x64806480, d2);
            }
        }
    };

    template <int n> HEADKV_METHOD static constexpr int element(int pos, int i) { return n*pos + i; }
};

// block: f16 d, then 16 bytes: byte j holds elements j (low) and j + 16 (high); element = d*(q - 8)
struct row_q4_0 {
    static constexpr int BLOCK       = 32;
    static constexpr int BLOCK_BYTES = 18;

    // n/2 bytes: first their low halves, then their high ones
    template <int n> struct piece {
        static_assert(n == 8 || n == 4, "4 or 2 bytes");
        uint32_t w;
        uint32_t d;

        HEADKV_METHOD void load(const char * row, int base, int pos) {
            const char * block = row + base/BLOCK*BLOCK_BYTES;
            const char * q     = block + 2 + n/2*pos;
            d = load_u16(block);
            w = load_u16(q);
            if constexpr (n == 8) {
                w |= load_u16(q + 2) << 16;
            }
        }

        HEADKV_METHOD void words(uint32_t * x) const {
            const uint32_t d2   = d | d << 16;
            const uint32_t low  = w      & 0x0f0f0f0f;
            const uint32_t high = w >> 4 & 0x0f0f0f0f;
            x[0]   = bytes_to_half2<0>(low,  0x64086408, d2); // 1024 + 8
            x[n/4] = bytes_to_half2<0>(high, 0x64086408, d2);
            if constexpr (n == 8) {
                x[1] = bytes_to_half2<2>(low,  0x64086408, d2);
                x[3] = bytes_to_half2<2>(high, 0x64086408, d2);
            }
        }
    };

    template <int n> HEADKV_METHOD static constexpr int element(int pos, int i) {
        return n/2*pos + i%(n/2) + (i < n/2 ? 0 : 16);
    }
};

} // namespace headkv
