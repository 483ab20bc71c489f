// headkv-metal.metal: attention of the queries over hot rows and tail, in two kernels.
//
// A *tile* is a part of the queries of one KV head (query j of a head: token j / n_gqa, query head j % n_gqa). The rows of a head
// are numbered from 0: its hot rows, then all tail cells. The rows of every head are cut into *chunks*, of one size for
// all heads, so that a long head among short ones is worked by more threadgroups:
//
//     rows     |        head 0        | head 1 |            head 2             |
//     worker   |    0    |    1    |2 |   3    |    4    |    5    |    6    |7|
//
// headkv_attend:  a threadgroup takes a chunk and a tile. Its SIMD-groups take blocks of 32 rows in turn and are added up at the
//                 end. Each row of K and V is read once for all queries of the tile.
// headkv_combine: a SIMD-group takes a query and puts the chunks of its head together.
//
// Lengths are read from device memory, the grid does not depend on them. Infinity is not used: fast math does not know it.

#include <metal_stdlib>

using namespace metal;

#include "headkv-metal-args.h"
#include "headkv-metal-rows.h"

#define HEADKV_UNROLL(x) _Pragma("clang loop unroll(full)") for (x)

constant float NO_SCORE = -FLT_MAX/2; // of a row that a query does not see
constant float MASKED   = -65504.0f;  // in the mask, and all below: -INF there

//
// attention
//

// rows of a head in memory
struct head_rows {
    device const char * hot;
    device const char * tail;
    uint64_t nb_hot;
    uint64_t nb_tail;
    int n_hot;

    device const char * at(int row) const {
        return row < n_hot ? hot + row*nb_hot : tail + (row - n_hot)*nb_tail;
    }
};

