// headkv-cuda-attend.cuh: attention of one slice of the line (headkv-cuda-line.cuh), in one thread block.
//
// A warp takes 16 queries and one row tile of 16 rows at a time. Scores S = Q K^T and O += P V are matrix instructions: their f32
// result S lies in the lanes exactly as the operand P must. K and V go from memory straight into the registers of
// the lanes that need them, without shared memory: which element of a row a lane's operand stands for is free (headkv-cuda-rows.cuh)
// and chosen so that every lane reads up to 16 neighbouring bytes. Each row is read once for all queries of the tile.
//
// Lane = 4 g + t. S: lane holds queries g, g + 8 and rows 2t, 2t + 1, 2t + 8, 2t + 9 of the row tile.
//
// N_Q16: 16-query groups of a tile, one warp each; N_SPLIT: warps that share the row tiles of the slice; 4 warps in all.

#pragma once

#include "headkv-cuda-lane.cuh"
#include "headkv-cuda-line.cuh"
#include "headkv-cuda-rows.cuh"

namespace headkv {

// query j of KV head ih, done: o / l, with the sink of its head in l
struct output {
    float * x;      // [n_embd_head]
    float   factor;

    HEADKV_METHOD output(const attn_args & args, int n_embd_head, int ih, int j, float m, float l) {
        const int tok  = j/args.n_gqa;
        const int head = j%args.n_gqa + ih*args.n_gqa;
        float scale = 1.0f;
        if (args.sinks) {
            const float sink    = args.sinks[head];
            const float m_new = fmaxf(m, sink);
            scale = expf(m - m_new);
            l   = l*scale + expf(sink - m_new);
        }
        x      = args.dst + ((int64_t) tok*args.n_gqa*args.n_head_kv + head)*n_embd_head;
        factor = l > 0.0f ? scale/l : 0.0f;
    }
};

template <class Row, int D, int N_Q16>
struct attend {
    static constexpr int N_SPLIT   = 4/N_Q16;
    static constexpr int N_WARP    = N_Q16*N_SPLIT;
    static constexpr int N_THREAD  = N_WARP*WARP;
    static constexpr int TILE      = 16*N_Q16;
    static constexpr int K_CHUNKS  = D/32;   // four lanes share 32 elements of a row of K
    static constexpr int K_REST    = D%32;   // or the last 16
    static constexpr int K_STEPS   = D/16;   // matrix instructions for 16 x 8 scores
    static constexpr int V_CHUNKS  = D/64;   // eight lanes share 64 elements of a row of V
    static constexpr int V_REST    = D%64/8; // or the last 32 or 16: elements of a lane
    static constexpr int COLUMNS   = D/8;    // 8-column groups of the output

    static_assert(K_REST == 0 || K_REST == 16, "head sizes are multiples of 16");
    static_assert(D%64 == 0 || D%64 == 16 || D%64 == 32, "the rest of a row is one piece for each of 8 lanes");
    static_assert(D%Row::BLOCK == 0, "rows are whole blocks");

    struct shared_memory {
        union {
            alignas(16) uint32_t q[N_Q16][K_STEPS][WARP][4]; // queries, as the lanes' operands
            float    o[N_SPLIT > 1 ? N_Q16 : 1][COLUMNS][4][N_SPLIT > 1 ? WARP : 1]; // while warps add up
        };
        float m[N_Q16][N_SPLIT][16];
        float l[N_Q16][N_SPLIT][16];
    };

    struct work_tile {
        int ih;
        int begin;   // first query
        int end;
        int n_rows;
        int n_hot;
        const char * k_hot; // of the head
        const char * v_hot;
        const char * k;
        const char * v;

        HEADKV_METHOD work_tile(const attn_args & args, int ih, int tile) : ih(ih) {
            begin    = args.tile_begin(tile);
            end      = args.tile_begin(tile + 1);
            n_rows   = args.n_rows(ih);
            n_hot = args.n_hot(ih);
            k_hot = args.k_hot + args.row_ptr[ih]*args.nb_k_hot;
            v_hot = args.v_hot + args.row_ptr[ih]*args.nb_v_hot;
            k        = args.k + ih*args.nb_k_head;
            v        = args.v + ih*args.nb_v_head;
        }

