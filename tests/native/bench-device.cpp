// bench-device.cpp: time of the fused kernel of a device against its stock attention on as many rows. Prints one JSON object a line;
// scripts/gpu-check runs it and makes tables.
//
//     bench-device NAME TYPE SIZE N_HEAD_KV GROUP ROWS SHAPE [TOKENS [MIB [ROUNDS]]]
//
// ROWS: of each KV head on average. TOKENS: new ones, 1 by default.
// SHAPE: stock    upstream's node, ROWS cells for each head
//        even     hot rows: ROWS for each head
//        uneven   as many rows in all, one head with 100 times as many as each of the others
//        copy     ROWS*N_HEAD_KV rows copied within the device: its bandwidth
//
// One graph computes nodes on different memory one after another: MIB (512) and more in all, so that no cache holds their rows, and
// what starting a graph costs counts little. The time is that of the median of ROUNDS (30).

#include "device-node.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <random>
#include <vector>

static constexpr int64_t N_TAIL = 256;

struct effort {
    size_t bytes;   // in all, at least
    int    n_round;
};

static void fill(ggml_tensor * t, std::mt19937 & rng) {
    std::normal_distribution<float> normal;
    std::vector<float> x(ggml_nelements(t)/ggml_nrows(t)*std::min<int64_t>(ggml_nrows(t), 1024));
    for (float & f : x) { f = normal(rng); }
    const int64_t n_rows = x.size()/t->ne[0];
    std::vector<uint8_t> data(n_rows*ggml_row_size(t->type, t->ne[0]));
    ggml_quantize_chunk(t->type, x.data(), data.data(), 0, n_rows, t->ne[0], nullptr);
    for (size_t at = 0; at < ggml_nbytes(t); at += data.size()) { // the same rows again and again
        ggml_backend_tensor_set(t, data.data(), at, std::min(data.size(), ggml_nbytes(t) - at));
    }
}

static std::vector<int32_t> make_row_ptr(int64_t n_head_kv, int64_t n_rows, bool is_uneven) {
    std::vector<int32_t> len(n_head_kv, n_rows/n_head_kv);
    if (is_uneven) {
        std::fill(len.begin(), len.end(), n_rows/(n_head_kv - 1 + 100));
        len[0] = n_rows - len[1]*(n_head_kv - 1);
    }
    std::vector<int32_t> row_ptr = { 0 };
    for (const int32_t n : len) { row_ptr.push_back(row_ptr.back() + n); }
    return row_ptr;
}

// microseconds of the graph in the median round
static double time_graph(ggml_backend_t backend, ggml_cgraph * graph, int n_round) {
    std::vector<double> us;
    for (int round = -3; round < n_round; round++) { // the first ones warm up, and record a CUDA graph
        const int64_t t0 = ggml_time_us();
        ggml_backend_graph_compute_async(backend, graph);
        ggml_backend_synchronize(backend);
        if (round >= 0) { us.push_back((double) (ggml_time_us() - t0)); }
    }
    std::nth_element(us.begin(), us.begin() + us.size()/2, us.end());
    return us[us.size()/2];
}

static double time_copy(ggml_backend_t backend, size_t bytes, const effort & e) {
    ggml_context_ptr ctx { ggml_init({ 8*ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, true }) };
    const int64_t n = std::max(bytes, e.bytes)/2/sizeof(float); // read once, written once
    ggml_tensor * a = ggml_new_tensor_1d(ctx.get(), GGML_TYPE_F32, n);
    ggml_tensor * b = ggml_new_tensor_1d(ctx.get(), GGML_TYPE_F32, n);
    ggml_tensor * c = ggml_cpy(ctx.get(), a, b);
    ggml_backend_buffer_ptr buf { ggml_backend_alloc_ctx_tensors(ctx.get(), backend) };
    ggml_cgraph * graph = ggml_new_graph(ctx.get());
    ggml_build_forward_expand(graph, c);
    return time_graph(backend, graph, e.n_round)*bytes/(2*n*sizeof(float));
}

