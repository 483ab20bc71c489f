// headkv-cpu-observe.h: what the cells of a whole cache are worth to some queries, of a node that observes (attend/node.h).
//
// One KV head after the other. Its cells are scored in blocks, shared out to the threads, queries along the vector: token after
// token of one query head, then of the next. Each block keeps exp(score - its maximum) and the sums of that; when all blocks are
// there, every thread puts maxima and sums together, in the order of the blocks, and turns its own into attention:
//
//     block 0        | exp(s - m0), m0, l0 |  \
//     block 1        | exp(s - m1), m1, l1 |   > barrier >  m, l  >  exp(s - mb) exp(mb - m)/l, over the tokens
//     ...                                     /
//
// What comes out does not depend on the number of threads.

#ifndef HEADKV_CPU_OBSERVE_H
#define HEADKV_CPU_OBSERVE_H

#include <stddef.h>

struct ggml_compute_params;
struct ggml_tensor;

namespace headkv {

// bytes of params->wdata that the node needs
size_t observe_work_size(const ggml_tensor * node, int n_tasks);

// called by every thread of params, once
void observe(const ggml_compute_params * params, ggml_tensor * dst);

} // namespace headkv

#endif // HEADKV_CPU_OBSERVE_H