        // rows beyond the last are read as the last one; their scores are thrown away
        HEADKV_METHOD const char * k_row(const attn_args & args, int row) const {
            row = row < n_rows ? row : n_rows - 1;
            return row < n_hot ? k_hot + row*args.nb_k_hot : k + (row - n_hot)*args.nb_k_row;
        }

        HEADKV_METHOD const char * v_row(const attn_args & args, int row) const {
            row = row < n_rows ? row : n_rows - 1;
            return row < n_hot ? v_hot + row*args.nb_v_hot : v + (row - n_hot)*args.nb_v_row;
        }
    };

    // element of a row of K, and of a query, that operand register reg (0, 1), half h of step s stands for in lanes with this t
    static HEADKV_METHOD int k_element(int s, int t, int reg, int h) {
        if (K_REST && s == K_STEPS - 1) {
            return 16*s + Row::template element<4>(t, 2*reg + h);
        }
        return 32*(s/2) + Row::template element<8>(t, 4*(s%2) + 2*reg + h);
    }

    // element of a row of V, and of the output, that column n (0..7) of column group i stands for
    static HEADKV_METHOD int v_element(int i, int n) {
        if (i < 8*V_CHUNKS) {
            return 64*(i/8) + 32*(n/4) + Row::template element<8>(n%4, i%8);
        }
        return 64*V_CHUNKS + Row::template element<V_REST ? V_REST : 2>(n, i - 8*V_CHUNKS);
    }

    // a lane's share of K of a row tile: rows g and g + 8
    struct k_rows {
        typename Row::template piece<8> chunk[2][K_CHUNKS];
        typename Row::template piece<4> rest[2];

        HEADKV_METHOD void load(const attn_args & args, const work_tile & it, int row, int g, int t) {
            HEADKV_UNROLL
            for (int j = 0; j < 2; j++) {
                const char * k = it.k_row(args, row + 8*j + g);
                HEADKV_UNROLL
                for (int c = 0; c < K_CHUNKS; c++) {
                    chunk[j][c].load(k, 32*c, t);
                }
                if constexpr (K_REST != 0) {
                    rest[j].load(k, 32*K_CHUNKS, t);
                }
            }
        }
    };

    // a lane's share of V of a row tile: rows 2t, 2t + 1, 2t + 8, 2t + 9
    struct v_rows {
        typename Row::template piece<8> chunk[4][V_CHUNKS];
        typename Row::template piece<V_REST ? V_REST : 8> rest[4];

        HEADKV_METHOD void load(const attn_args & args, const work_tile & it, int row, int g, int t) {
            HEADKV_UNROLL
            for (int r = 0; r < 4; r++) {
                const char * v = it.v_row(args, row + 2*t + r%2 + r/2*8);
                HEADKV_UNROLL
                for (int c = 0; c < V_CHUNKS; c++) {
                    chunk[r][c].load(v, 64*c + g/4*32, g%4);
                }
                if constexpr (V_REST != 0) {
                    rest[r].load(v, 64*V_CHUNKS, g);
                }
            }
        }
    };

    // state of a lane's queries g and g + 8 after some of the rows
    struct state {
        float m[2];
        float l[2];
        float o[COLUMNS][4]; // D of the matrix instruction, for each column group

        HEADKV_METHOD state() {
            HEADKV_UNROLL
            for (int r = 0; r < 2; r++) {
                m[r] = NO_SCORE;
                l[r] = 0.0f;
            }
            HEADKV_UNROLL
            for (int i = 0; i < COLUMNS; i++) {
                HEADKV_UNROLL
                for (int c = 0; c < 4; c++) {
                    o[i][c] = 0.0f;
                }
            }
        }

        HEADKV_METHOD void rescale(const float * factor) {
            HEADKV_UNROLL
            for (int i = 0; i < COLUMNS; i++) {
                HEADKV_UNROLL
                for (int c = 0; c < 4; c++) {
                    o[i][c] *= factor[c/2];
                }
            }
        }
    };

    const attn_args & args;
    shared_memory &   shared;
    int warp_q; // which 16 queries of the tile
    int split;  // which of the warps that share the row tiles
    int lane;
    int g;
    int t;

