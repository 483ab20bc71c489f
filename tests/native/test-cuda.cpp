// test-cuda.cpp: the CUDA kernels, compiled for the CPU (cuda-host.h), against float64 attention (cuda-cases.h).

#include "cuda-host.h"

#include "cuda-cases.h"

template <class Row, int D, int N_Q16>
static void run(headkv::attn_args args) {
    using kernel  = headkv::attend<Row, D, N_Q16>;
    using combine = headkv::combine<D>;

    const size_t n_slot = (size_t) 2*args.n_block*kernel::TILE;
    const float  nan    = std::numeric_limits<float>::quiet_NaN();
    std::vector<float> part_o(n_slot*D, nan), part_m(n_slot, nan), part_l(n_slot, nan), weight(args.n_block, nan);
    args.max_tile_queries = kernel::TILE;
    args.part_o = part_o.data();
    args.part_m = part_m.data();
    args.part_l = part_l.data();

    for (int block = 0; block < args.n_block; block++) {
        const headkv::shared_memory<typename kernel::shared_memory> shared;
        headkv::thread_block::run(kernel::N_THREAD, [&] { kernel(args, *shared).compute(block); });
    }
    for (int ih = 0; ih < args.n_head_kv; ih++) {
        for (int j = 0; j < args.n_query(); j++) {
            const headkv::shared_memory<typename combine::shared_memory> shared;
            headkv::thread_block::run(combine::N_THREAD, [&] {
                combine::compute(args, *shared, weight.data(), ih, j, kernel::N_SPLIT);
            });
        }
    }
}

int main(int argc, char ** argv) {
    return run_cases(argc, argv);
}
