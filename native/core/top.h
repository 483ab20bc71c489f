// core/top.h: the order of positions by score: higher first, ties to the lower position. A strict order on (score, position), so
// that equal scores give the same rows on every machine.

#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

struct headkv_better {
    const float * score; // [n_pos]

    bool operator()(int32_t a, int32_t b) const { return score[a] != score[b] ? score[a] > score[b] : a < b; }
};

// the n best positions of n_pos, all of them if there are fewer, best first
inline std::vector<int32_t> headkv_top(const float * score, size_t n_pos, size_t n) {
    std::vector<int32_t> pos(n_pos);
    std::iota(pos.begin(), pos.end(), 0);
    n = std::min(n, n_pos);
    std::partial_sort(pos.begin(), pos.begin() + n, pos.end(), headkv_better { score });
    pos.resize(n);
    return pos;
}
