// export-ops.cpp: `export-ops MODEL FILE` writes the operations of a model's graphs, those of a prompt and those of one token, as
// upstream's test-backend-ops reads them (as its test-export-graph-ops does, which needs much more to be built).

#include "ggml.h"
#include "llama-cpp.h"
#include "llama-ext.h"

#include <cstdio>
#include <cstring>
#include <fstream>
#include <set>
#include <sstream>
#include <string>

static constexpr uint32_t N_CTX    = 256;
static constexpr uint32_t N_PROMPT = 9; // tokens: more than upstream's kernels for few

static bool is_view(const ggml_tensor * t) {
    return t->op == GGML_OP_NONE || t->op == GGML_OP_VIEW || t->op == GGML_OP_RESHAPE || t->op == GGML_OP_PERMUTE || t->op == GGML_OP_TRANSPOSE;
}

template <class T> static void write(std::ostream & out, const T (& values)[4]) {
    for (const T x : values) { out << x << ' '; }
}

static std::string line_of(const ggml_tensor * node) {
    std::ostringstream out;
    out << node->op << ' ' << node->type << ' ';
    write(out, node->ne);
    int32_t params[GGML_MAX_OP_PARAMS/sizeof(int32_t)];
    memcpy(params, node->op_params, sizeof(params));
    out << std::size(params) << ' ';
    for (const int32_t x : params) { out << x << ' '; }
    int n = 0;
    while (n < GGML_MAX_SRC && node->src[n]) { n++; }
    out << n << ' ';
    for (int i = 0; i < n; i++) {
        out << node->src[i]->type << ' ';
        write(out, node->src[i]->ne);
        write(out, node->src[i]->nb);
    }
    return out.str() + "-\n"; // no name: layers do the same
}

int main(int argc, char ** argv) {
    if (argc != 3) {
        fprintf(stderr, "usage: %s MODEL FILE\n", argv[0]);
        return 1;
    }
    llama_model_params   of_model   = llama_model_default_params();
    llama_context_params of_context = llama_context_default_params();
    of_model.n_gpu_layers = 0;
    of_context.n_ctx = of_context.n_batch = of_context.n_ubatch = N_CTX;
    of_context.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    const llama_model_ptr   model { llama_model_load_from_file(argv[1], of_model) };
    const llama_context_ptr context { model ? llama_init_from_model(model.get(), of_context) : nullptr };
    if (!context) {
        fprintf(stderr, "%s could not be loaded\n", argv[1]);
        return 1;
    }
    std::set<std::string> lines;
    for (const uint32_t n_tokens : { N_PROMPT, 1u }) {
        ggml_cgraph * graph = llama_graph_reserve(context.get(), n_tokens, 1, 1);
        for (int i = 0; graph && i < ggml_graph_n_nodes(graph); i++) {
            if (!is_view(ggml_graph_node(graph, i))) { lines.insert(line_of(ggml_graph_node(graph, i))); }
        }
    }
    std::ofstream file(argv[2]);
    for (const std::string & line : lines) { file << line; }
    return !lines.empty() && file.flush() ? 0 : 1;
}
