// headkv-cuda-combine.cuh: puts one query of a cut work tile together from the parts that blocks left; one thread block a query.

#pragma once

#include "headkv-cuda-attend.cuh"

namespace headkv {

template <int D>
struct combine {
    static constexpr int N_THREAD = 512;
    static constexpr int N_WARP   = N_THREAD/WARP;
    static constexpr int N_PAIR   = D/2;               // threads that share the elements of a part
    static constexpr int N_GROUP  = N_THREAD/N_PAIR;   // parts that are read at once

    struct shared_memory {
        float reduce[N_WARP];
        alignas(8) float o[N_GROUP][D]; // stored in pairs
        // behind it: float [n_block] weights of the parts
    };

    // of all threads
    static HEADKV_METHOD float reduce(shared_memory & shared, float x, bool is_max) {
        HEADKV_UNROLL
        for (int mask = WARP/2; mask > 0; mask /= 2) {
            const float other = lane_xor(x, mask);
            x = is_max ? fmaxf(x, other) : x + other;
        }
        if (thread_index()%WARP == 0) {
            shared.reduce[thread_index()/WARP] = x;
        }
        sync_block();
        x = shared.reduce[0];
        for (int i = 1; i < N_WARP; i++) {
            x = is_max ? fmaxf(x, shared.reduce[i]) : x + shared.reduce[i];
        }
        sync_block();
        return x;
    }

    // query j of KV head ih; n_split: the attend::N_SPLIT that made the parts
    static HEADKV_METHOD void compute(const attn_args & args, shared_memory & shared, float * weight, int ih, int j, int n_split) {
        const work_line line(args, n_split);
        const int  n    = args.n_row_tiles(ih);
        const int  tile = args.tile_of(j);
        int64_t x = 0;
        for (int i = 0; i < ih; i++) {
            x += args.n_row_tiles(i);
        }
        x = x*args.n_tile + (int64_t) tile*n;

        const int first = line.owner(x);
        const int last  = line.owner(x + n - 1);
        if (first == last) {
            return; // its block has written it
        }
        const int  n_part = last - first + 1;
        const int  i_tile = j - args.tile_begin(tile);
        const auto slot   = [&](int i_part) { return (int64_t) line.part(x, first + i_part)*args.max_tile_queries + i_tile; };

        float m = NO_SCORE;
        for (int i_part = thread_index(); i_part < n_part; i_part += N_THREAD) {
            m = fmaxf(m, args.part_m[slot(i_part)]);
        }
        m = reduce(shared, m, true);

        float l = 0.0f;
        for (int i_part = thread_index(); i_part < n_part; i_part += N_THREAD) {
            weight[i_part] = expf(args.part_m[slot(i_part)] - m);
            l += args.part_l[slot(i_part)]*weight[i_part];
        }
        l = reduce(shared, l, false); // and all weights are there

        const int group = thread_index()/N_PAIR;
        const int d     = thread_index()%N_PAIR*2;
        if (group < N_GROUP) {
            float a = 0.0f;
            float b = 0.0f;
            HEADKV_UNROLL_4
            for (int i_part = group; i_part < n_part; i_part += N_GROUP) {
                const float * o = args.part_o + slot(i_part)*D + d;
                a += o[0]*weight[i_part];
                b += o[1]*weight[i_part];
            }
            store_pair(shared.o[group] + d, a, b);
        }
        sync_block();

        const output out(args, D, ih, j, m, l);
        for (int e = thread_index(); e < D; e += N_THREAD) {
            float o = 0.0f;
            for (int i = 0; i < N_GROUP; i++) {
                o += shared.o[i][e];
            }
            out.x[e] = o*out.factor;
        }
    }
};

} // namespace headkv
