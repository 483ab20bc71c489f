// headkv-metal-rows.h: how rows are read, and which rows a threadgroup takes. MSL, put into headkv-metal.metal.

#ifndef HEADKV_METAL_ROWS_H
#define HEADKV_METAL_ROWS_H

//
// elements 4*i .. 4*i + 3 of a row
//

struct row_f16 {
    static float4 read(device const char * row, short i) {
        return float4(((device const half4 *) row)[i]);
    }
};

// not as bfloat: devices without it read these rows too
struct row_bf16 {
    static float4 read(device const char * row, short i) {
        return as_type<float4>(uint4(((device const ushort4 *) row)[i]) << uint4(16));
    }
};

// blocks of 32: half d, char x[32]
struct row_q8_0 {
    static float4 read(device const char * row, short i) {
        device const char * block = row + i/8*34;
        const float d = *(device const half *) block;
        const char4 x = *(device const packed_char4 *) (block + 2 + i%8*4);
        return d*float4(x);
    }
};

// blocks of 32: half d, then bytes with element j below and element j + 16 above
struct row_q4_0 {
    static float4 read(device const char * row, short i) {
        device const char * block = row + i/8*18;
        const float d = *(device const half *) block;
        const uchar4 x = *(device const packed_uchar4 *) (block + 2 + i%4*4);
        return d*(float4(i%8 < 4 ? x & uchar4(15) : x >> uchar4(4)) - 8.0f);
    }
};

//
// chunks
//

static int n_hot(device const int * row_ptr, int ih) {
    return row_ptr[ih + 1] - row_ptr[ih];
}

static int n_rows(constant headkv_metal_args & args, device const int * row_ptr, int ih) {
    return n_hot(row_ptr, ih) + args.n_kv;
}

// rows of a chunk. Rounding up makes fewer of them, so that there are at most n_split + n_head_kv
static int chunk_size(constant headkv_metal_args & args, device const int * row_ptr) {
    int n = 0;
    for (int ih = 0; ih < args.n_head_kv; ih++) {
        n += n_rows(args, row_ptr, ih);
    }
    const int size = (n + args.n_split - 1)/args.n_split;
    return (size + HEADKV_METAL_CHUNK - 1)/HEADKV_METAL_CHUNK*HEADKV_METAL_CHUNK;
}

static int n_chunks(constant headkv_metal_args & args, device const int * row_ptr, int ih, int size) {
    return (n_rows(args, row_ptr, ih) + size - 1)/size;
}

// rows [begin, end) of a KV head; ih = n_head_kv if there is none left for this worker
struct chunk {
    int ih;
    int begin;
    int end;
};

static chunk find_chunk(constant headkv_metal_args & args, device const int * row_ptr, int worker) {
    const int size = chunk_size(args, row_ptr);
    chunk c;
    for (c.ih = 0; c.ih < args.n_head_kv; c.ih++) {
        const int n = n_chunks(args, row_ptr, c.ih, size);
        if (worker < n) {
            c.begin = worker*size;
            c.end   = min(c.begin + size, n_rows(args, row_ptr, c.ih));
            return c;
        }
        worker -= n;
    }
    c.begin = 0;
    c.end   = 0;
    return c;
}

#endif // HEADKV_METAL_ROWS_H
