#include "core/worst_case.h"
#include "core/select.h"
#include "core/top.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <vector>

// of a head's mean attention, so much is held by the positions that are forced to the top
static constexpr double MASS = 0.9;

static double sum_of(const float * x, size_t n) {
    return std::accumulate(x, x + n, 0.0);
}

// the fewest positions with the highest values that hold MASS of their sum, n_max at most
static std::vector<int32_t> heaviest(const std::vector<float> & mean, uint32_t n_max) {
    std::vector<int32_t> pos = headkv_top(mean.data(), mean.size(), n_max);

    const double enough = MASS*sum_of(mean.data(), mean.size());
    double held = 0.0;
    size_t n    = 0;
    while (n < pos.size() && (n == 0 || held < enough)) {
        held += mean[pos[n++]];
    }
    pos.resize(n);
    return pos;
}

void headkv_worst_case_score(const headkv_worst_case & how, const float * attention, const float * norm, float * score) {
    const size_t n = how.n_pos;

    std::vector<float> mean(n, 0.0f);
    std::vector<float> row(n);
    std::fill_n(score, n, 0.0f);
    for (uint32_t r = 0; r < how.n_rows; ++r) {
        const float * src = attention + (size_t) r*how.n_columns;
        std::copy_n(src, n, row.begin());
        headkv_pool_row(how.pool, how.kernel, row.data(), n);

        const double pooled = sum_of(row.data(), n);
        const float  scale  = pooled > 0.0 ? (float) (sum_of(src, n)/pooled) : 0.0f;
        for (size_t p = 0; p < n; ++p) {
            score[p] = std::max(score[p], scale*row[p]);
            mean[p] += src[p]/how.n_rows;
        }
    }

    const float  least = (float) (sum_of(score, n)/n);
    const double norms = sum_of(norm, n);
    for (size_t p = 0; p < n; ++p) {
        score[p] = norms > 0.0 ? (float) (std::max(score[p], least)*norm[p]/norms) : 0.0f;
    }
    for (const int32_t p : heaviest(mean, how.n_forced_max)) {
        score[p] = std::numeric_limits<float>::max();
    }
}