// part: accumulators [tile][worker][TQ][D], then of each the largest score and the sum
template <class Row, short D, short TQ>
kernel void headkv_attend(
        constant headkv_metal_args & args [[buffer(0)]],
        device const char  * q            [[buffer(1)]],
        device const char  * k            [[buffer(2)]],
        device const char  * v            [[buffer(3)]],
        device const char  * mask         [[buffer(4)]],
        device const char  * k_hot        [[buffer(5)]],
        device const char  * v_hot        [[buffer(6)]],
        device const int   * row_ptr      [[buffer(7)]],
        device       float * part         [[buffer(8)]],
        threadgroup float4 * shared       [[threadgroup(0)]],
        uint3  group_position [[threadgroup_position_in_grid]],
        ushort lane           [[thread_index_in_simdgroup]],
        ushort sg             [[simdgroup_index_in_threadgroup]],
        ushort n_sg           [[simdgroups_per_threadgroup]]) {
    constexpr short NL = D <= 64 ? 8 : D <= 128 ? 16 : 32; // lanes that share a row
    constexpr short NE = 32/NL;                            // rows that a SIMD-group reads at once
    constexpr short P  = D/4;                              // pieces of a row
    constexpr short N  = (P + NL - 1)/NL;                  // pieces of a lane: tx, tx + NL, ...

    // rows of a block: lane (ty, tx) reads parts of rows cc*NE + ty, cc = 0 .. NL - 1, and owns the score of row tx*NE + ty
    const short tx = lane%NL;
    const short ty = lane/NL;

    const int   tile = group_position.y;
    const chunk c    = find_chunk(args, row_ptr, group_position.x);
    if (c.ih == args.n_head_kv) {
        return;
    }

    const int first = tile*TQ; // query of the head
    const int n_q   = min((int) TQ, args.n_query - first);

    // the scaled queries, [TQ][P]
    for (short i = sg*32 + lane; i < TQ*P; i += n_sg*32) {
        const int j = first + i/P;
        if (i/P < n_q) {
            device const char * x = q + j/args.n_gqa*args.nb_q_tok + (c.ih*args.n_gqa + j%args.n_gqa)*args.nb_q_head;
            shared[i] = ((device const float4 *) x)[i%P]*args.scale;
        } else {
            shared[i] = float4(0.0f);
        }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);

    head_rows k_rows;
    k_rows.hot    = k_hot + row_ptr[c.ih]*args.nb_k_hot;
    k_rows.tail      = k + c.ih*args.nb_k_head;
    k_rows.nb_hot = args.nb_k_hot;
    k_rows.nb_tail   = args.nb_k_row;
    k_rows.n_hot  = n_hot(row_ptr, c.ih);

    head_rows v_rows;
    v_rows.hot    = v_hot + row_ptr[c.ih]*args.nb_v_hot;
    v_rows.tail      = v + c.ih*args.nb_v_head;
    v_rows.nb_hot = args.nb_v_hot;
    v_rows.nb_tail   = args.nb_v_row;
    v_rows.n_hot  = n_hot(row_ptr, c.ih);

    float  m[TQ];
    float  l[TQ]; // of the rows that the lane owns
    float4 o[TQ][N];
    HEADKV_UNROLL (short i = 0; i < TQ; i++) {
        m[i] = NO_SCORE;
        l[i] = 0.0f;
        HEADKV_UNROLL (short n = 0; n < N; n++) {
            o[i][n] = float4(0.0f);
        }
    }

    for (int row0 = c.begin + sg*32; row0 < c.end; row0 += n_sg*32) {
        const int own  = row0 + tx*NE + ty;
        const int cell = own - k_rows.n_hot;

        float bias[TQ];
        float bias_max = NO_SCORE;
        HEADKV_UNROLL (short i = 0; i < TQ; i++) {
            bias[i] = own < c.end && i < n_q ? 0.0f : NO_SCORE;
            if (args.has_mask && cell >= 0 && bias[i] == 0.0f) {
                const float value = ((device const half *) (mask + (first + i)/args.n_gqa*args.nb_mask))[cell];
                bias[i] = value > MASKED ? value : NO_SCORE;
            }
            bias_max = max(bias_max, bias[i]);
        }
        if (simd_max(bias_max) == NO_SCORE) {
            continue; // free cells, and cells of the future
        }

        // scores
        float s[TQ] = { 0.0f };
        for (short cc = 0; cc < NL; cc++) {
            device const char * row = k_rows.at(min(row0 + cc*NE + ty, c.end - 1));
            float4 x[N];
            HEADKV_UNROLL (short n = 0; n < N; n++) {
                const short piece = tx + n*NL;
                x[n] = piece < P ? Row::read(row, piece) : float4(0.0f);
            }
            HEADKV_UNROLL (short i = 0; i < TQ; i++) {
                float y = 0.0f;
                HEADKV_UNROLL (short n = 0; n < N; n++) {
                    const short piece = tx + n*NL;
                    y += piece < P ? dot(x[n], shared[i*P + piece]) : 0.0f;
                }
                HEADKV_UNROLL (short d = NL/2; d > 0; d /= 2) {
                    y += simd_shuffle_xor(y, d);
                }
                s[i] = tx == cc ? y : s[i];
            }
        }

        // softmax so far
        HEADKV_UNROLL (short i = 0; i < TQ; i++) {
            const float capped  = args.softcap != 0.0f ? args.softcap*precise::tanh(s[i]) : s[i];
            const float score   = bias[i] > NO_SCORE ? capped + bias[i] : NO_SCORE;
            const float m_new = max(m[i], simd_max(score));
            const float rescale = exp(m[i] - m_new);
            m[i] = m_new;
            s[i]   = score > NO_SCORE ? exp(score - m_new) : 0.0f;
            l[i] = l[i]*rescale + s[i];
            HEADKV_UNROLL (short n = 0; n < N; n++) {
                o[i][n] *= rescale;
            }
        }

        // values
        for (short cc = 0; cc < NL; cc++) {
            device const char * row = v_rows.at(min(row0 + cc*NE + ty, c.end - 1));
            float4 x[N];
            HEADKV_UNROLL (short n = 0; n < N; n++) {
                const short piece = tx + n*NL;
                x[n] = piece < P ? Row::read(row, piece) : float4(0.0f);
            }
            HEADKV_UNROLL (short i = 0; i < TQ; i++) {
                const float weight = simd_shuffle(s[i], (ushort) (ty*NL + cc)); // of the lane that owns the row
                HEADKV_UNROLL (short n = 0; n < N; n++) {
                    o[i][n] += weight*x[n];
                }
            }
        }
    }

    // rows of the SIMD-group: now all lanes with the same tx hold the same
    HEADKV_UNROLL (short i = 0; i < TQ; i++) {
        l[i] = simd_sum(l[i]);
        HEADKV_UNROLL (short n = 0; n < N; n++) {
            HEADKV_UNROLL (short d = NL; d < 32; d *= 2) {
                o[i][n] += simd_shuffle_xor(o[i][n], d);
            }
        }
    }

    // SIMD-groups, one after another, in the place of the queries
    threadgroup float2 * state = (threadgroup float2 *) (shared + TQ*P); // [TQ] m, l
    for (ushort other = 1; other < n_sg; other++) {
        threadgroup_barrier(mem_flags::mem_threadgroup); // queries, or the one before, are read
        if (sg == other) {
            HEADKV_UNROLL (short i = 0; i < TQ; i++) {
                HEADKV_UNROLL (short n = 0; n < N; n++) {
                    const short piece = tx + n*NL;
                    if (ty == 0 && piece < P) {
                        shared[i*P + piece] = o[i][n];
                    }
                }
                if (lane == 0) {
                    state[i] = float2(m[i], l[i]);
                }
            }
        }
        threadgroup_barrier(mem_flags::mem_threadgroup); // all is written
        if (sg == 0) {
            HEADKV_UNROLL (short i = 0; i < TQ; i++) {
                const float2 that    = state[i];
                const float  m_new = max(m[i], that.x);
                const float  a       = exp(m[i] - m_new);
                const float  b       = exp(that.x - m_new);
                m[i] = m_new;
                l[i] = l[i]*a + that.y*b;
                HEADKV_UNROLL (short n = 0; n < N; n++) {
                    const short piece = tx + n*NL;
                    o[i][n] = o[i][n]*a + (piece < P ? shared[i*P + piece]*b : float4(0.0f));
                }
            }
        }
    }

    if (sg != 0) {
        return;
    }
    const int n_slot = (args.n_query + TQ - 1)/TQ*args.n_worker*TQ;
    const int slot0  = (tile*args.n_worker + group_position.x)*TQ;
    device float4 * part_o   = (device float4 *) part;
    device float2 * part_state = (device float2 *) (part_o + (uint64_t) n_slot*P);
    HEADKV_UNROLL (short i = 0; i < TQ; i++) {
        HEADKV_UNROLL (short n = 0; n < N; n++) {
            const short piece = tx + n*NL;
            if (ty == 0 && piece < P) {
                part_o[(uint64_t) (slot0 + i)*P + piece] = o[i][n];
            }
        }
        if (lane == 0) {
            part_state[slot0 + i] = float2(m[i], l[i]);
        }
    }
}