    HEADKV_METHOD attend(const attn_args & args, shared_memory & shared) : args(args), shared(shared) {
        const int warp = thread_index()/WARP;
        warp_q = warp%N_Q16;
        split  = warp/N_Q16;
        lane   = thread_index()%WARP;
        g      = lane/4;
        t      = lane%4;
    }

    HEADKV_METHOD void load_queries(const work_tile & it) {
        for (int i = thread_index(); i < N_Q16*K_STEPS*WARP*4; i += N_THREAD) {
            const int r = i%4; // operand register: query g or g + 8, k 0..7 or 8..15
            const int lane_q = i/4%WARP;
            const int s = i/4/WARP%K_STEPS;
            const int q16    = i/4/WARP/K_STEPS;
            const int j = it.begin + 16*q16 + lane_q/4 + r%2*8;
            float x[2] = { 0.0f, 0.0f };
            if (j < it.end) {
                const int    tok  = j/args.n_gqa;
                const int    head = j%args.n_gqa + it.ih*args.n_gqa;
                const float * q   = (const float *) (args.q + tok*args.nb_q_tok + head*args.nb_q_head);
                x[0] = q[k_element(s, lane_q%4, r/2, 0)]*args.scale;
                x[1] = q[k_element(s, lane_q%4, r/2, 1)]*args.scale;
            }
            shared.q[q16][s][lane_q][r] = half2_make(x[0], x[1]);
        }
    }

    // s[j]: rows 8j.. of the row tile
    HEADKV_METHOD void scores(const k_rows & k, float (* s)[4]) const {
        HEADKV_UNROLL
        for (int j = 0; j < 2; j++) {
            HEADKV_UNROLL
            for (int c = 0; c < 4; c++) {
                s[j][c] = 0.0f;
            }
        }
        HEADKV_UNROLL
        for (int c = 0; c < K_CHUNKS; c++) {
            const uint32_t * q0 = shared.q[warp_q][2*c][lane];
            const uint32_t * q1 = shared.q[warp_q][2*c + 1][lane];
            HEADKV_UNROLL
            for (int j = 0; j < 2; j++) {
                uint32_t w[4];
                k.chunk[j][c].words(w);
                matrix_multiply_add(s[j], q0, w[0], w[1]);
                matrix_multiply_add(s[j], q1, w[2], w[3]);
            }
        }
        if constexpr (K_REST != 0) {
            HEADKV_UNROLL
            for (int j = 0; j < 2; j++) {
                uint32_t w[2];
                k.rest[j].words(w);
                matrix_multiply_add(s[j], shared.q[warp_q][K_STEPS - 1][lane], w[0], w[1]);
            }
        }
    }

    // value of the mask for query j (of the KV head) and a row; hot rows are seen by all, rows beyond the last by none
    HEADKV_METHOD float bias(const work_tile & it, int j, int row) const {
        if (row < it.n_hot) {
            return 0.0f;
        }
        if (row >= it.n_rows) {
            return -INFINITY;
        }
        if (!args.mask) {
            return 0.0f;
        }
        j = j < it.end ? j : it.end - 1;
        return half_to_float(((const uint16_t *) (args.mask + j/args.n_gqa*args.nb_mask))[row - it.n_hot]);
    }

    HEADKV_METHOD void finish_scores(const work_tile & it, int row, float (* s)[4]) const {
        const bool is_hot = row + ROW_TILE <= it.n_hot; // the same for all lanes
        HEADKV_UNROLL
        for (int j = 0; j < 2; j++) {
            HEADKV_UNROLL
            for (int c = 0; c < 4; c++) {
                if (args.softcap != 0.0f) { // tanh by one exp: with -use_fast_math, tanhf() has 11 bits
                    s[j][c] = args.softcap*(1.0f - 2.0f/(expf(2.0f*s[j][c]) + 1.0f));
                }
                if (!is_hot) {
                    s[j][c] += bias(it, it.begin + 16*warp_q + g + c/2*8, row + 8*j + 2*t + c%2);
                }
            }
        }
    }

