// headkv-metal.cpp: which nodes the kernels take, where they come from, and their launch.
//
// The kernels are a library of their own, compiled from source when the first node asks for them. In upstream's list of
// libraries a compiler that refuses ours would cost the device; here it costs the fused attention, and attend/attn.h does it unfused.

#include "attend/node.h"
#include "headkv-metal.h"
#include "headkv-metal-source.h"

#include "ggml-backend-impl.h"
#include "ggml-impl.h"
#include "ggml-metal/ggml-metal-device.h"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <utility>

#include "headkv-metal-args.h"

static constexpr int N_SIMDGROUP     = 4;   // of a threadgroup, where the pipeline can have as many
static constexpr int MAX_SPLIT       = 256; // threadgroups: several for each of the 8 to 80 cores of a GPU
static constexpr int MIN_SPLIT_ROWS  = 256; // fewer rows of a chunk are not worth what they leave behind
static constexpr int MAX_TILE        = 8;   // queries whose accumulators fit into the registers of a SIMD-group
static constexpr int MAX_TOKENS      = 8;   // more are better done by matrix instructions, unfused

enum buffer_attend  { ATTEND_ARGS, ATTEND_Q, ATTEND_K, ATTEND_V, ATTEND_MASK, ATTEND_K_HOT, ATTEND_V_HOT, ATTEND_ROW_PTR, ATTEND_PART };
enum buffer_combine { COMBINE_ARGS, COMBINE_SINKS, COMBINE_ROW_PTR, COMBINE_PART, COMBINE_DST };

//
// which nodes
//

// rows are read 4 numbers at a time, blocks byte by byte behind a scale of 2 bytes
static bool is_aligned(const ggml_tensor * t) {
    const size_t alignment = ggml_is_quantized(t->type) ? 2 : 4*ggml_type_size(t->type);
    return t->nb[1] % alignment == 0 && t->nb[2] % alignment == 0;
}

static bool is_shape_supported(const headkv_node & node) {
    return node.is_plain() && (node.q->ne[1] <= MAX_TOKENS || node.sinks) && is_aligned(node.q) && is_aligned(node.k) && is_aligned(node.v);
}

//
// kernels
//

// one for each device, as long as the program runs; NULL where the compiler refused it
static ggml_metal_library_t library_of(ggml_metal_device_t dev) {
    static std::mutex mutex;
    static std::map<ggml_metal_device_t, ggml_metal_library_t> libraries;

    std::lock_guard<std::mutex> lock(mutex);
    const auto it = libraries.find(dev);
    if (it != libraries.end()) {
        return it->second;
    }
    return libraries[dev] = ggml_metal_library_init_from_source(dev, headkv_metal_source, /*.verbose =*/ true);
}

// compiled once; what the compiler refused is not tried again for each graph
static ggml_metal_pipeline_with_params pipeline_of(ggml_metal_library_t lib, const char * name) {
    static std::mutex mutex;
    static std::set<std::pair<ggml_metal_library_t, std::string>> refused;

    std::lock_guard<std::mutex> lock(mutex);
    ggml_metal_pipeline_with_params res = ggml_metal_library_get_pipeline(lib, name);
    if (!res.pipeline && refused.count({ lib, name }) == 0) {
        res = ggml_metal_library_compile_pipeline(lib, name, name, nullptr);
        if (!res.pipeline) {
            refused.insert({ lib, name });
        }
    }
    return res;
}

static ggml_metal_pipeline_with_params attend_pipeline(ggml_metal_library_t lib, const headkv_node & node, const headkv_metal_args & args) {
    char name[64];
    snprintf(name, sizeof(name), "headkv_attend_%s_%d_%d", ggml_type_name(node.k->type), args.n_embd_head, args.tile);
    return pipeline_of(lib, name);
}

static size_t shared_bytes(const headkv_metal_args & args) {
    return (size_t) args.tile*(args.n_embd_head + 4)*sizeof(float); // rows and state of a tile, a multiple of 16
}

//
// launch
//

static headkv_metal_args make_args(const headkv_node & node) {
    headkv_metal_args args = {};
    args.nb_q_tok    = node.q->nb[1];
    args.nb_q_head   = node.q->nb[2];
    args.nb_k_row    = node.k->nb[1];
    args.nb_k_head   = node.k->nb[2];
    args.nb_v_row    = node.v->nb[1];
    args.nb_v_head   = node.v->nb[2];
    args.nb_k_hot    = node.k_hot->nb[1];
    args.nb_v_hot    = node.v_hot->nb[1];
    args.nb_mask     = node.mask ? node.mask->nb[1] : 0;
    args.n_embd_head = (int32_t) node.k->ne[0];
    args.n_head_kv   = (int32_t) node.k->ne[2];
    args.n_kv        = (int32_t) node.k->ne[1];
    args.n_gqa       = (int32_t) node.n_gqa();
    args.n_query     = (int32_t) (node.q->ne[1]*args.n_gqa);
    args.tile        = args.n_query == 1 ? 1 : args.n_query <= 4 ? 4 : MAX_TILE;
    args.has_mask    = node.mask != nullptr;
    args.has_sinks   = node.sinks != nullptr;
    args.scale       = node.logit_scale();
    args.softcap     = node.softcap;

    const int64_t n_rows = node.k_hot->ne[1] + node.k->ne[1]*node.k->ne[2];
    const int64_t n_tile = (args.n_query + args.tile - 1)/args.tile;
    args.n_split  = (int32_t) std::max<int64_t>(1, std::min(n_rows/MIN_SPLIT_ROWS, MAX_SPLIT/n_tile));
    args.n_worker = args.n_split + args.n_head_kv;
    return args;
}

