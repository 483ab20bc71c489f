// test-ptx.cpp: the CUDA kernels as nvcc makes them, PTX, over the emulator, against float64 attention (tests/native/cuda-cases.h).
//
// `test-ptx FOLDER ...`: FOLDER holds f16.ptx, bf16.ptx, q8_0.ptx, q4_0.ptx; what follows is test-cuda's. Every buffer is an allocation
// of its own, as long as what the kernel may read: what goes beyond is a fault, and the case fails. A race or a read of what
// nobody wrote fails it too.

#include "cuda-cases.h"

#include "emulator.h"

#include <string>

static std::string folder;

static const char * name_of(const headkv::row_f16 *)  { return "f16"; }
static const char * name_of(const headkv::row_bf16 *) { return "bf16"; }
static const char * name_of(const headkv::row_q8_0 *) { return "q8_0"; }
static const char * name_of(const headkv::row_q4_0 *) { return "q4_0"; }

struct buffer {
    uint64_t address;

    buffer(const void * data, size_t bytes) : address(emu::allocate(bytes, 0)) {
        if (data) { memcpy(emu::host(address), data, bytes); }
    }
    ~buffer() { emu::release(address); }
    buffer(const buffer &) = delete;

    template <class T> T * as() const { return (T *) address; }
};

static emu::Module * module_of(const std::string & type) {
    emu::Module * m = emu::module_of_file(folder + "/" + type + ".ptx");
    if (!m) { exit(2); }
    return m;
}

// the kernel whose mangled name holds `part`
static const emu::Kernel * kernel_of(emu::Module * module, const std::string & part) {
    const std::string entry = ".entry ";
    for (size_t i = module->text.find(entry); i != std::string::npos; i = module->text.find(entry, i + 1)) {
        const size_t begin = i + entry.size();
        const std::string name = module->text.substr(begin, module->text.find('(', begin) - begin);
        if (name.find(part) == std::string::npos) { continue; }
        const emu::Kernel * k = emu::kernel(module, name);
        if (k) { return k; }
        exit(2);
    }
    fprintf(stderr, "no kernel %s\n", part.c_str());
    exit(2);
}

template <class Row, int D, int N_Q16>
static void run(headkv::attn_args args) {
    using kernel  = headkv::attend<Row, D, N_Q16>;
    using combine = headkv::combine<D>;

    const std::string type = name_of((const Row *) nullptr), size = std::to_string(D);
    static emu::Module * const module = module_of(type);
    const emu::Kernel * const attend_kernel  = kernel_of(module, "attend_kernelINS_" + std::to_string(type.size() + 4) + "row_" + type + "ELi" + size + "ELi" + std::to_string(N_Q16) + "E");
    const emu::Kernel * const combine_kernel = kernel_of(module, "combine_kernelILi" + size + "E");

    const size_t n_slot = (size_t) 2*args.n_block*kernel::TILE, n_head = (size_t) args.n_head_kv*args.n_gqa;
    const size_t n_hot  = args.row_ptr[args.n_head_kv]; // rows, without the gap behind the last head
    const size_t n_dst  = (size_t) args.n_tok*n_head*D;

    const buffer q      (args.q,       args.n_tok*args.nb_q_tok);
    const buffer k      (args.k,       args.n_kv*args.nb_k_row);
    const buffer v      (args.v,       args.n_kv*args.nb_v_row);
    const buffer mask   (args.mask,    args.mask ? args.n_tok*args.nb_mask : 0);
    const buffer sinks  (args.sinks,   args.sinks ? n_head*sizeof(float) : 0);
    const buffer k_hot  (args.k_hot,   n_hot*args.nb_k_hot);
    const buffer v_hot  (args.v_hot,   n_hot*args.nb_v_hot);
    const buffer row_ptr(args.row_ptr, (args.n_head_kv + 1)*sizeof(int32_t));
    const buffer dst    (nullptr,      n_dst*sizeof(float));
    const buffer part_o (nullptr,      n_slot*D*sizeof(float));
    const buffer part_m (nullptr,      n_slot*sizeof(float));
    const buffer part_l (nullptr,      n_slot*sizeof(float));

    float * const host_dst = args.dst;
    args.q       = q.as<char>();
    args.k       = k.as<char>();
    args.v       = v.as<char>();
    args.mask    = args.mask  ? mask.as<char>()   : nullptr;
    args.sinks   = args.sinks ? sinks.as<float>() : nullptr;
    args.k_hot   = k_hot.as<char>();
    args.v_hot   = v_hot.as<char>();
    args.row_ptr = row_ptr.as<int32_t>();
    args.dst     = dst.as<float>();
    args.part_o  = part_o.as<float>();
    args.part_m  = part_m.as<float>();
    args.part_l  = part_l.as<float>();
    args.max_tile_queries = kernel::TILE;

    struct { headkv::attn_args args; int n_split; } params = { args, kernel::N_SPLIT };
    const uint64_t found = emu::n_found();
    const bool ok =
        emu::run({ attend_kernel, { (uint32_t) args.n_block, 1, 1 }, { kernel::N_THREAD, 1, 1 }, 0, &params }) == emu::Result::OK &&
        emu::run({ combine_kernel, { (uint32_t) args.n_query(), (uint32_t) args.n_head_kv, 1 }, { combine::N_THREAD, 1, 1 },
            (uint32_t) (args.n_block*sizeof(float)), &params }) == emu::Result::OK;
    if (!ok || emu::n_found() != found) {
        std::fill(host_dst, host_dst + n_dst, std::numeric_limits<float>::infinity());
        return;
    }
    memcpy(host_dst, emu::host(dst.address), n_dst*sizeof(float));
}

int main(int argc, char ** argv) {
    if (argc < 2) { return 2; }
    folder = argv[1];
    return run_cases(argc - 1, argv + 1);
}