    // turns scores into weights, and rescales what was summed up so far
    HEADKV_METHOD void softmax(state & st, float (* s)[4]) const {
        float factor[2];
        HEADKV_UNROLL
        for (int r = 0; r < 2; r++) {
            float m = fmaxf(fmaxf(s[0][2*r], s[0][2*r + 1]), fmaxf(s[1][2*r], s[1][2*r + 1]));
            m = fmaxf(m, lane_xor(m, 1));
            m = fmaxf(m, lane_xor(m, 2));
            m = fmaxf(m, st.m[r]);
            factor[r] = expf(st.m[r] - m);
            st.m[r] = m;
            st.l[r] *= factor[r]; // of this lane's rows only, until the end
            HEADKV_UNROLL
            for (int j = 0; j < 2; j++) {
                HEADKV_UNROLL
                for (int h = 0; h < 2; h++) {
                    s[j][2*r + h] = expf(s[j][2*r + h] - m);
                    st.l[r] += s[j][2*r + h];
                }
            }
        }
        st.rescale(factor);
    }

    // column groups [first, first + n) += P V, from n elements of each of the lane's four rows of V
    template <int n, class Piece> HEADKV_METHOD void add_columns(
            state & st, int first, const uint32_t * p, const Piece & r0, const Piece & r1, const Piece & r2, const Piece & r3) const {
        uint32_t w[4][n/2];
        r0.words(w[0]);
        r1.words(w[1]);
        r2.words(w[2]);
        r3.words(w[3]);
        HEADKV_UNROLL
        for (int i = 0; i < n; i++) {
            const uint32_t selector = i%2 ? 0x7632 : 0x5410; // the high or the low f16 of two words
            const uint32_t b0 = byte_perm(w[0][i/2], w[1][i/2], selector);
            const uint32_t b1 = byte_perm(w[2][i/2], w[3][i/2], selector);
            matrix_multiply_add(st.o[first + i], p, b0, b1);
        }
    }

    HEADKV_METHOD void values(const v_rows & v, const float (* s)[4], state & st) const {
        const uint32_t p[4] = {
            half2_make(s[0][0], s[0][1]), half2_make(s[0][2], s[0][3]),
            half2_make(s[1][0], s[1][1]), half2_make(s[1][2], s[1][3]),
        };
        HEADKV_UNROLL
        for (int c = 0; c < V_CHUNKS; c++) {
            add_columns<8>(st, 8*c, p, v.chunk[0][c], v.chunk[1][c], v.chunk[2][c], v.chunk[3][c]);
        }
        if constexpr (V_REST != 0) {
            add_columns<V_REST>(st, 8*V_CHUNKS, p, v.rest[0], v.rest[1], v.rest[2], v.rest[3]);
        }
    }

    // row tiles [begin, end) of a work tile, every N_SPLIT-th. V of a row tile is on its way while its scores are computed, K of
    // the next one while its values are, as far as registers allow
    HEADKV_METHOD void run(const work_tile & it, int begin, int end, state & st) const {
        constexpr bool fetch_ahead = D <= 128;

        k_rows k;
        if (fetch_ahead && begin + split < end) {
            k.load(args, it, (begin + split)*ROW_TILE, g, t);
        }
        for (int row_tile = begin + split; row_tile < end; row_tile += N_SPLIT) {
            const int row = row_tile*ROW_TILE;
            if (!fetch_ahead) {
                k.load(args, it, row, g, t);
            }
            v_rows v;
            if (fetch_ahead) {
                v.load(args, it, row, g, t);
            }
            float s[2][4];
            scores(k, s);
            if (!fetch_ahead) {
                v.load(args, it, row, g, t);
            } else if (row_tile + N_SPLIT < end) {
                k.load(args, it, row + N_SPLIT*ROW_TILE, g, t);
            }
            finish_scores(it, row, s);
            softmax(st, s);
            values(v, s, st);
        }
    }

