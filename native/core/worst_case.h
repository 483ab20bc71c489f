// core/worst_case.h: LayerDefensiveKV (https://arxiv.org/abs/2510.13334): the worst case decides what a position is worth, not the
// mean, and no position looks worthless for good. Plain arrays, no llama.cpp.
//
//     row'    = pool(row) * sum(row) / sum(pool(row))       attention of one query head of the group from one observing query
//     worst   = maximum of row' over the group and the queries, at least its own mean over the positions
//     score   = worst * norm / sum(norm)                    norm: what the value does behind the output projection
//
// The fewest positions that hold nine tenths of the head's mean attention, n_forced_max of them at most, get the highest score
// there is (the first stage of CriticalKV). Left out: the released code's small correction of the nine tenths for the window.

#pragma once

#include "headkv.h"

#include <cstdint>

struct headkv_worst_case {
    uint32_t n_rows;    // query heads of the group x observing queries
    uint32_t n_columns; // positions in a row of attention
    uint32_t n_pos;     // of them, the first n_pos have scores
    uint32_t n_forced_max;

    headkv_pool pool;
    uint32_t    kernel; // odd
};

// attention: [n_rows][n_columns], each row summing to at most 1; norm: [n_pos] >= 0; score: [n_pos]
void headkv_worst_case_score(const headkv_worst_case & how, const float * attention, const float * norm, float * score);
