// headkv-cuda-combine.cuh: puts one query of a cut item together from the parts that blocks left; one thread block a query.

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
        alignas(8) float acc[N_GROUP][D]; // stored in pairs
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
        const line line(args, n_split);
        const int  n    = args.n_strips(ih);
        const int  tile = args.tile_of(j);
        int64_t x = 0;
        for (int i = 0; i < ih; i++) {
            x += args.n_strips(i);
        }
        x = x*args.n_tile + (int64_t) tile*n;

        const int first = line.owner(x);
        const int last  = line.owner(x + n - 1);
        if (first == last) {
            return; // its block has written it
        }
        const int  n_part = last - first + 1;
        const int  i_tile = j - args.tile_begin(tile);
        const auto slot   = [&](int l) { return (int64_t) line.part(x, first + l)*args.max_tile_queries + i_tile; };

        float top = NO_SCORE;
        for (int l = thread_index(); l < n_part; l += N_THREAD) {
            top = fmaxf(top, args.part_top[slot(l)]);
        }
        top = reduce(shared, top, true);

        float sum = 0.0f;
        for (int l = thread_index(); l < n_part; l += N_THREAD) {
            weight[l] = expf(args.part_top[slot(l)] - top);
            sum += args.part_sum[slot(l)]*weight[l];
        }
        sum = reduce(shared, sum, false); // and all weights are there

        const int group = thread_index()/N_PAIR;
        const int d     = thread_index()%N_PAIR*2;
        if (group < N_GROUP) {
            float a = 0.0f;
            float b = 0.0f;
            HEADKV_UNROLL_4
            for (int l = group; l < n_part; l += N_GROUP) {
                const float * acc = args.part_acc + slot(l)*D + d;
                a += acc[0]*weight[l];
                b += acc[1]*weight[l];
            }
            store_pair(shared.acc[group] + d, a, b);
        }
        sync_block();

        const output out(args, D, ih, j, top, sum);
        for (int e = thread_index(); e < D; e += N_THREAD) {
            float acc = 0.0f;
            for (int i = 0; i < N_GROUP; i++) {
                acc += shared.acc[i][e];
            }
            out.x[e] = acc*out.factor;
        }
    }
};

} // namespace headkv