static double time_nodes(ggml_backend_t backend, const node_shape & s, size_t bytes, bool is_uneven, const effort & e) {
    std::mt19937 rng(1);
    std::vector<std::unique_ptr<device_node>> nodes;
    for (size_t i = 0; i < std::min<size_t>(64, std::max<size_t>(2, e.bytes/bytes)); i++) {
        nodes.push_back(std::make_unique<device_node>(backend, s));
        device_node & n = *nodes.back();
        if (!n.is_supported) {
            return NAN;
        }
        for (ggml_tensor * t : { n.q, n.k, n.v, n.k_hot, n.v_hot }) {
            if (t) { fill(t, rng); }
        }
        if (n.row_ptr) {
            const auto row_ptr = make_row_ptr(s.n_head_kv, s.n_rows, is_uneven);
            device_node::set(n.row_ptr, row_ptr.data(), row_ptr.size()*sizeof(int32_t));
        }
    }
    ggml_context_ptr ctx { ggml_init({ ggml_graph_overhead(), nullptr, true }) };
    ggml_cgraph * graph = ggml_new_graph(ctx.get());
    for (const auto & n : nodes) { ggml_build_forward_expand(graph, n->node); }
    return time_graph(backend, graph, e.n_round)/nodes.size();
}

int main(int argc, char ** argv) {
    if (argc < 8 || argc > 11) {
        fprintf(stderr, "usage: bench-device NAME TYPE SIZE N_HEAD_KV GROUP ROWS SHAPE [TOKENS [MIB [ROUNDS]]]\n");
        return 2;
    }
    ggml_backend_t backend = open_device(argv[1]);
    if (!backend) {
        fprintf(stderr, "there is no device %s\n", argv[1]);
        return 77;
    }
    int type = 0;
    while (type < GGML_TYPE_COUNT && (!ggml_type_name((ggml_type) type) || std::string(ggml_type_name((ggml_type) type)) != argv[2])) {
        type++;
    }
    if (type == GGML_TYPE_COUNT) {
        fprintf(stderr, "there is no type %s\n", argv[2]);
        return 2;
    }
    const int64_t size = atoll(argv[3]), n_head_kv = atoll(argv[4]), group = atoll(argv[5]), rows = atoll(argv[6]);
    const std::string shape = argv[7];
    const bool is_stock = shape == "stock";
    const int64_t n_tok = argc > 8 ? atoll(argv[8]) : 1;
    const effort  e     = { (size_t) (argc > 9 ? atoll(argv[9]) : 512) << 20, argc > 10 ? atoi(argv[10]) : 30 };

    node_shape s = { (ggml_type) type, (ggml_type) type, size, size, n_head_kv, group, n_tok, is_stock ? rows : N_TAIL,
        is_stock ? 0 : std::max<int64_t>(1, rows - N_TAIL)*n_head_kv, true, false, 1.0f/std::sqrt((float) size), 0.0f };
    const size_t bytes = 2*rows*n_head_kv*ggml_row_size(s.type_k, size);
    const double us    = shape == "copy" ? time_copy(backend, bytes, e) : time_nodes(backend, s, bytes, shape == "uneven", e);
    printf("{\"device\": \"%s\", \"type\": \"%s\", \"size\": %lld, \"n_head_kv\": %lld, \"group\": %lld, \"rows\": %lld, \"tokens\": %lld, "
            "\"shape\": \"%s\", \"us\": %.3f, \"gb_s\": %.2f}\n", ggml_backend_name(backend), argv[2], (long long) size, (long long) n_head_kv, (long long) group,
            (long long) rows, (long long) n_tok, shape.c_str(), std::isnan(us) ? -1.0 : us, bytes/us/1e3);
    ggml_backend_free(backend);
    return std::isnan(us) ? 1 : 0;
}