static int64_t n_tiles(const headkv_metal_args & args) {
    return (args.n_query + args.tile - 1)/args.tile;
}

bool headkv_metal_supported(ggml_metal_device_t dev, const ggml_tensor * dst) {
    const headkv_node node(dst);
    const ggml_metal_device_props * props = ggml_metal_device_get_props(dev);
    if (!props->has_simdgroup_reduction || !is_shape_supported(node)) {
        return false;
    }
    const headkv_metal_args args = make_args(node);
    if (shared_bytes(args) > props->max_theadgroup_memory_size) {
        return false;
    }
    ggml_metal_library_t lib = library_of(dev);
    return lib && attend_pipeline(lib, node, args).pipeline && pipeline_of(lib, "headkv_combine").pipeline;
}

// accumulators and state (top, sum) of the queries of each worker
size_t headkv_metal_alloc_size(const ggml_tensor * dst) {
    const headkv_metal_args args = make_args(headkv_node(dst));
    return ggml_nbytes(dst) + (size_t) n_tiles(args)*args.n_worker*args.tile*(args.n_embd_head + 2)*sizeof(float);
}

static ggml_metal_buffer_id buffer_of(const ggml_tensor * t) {
    ggml_backend_buffer_t buffer = t->view_src ? t->view_src->buffer : t->buffer;
    return ggml_metal_buffer_get_id((ggml_metal_buffer_t) buffer->context, t);
}

void headkv_metal_flash_attn(ggml_metal_device_t dev, ggml_metal_encoder_t enc, const ggml_tensor * dst) {
    GGML_ASSERT(headkv_metal_supported(dev, dst));

    const headkv_node    node(dst);
    ggml_metal_library_t lib    = library_of(dev);
    headkv_metal_args    args   = make_args(node);
    const auto           attend = attend_pipeline(lib, node, args);
    const int            n_sg   = std::clamp(ggml_metal_pipeline_max_theads_per_threadgroup(attend)/32, 1, N_SIMDGROUP);

    ggml_metal_buffer_id part = buffer_of(dst);
    part.offs += ggml_nbytes(dst);

    const ggml_metal_buffer_id none = buffer_of(node.q); // a buffer that is bound and not read

    ggml_metal_encoder_set_pipeline(enc, attend);
    ggml_metal_encoder_set_bytes   (enc, &args, sizeof(args), ATTEND_ARGS);
    ggml_metal_encoder_set_buffer  (enc, buffer_of(node.q), ATTEND_Q);
    ggml_metal_encoder_set_buffer  (enc, buffer_of(node.k), ATTEND_K);
    ggml_metal_encoder_set_buffer  (enc, buffer_of(node.v), ATTEND_V);
    ggml_metal_encoder_set_buffer  (enc, args.has_mask ? buffer_of(node.mask) : none, ATTEND_MASK);
    ggml_metal_encoder_set_buffer  (enc, buffer_of(node.k_hot), ATTEND_K_HOT);
    ggml_metal_encoder_set_buffer  (enc, buffer_of(node.v_hot), ATTEND_V_HOT);
    ggml_metal_encoder_set_buffer  (enc, buffer_of(node.row_ptr), ATTEND_ROW_PTR);
    ggml_metal_encoder_set_buffer  (enc, part, ATTEND_PART);
    ggml_metal_encoder_set_threadgroup_memory_size(enc, shared_bytes(args), 0);
    ggml_metal_encoder_dispatch_threadgroups(enc, args.n_worker, (int) n_tiles(args), 1, 32*n_sg, 1, 1);

    ggml_metal_encoder_memory_barrier(enc); // parts are written

    ggml_metal_encoder_set_pipeline(enc, pipeline_of(lib, "headkv_combine"));
    ggml_metal_encoder_set_bytes   (enc, &args, sizeof(args), COMBINE_ARGS);
    ggml_metal_encoder_set_buffer  (enc, args.has_sinks ? buffer_of(node.sinks) : none, COMBINE_SINKS);
    ggml_metal_encoder_set_buffer  (enc, buffer_of(node.row_ptr), COMBINE_ROW_PTR);
    ggml_metal_encoder_set_buffer  (enc, part, COMBINE_PART);
    ggml_metal_encoder_set_buffer  (enc, buffer_of(dst), COMBINE_DST);
    ggml_metal_encoder_dispatch_threadgroups(enc, args.n_query, args.n_head_kv, 1, 32, 1, 1);
}