    // the states of the warps that shared the row tiles become one, in the warps with split == 0
    HEADKV_METHOD void join(state & st) {
        HEADKV_UNROLL
        for (int r = 0; r < 2; r++) {
            st.l[r] += lane_xor(st.l[r], 1);
            st.l[r] += lane_xor(st.l[r], 2);
        }
        if constexpr (N_SPLIT > 1) {
            if (t == 0) {
                HEADKV_UNROLL
                for (int r = 0; r < 2; r++) {
                    shared.m[warp_q][split][g + 8*r] = st.m[r];
                    shared.l[warp_q][split][g + 8*r] = st.l[r];
                }
            }
            sync_block(); // and nobody reads the queries any more

            float factor[2];
            HEADKV_UNROLL
            for (int r = 0; r < 2; r++) {
                float m = NO_SCORE;
                for (int i = 0; i < N_SPLIT; i++) {
                    m = fmaxf(m, shared.m[warp_q][i][g + 8*r]);
                }
                st.l[r] = 0.0f;
                for (int i = 0; i < N_SPLIT; i++) {
                    st.l[r] += shared.l[warp_q][i][g + 8*r]*expf(shared.m[warp_q][i][g + 8*r] - m);
                }
                factor[r] = expf(st.m[r] - m);
                st.m[r] = m;
            }
            st.rescale(factor);

            for (int giver = 1; giver < N_SPLIT; giver++) {
                if (split == giver) {
                    HEADKV_UNROLL
                    for (int i = 0; i < COLUMNS; i++) {
                        HEADKV_UNROLL
                        for (int c = 0; c < 4; c++) {
                            shared.o[warp_q][i][c][lane] = st.o[i][c];
                        }
                    }
                }
                sync_block();
                if (split == 0) {
                    HEADKV_UNROLL
                    for (int i = 0; i < COLUMNS; i++) {
                        HEADKV_UNROLL
                        for (int c = 0; c < 4; c++) {
                            st.o[i][c] += shared.o[warp_q][i][c][lane];
                        }
                    }
                }
                sync_block();
            }
        }
    }

    // element pairs of query half r (g or g + 8), times factor
    HEADKV_METHOD void write_row(const state & st, int r, float factor, float * x) const {
        HEADKV_UNROLL
        for (int i = 0; i < COLUMNS; i += 2) { // elements of neighbouring groups are neighbours in every type
            HEADKV_UNROLL
            for (int h = 0; h < 2; h++) {
                store_pair(x + v_element(i, 2*t + h), st.o[i][2*r + h]*factor, st.o[i + 1][2*r + h]*factor);
            }
        }
    }

    // part < 0: the work tile is done
    HEADKV_METHOD void write(const work_tile & it, const state & st, int part) const {
        if (split != 0) {
            return;
        }
        HEADKV_UNROLL
        for (int r = 0; r < 2; r++) {
            const int i = 16*warp_q + g + 8*r; // query of the tile
            if (it.begin + i >= it.end) {
                continue;
            }
            if (part < 0) {
                const output out(args, D, it.ih, it.begin + i, st.m[r], st.l[r]);
                write_row(st, r, out.factor, out.x);
                continue;
            }
            const int64_t slot = (int64_t) part*args.max_tile_queries + i;
            write_row(st, r, 1.0f, args.part_o + slot*D);
            if (t == 0) {
                args.part_m[slot] = st.m[r];
                args.part_l[slot] = st.l[r];
            }
        }
    }

    // row tiles [begin, end) of a work tile; n_strips is all of it
    HEADKV_METHOD void work(const work_tile & it, int begin, int end, int n_row_tiles, int part) {
        load_queries(it);
        sync_block();
        state st;
        run(it, begin, end, st);
        join(st);
        write(it, st, end - begin == n_row_tiles ? -1 : part);
        sync_block(); // before the next work tile's queries
    }

    // the slice of a block
    HEADKV_METHOD void compute(int block) {
        const work_line line(args, N_SPLIT);
        if (block >= line.n_block) {
            return;
        }
        const int64_t lo = line.slice_begin(block);
        const int64_t hi = line.slice_begin(block + 1);

        int64_t x = 0; // first row tile of the head
        for (int ih = 0; ih < args.n_head_kv && x < hi; ih++) {
            const int n = args.n_row_tiles(ih);
            for (int tile = x < lo ? (int) ((lo - x)/n) : 0; tile < args.n_tile && x + (int64_t) tile*n < hi; tile++) {
                const int64_t start = x + (int64_t) tile*n;
                const int     begin = (int) (start < lo ? lo - start : 0);
                const int     end   = (int) (hi - start < n ? hi - start : n);
                work(work_tile(args, ih, tile), begin, end, n, line.part(start, block));
            }
            x += (int64_t) args.n_tile*n;
        }
    }
};

} // namespace headkv