kernel void headkv_combine(
        constant headkv_metal_args & args [[buffer(0)]],
        device const float * sinks        [[buffer(1)]],
        device const int   * row_ptr      [[buffer(2)]],
        device const float * part         [[buffer(3)]],
        device       float * dst          [[buffer(4)]],
        uint3  group_position [[threadgroup_position_in_grid]],
        ushort lane           [[thread_index_in_simdgroup]]) {
    const int j  = group_position.x; // query of the head
    const int ih = group_position.y;

    const int size = chunk_size(args, row_ptr);
    int first = 0;
    for (int i = 0; i < ih; i++) {
        first += n_chunks(args, row_ptr, i, size);
    }
    const int n = n_chunks(args, row_ptr, ih, size);

    const int n_piece = args.n_embd_head/4;
    const int n_slot  = (args.n_query + args.tile - 1)/args.tile*args.n_worker*args.tile;
    const int slot0   = (j/args.tile*args.n_worker + first)*args.tile + j%args.tile; // slots of the query: one in each chunk
    device const float4 * part_o   = (device const float4 *) part;
    device const float2 * part_state = (device const float2 *) (part_o + (uint64_t) n_slot*n_piece);

    const int head = ih*args.n_gqa + j%args.n_gqa;

    float m = args.has_sinks ? sinks[head] : NO_SCORE;
    for (int i = lane; i < n; i += 32) {
        m = max(m, part_state[slot0 + i*args.tile].x);
    }
    m = simd_max(m);

    float l = 0.0f;
    for (int i = lane; i < n; i += 32) {
        const float2 state = part_state[slot0 + i*args.tile];
        l += state.y*exp(state.x - m);
    }
    l = simd_sum(l) + (args.has_sinks ? exp(sinks[head] - m) : 0.0f);

    const float factor = l > 0.0f ? 1.0f/l : 0.0f; // a query that sees nothing gets zeros

    device float4 * out = (device float4 *) dst + (uint64_t) (j/args.n_gqa*args.n_gqa*args.n_head_kv + head)*n_piece;
    for (int piece = lane; piece < n_piece; piece += 32) {
        float4 o = float4(0.0f);
        for (int i = 0; i < n; i++) {
            const int slot = slot0 + i*args.tile;
            o += part_o[(uint64_t) slot*n_piece + piece]*exp(part_state[slot].x - m);
        }
        out[piece] = o*factor;
    }
}

