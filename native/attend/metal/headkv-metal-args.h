// headkv-metal-args.h: what the host tells the kernels. Compiled as C++ and as MSL.

#ifndef HEADKV_METAL_ARGS_H
#define HEADKV_METAL_ARGS_H

#define HEADKV_METAL_CHUNK 128 // rows of a chunk are a multiple of this: a block of 32 for each of 4 SIMD-groups

struct headkv_metal_args {
    uint64_t nb_q_tok;    // bytes from one to the next
    uint64_t nb_q_head;
    uint64_t nb_k_row;    // tail
    uint64_t nb_k_head;
    uint64_t nb_v_row;
    uint64_t nb_v_head;
    uint64_t nb_k_hot;    // row
    uint64_t nb_v_hot;
    uint64_t nb_mask;     // token
    int32_t  n_embd_head;
    int32_t  n_head_kv;
    int32_t  n_kv;        // tail cells
    int32_t  n_gqa;       // query heads of a KV head
    int32_t  n_query;     // queries of a KV head: tokens * n_gqa
    int32_t  tile;        // queries of a tile: 1, 4 or 8
    int32_t  n_split;     // chunks that the rows of all heads would make, laid end to end
    int32_t  n_worker;    // n_split + n_head_kv: no more chunks than that
    int32_t  has_mask;
    int32_t  has_sinks;
    float    scale;
    float    softcap;     // 0: none
};

#endif // HEADKV_METAL_ARGS_H
