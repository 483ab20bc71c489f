#include "core/worst_case.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <vector>

// of a head's mean attention, so much is held by what comes first
static constexpr double MASS = 0.9;

static double sum_of(const float * x, size_t n) {
    return std::accumulate(x, x + n, 0.0);
}

// the fewest positions with the highest values that hold MASS of their sum, n_max at most; ties to the lower position
static std::vector<int32_t> heaviest(const std::vector<float> & mean, uint32_t n_max) {
    std::vector<int32_t> pos(mean.size());
    std::iota(pos.begin(), pos.end(), 0);
    std::stable_sort(pos.begin(), pos.end(), [&](int32_t a, int32_t b) { return mean[a] > mean[b]; });

    const double enough = MASS*sum_of(mean.data(), mean.size());
    double held = 0.0;
    size_t n    = 0;
    while (n < std::min<size_t>(n_max, pos.size()) && (n == 0 || held < enough)) {
        held += mean[pos[n++]];
    }
    pos.resize(n);
    return pos;
}

void headkv_defend(const headkv_defence & defence, const float * attention, const float * norm, float * score) {
    const size_t n = defence.n_pos;

    std::vector<float> mean(n, 0.0f);
    std::vector<float> row(n);
    std::fill_n(score, n, 0.0f);
    for (uint32_t r = 0; r < defence.n_rows; ++r) {
        const float * src = attention + (size_t) r*defence.n_columns;
        std::copy_n(src, n, row.begin());
        headkv_pool_row(defence.pool, defence.kernel, row.data(), n);

        const double pooled = sum_of(row.data(), n);
        const float  scale  = pooled > 0.0 ? (float) (sum_of(src, n)/pooled) : 0.0f;
        for (size_t p = 0; p < n; ++p) {
            score[p] = std::max(score[p], scale*row[p]);
            mean[p] += src[p]/defence.n_rows;
        }
    }

    const float  least = (float) (sum_of(score, n)/n);
    const double norms = sum_of(norm, n);
    for (size_t p = 0; p < n; ++p) {
        score[p] = norms > 0.0 ? (float) (std::max(score[p], least)*norm[p]/norms) : 0.0f;
    }
    for (const int32_t p : heaviest(mean, defence.n_first)) {
        score[p] = std::numeric_limits<float>::max();
    }
}