//
// instances: headkv_attend_TYPE_D_TQ
//

typedef decltype(headkv_attend<row_f16, 64, 1>) headkv_attend_t;

template [[host_name("headkv_attend_f16_64_1")]] kernel headkv_attend_t headkv_attend<row_f16, 64, 1>;
template [[host_name("headkv_attend_f16_64_4")]] kernel headkv_attend_t headkv_attend<row_f16, 64, 4>;
template [[host_name("headkv_attend_f16_64_8")]] kernel headkv_attend_t headkv_attend<row_f16, 64, 8>;
template [[host_name("headkv_attend_f16_80_1")]] kernel headkv_attend_t headkv_attend<row_f16, 80, 1>;
template [[host_name("headkv_attend_f16_80_4")]] kernel headkv_attend_t headkv_attend<row_f16, 80, 4>;
template [[host_name("headkv_attend_f16_80_8")]] kernel headkv_attend_t headkv_attend<row_f16, 80, 8>;
template [[host_name("headkv_attend_f16_96_1")]] kernel headkv_attend_t headkv_attend<row_f16, 96, 1>;
template [[host_name("headkv_attend_f16_96_4")]] kernel headkv_attend_t headkv_attend<row_f16, 96, 4>;
template [[host_name("headkv_attend_f16_96_8")]] kernel headkv_attend_t headkv_attend<row_f16, 96, 8>;
template [[host_name("headkv_attend_f16_128_1")]] kernel headkv_attend_t headkv_attend<row_f16, 128, 1>;
template [[host_name("headkv_attend_f16_128_4")]] kernel headkv_attend_t headkv_attend<row_f16, 128, 4>;
template [[host_name("headkv_attend_f16_128_8")]] kernel headkv_attend_t headkv_attend<row_f16, 128, 8>;
template [[host_name("headkv_attend_f16_256_1")]] kernel headkv_attend_t headkv_attend<row_f16, 256, 1>;
template [[host_name("headkv_attend_f16_256_4")]] kernel headkv_attend_t headkv_attend<row_f16, 256, 4>;
template [[host_name("headkv_attend_f16_256_8")]] kernel headkv_attend_t headkv_attend<row_f16, 256, 8>;
template [[host_name("headkv_attend_bf16_64_1")]] kernel headkv_attend_t headkv_attend<row_bf16, 64, 1>;
template [[host_name("headkv_attend_bf16_64_4")]] kernel headkv_attend_t headkv_attend<row_bf16, 64, 4>;
template [[host_name("headkv_attend_bf16_64_8")]] kernel headkv_attend_t headkv_attend<row_bf16, 64, 8>;
template [[host_name("headkv_attend_bf16_80_1")]] kernel headkv_attend_t headkv_attend<row_bf16, 80, 1>;
template [[host_name("headkv_attend_bf16_80_4")]] kernel headkv_attend_t headkv_attend<row_bf16, 80, 4>;
template [[host_name("headkv_attend_bf16_80_8")]] kernel headkv_attend_t headkv_attend<row_bf16, 80, 8>;
template [[host_name("headkv_attend_bf16_96_1")]] kernel headkv_attend_t headkv_attend<row_bf16, 96, 1>;
template [[host_name("headkv_attend_bf16_96_4")]] kernel headkv_attend_t headkv_attend<row_bf16, 96, 4>;
template [[host_name("headkv_attend_bf16_96_8")]] kernel headkv_attend_t headkv_attend<row_bf16, 96, 8>;
template [[host_name("headkv_attend_bf16_128_1")]] kernel headkv_attend_t headkv_attend<row_bf16, 128, 1>;
template [[host_name("headkv_attend_bf16_128_4")]] kernel headkv_attend_t headkv_attend<row_bf16, 128, 4>;
template [[host_name("headkv_attend_bf16_128_8")]] kernel headkv_attend_t headkv_attend<row_bf16, 128, 8>;
template [[host_name("headkv_attend_bf16_256_1")]] kernel headkv_attend_t headkv_attend<row_bf16, 256, 1>;
template [[host_name("headkv_attend_bf16_256_4")]] kernel headkv_attend_t headkv_attend<row_bf16, 256, 4>;
template [[host_name("headkv_attend_bf16_256_8")]] kernel headkv_attend_t headkv_attend<row_bf16, 256, 8>;
template [[host_name("headkv_attend_q8_0_64_1")]] kernel headkv_attend_t headkv_attend<row_q8_0, 64, 1>;
template [[host_name("headkv_attend_q8_0_64_4")]] kernel headkv_attend_t headkv_attend<row_q8_0, 64, 4>;
template [[host_name("headkv_attend_q8_0_64_8")]] kernel headkv_attend_t headkv_attend<row_q8_0, 64, 8>;
template [[host_name("headkv_attend_q8_0_96_1")]] kernel headkv_attend_t headkv_attend<row_q8_0, 96, 1>;
template [[host_name("headkv_attend_q8_0_96_4")]] kernel headkv_attend_t headkv_attend<row_q8_0, 96, 4>;
template [[host_name("headkv_attend_q8_0_96_8")]] kernel headkv_attend_t headkv_attend<row_q8_0, 96, 8>;
template [[host_name("headkv_attend_q8_0_128_1")]] kernel headkv_attend_t headkv_attend<row_q8_0, 128, 1>;
template [[host_name("headkv_attend_q8_0_128_4")]] kernel headkv_attend_t headkv_attend<row_q8_0, 128, 4>;
template [[host_name("headkv_attend_q8_0_128_8")]] kernel headkv_attend_t headkv_attend<row_q8_0, 128, 8>;
template [[host_name("headkv_attend_q8_0_256_1")]] kernel headkv_attend_t headkv_attend<row_q8_0, 256, 1>;
template [[host_name("headkv_attend_q8_0_256_4")]] kernel headkv_attend_t headkv_attend<row_q8_0, 256, 4>;
template [[host_name("headkv_attend_q8_0_256_8")]] kernel headkv_attend_t headkv_attend<row_q8_0, 256, 8>;
template [[host_name("headkv_attend_q4_0_64_1")]] kernel headkv_attend_t headkv_attend<row_q4_0, 64, 1>;
template [[host_name("headkv_attend_q4_0_64_4")]] kernel headkv_attend_t headkv_attend<row_q4_0, 64, 4>;
template [[host_name("headkv_attend_q4_0_64_8")]] kernel headkv_attend_t headkv_attend<row_q4_0, 64, 8>;
template [[host_name("headkv_attend_q4_0_96_1")]] kernel headkv_attend_t headkv_attend<row_q4_0, 96, 1>;
template [[host_name("headkv_attend_q4_0_96_4")]] kernel headkv_attend_t headkv_attend<row_q4_0, 96, 4>;
template [[host_name("headkv_attend_q4_0_96_8")]] kernel headkv_attend_t headkv_attend<row_q4_0, 96, 8>;
template [[host_name("headkv_attend_q4_0_128_1")]] kernel headkv_attend_t headkv_attend<row_q4_0, 128, 1>;
template [[host_name("headkv_attend_q4_0_128_4")]] kernel headkv_attend_t headkv_attend<row_q4_0, 128, 4>;
template [[host_name("headkv_attend_q4_0_128_8")]] kernel headkv_attend_t headkv_attend<row_q4_0, 128, 8>;
template [[host_name("headkv_attend_q4_0_256_1")]] kernel headkv_attend_t headkv_attend<row_q4_0, 256, 1>;
template [[host_name("headkv_attend_q4_0_256_4")]] kernel headkv_attend_t headkv_attend<row_q4_0, 256, 4>;
template [[host_name("headkv_attend_q4_0_256_8")]] kernel headkv_attend_t headkv_attend<row_q4_0, 256, 8>;
