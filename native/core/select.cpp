#include "core/select.h"
#include "core/top.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

void headkv_fold_heads(const headkv_score_shape & shape, headkv_fold fold, const float * attn, float * score) {
    if (fold == HEADKV_FOLD_LAYER) {
        headkv_fold_heads({ shape.n_head, 1, shape.n_pos }, HEADKV_FOLD_MEAN, attn, score);
        for (uint32_t ih = 1; ih < shape.n_head_kv; ++ih) {
            std::copy_n(score, shape.n_pos, score + (size_t) ih*shape.n_pos);
        }
        return;
    }
    const uint32_t n_gqa = shape.n_head / shape.n_head_kv;
    const size_t   n     = shape.n_pos;

    const float scale = fold == HEADKV_FOLD_MEAN ? 1.0f / n_gqa : 1.0f;

    for (uint32_t ih = 0; ih < shape.n_head_kv; ++ih) {
        const float * src = attn + (size_t) ih*n_gqa*n;
        float       * dst = score + (size_t) ih*n;

        std::copy(src, src + n, dst);
        for (uint32_t j = 1; j < n_gqa; ++j) {
            src += n;
            for (size_t p = 0; p < n; ++p) {
                dst[p] = fold == HEADKV_FOLD_MEAN ? dst[p] + src[p] : std::max(dst[p], src[p]);
            }
        }
        for (size_t p = 0; p < n; ++p) {
            dst[p] *= scale;
        }
    }
}

void headkv_pool_row(headkv_pool pool, uint32_t kernel, float * score, size_t n) {
    const size_t half = kernel / 2;
    if (half == 0 || n == 0) {
        return;
    }

    const std::vector<float> src(score, score + n);

    for (size_t p = 0; p < n; ++p) {
        const auto first = src.begin() + (p > half ? p - half : 0);
        const auto last  = src.begin() + std::min(n, p + half + 1);
        score[p] = pool == HEADKV_POOL_MAX
            ? *std::max_element(first, last)
            : std::accumulate(first, last, 0.0f) / (float) (last - first);
    }
}

// protected positions first, then the evictable ones, each in order; returns the number of the former
static uint32_t order_positions(uint32_t n_pos, const std::vector<headkv_span> & spans, std::vector<int32_t> & pos) {
    std::vector<int32_t> evictable;
    pos.reserve(n_pos);
    evictable.reserve(n_pos);

    uint32_t p = 0;
    for (const auto & span : spans) {
        for (; p < span.first; ++p) {
            evictable.push_back(p);
        }
        for (; p < span.end; ++p) {
            pos.push_back(p);
        }
    }
    for (; p < n_pos; ++p) {
        evictable.push_back(p);
    }
    const uint32_t n_protected = pos.size();
    pos.insert(pos.end(), evictable.begin(), evictable.end());
    return n_protected;
}

std::vector<int32_t> headkv_select_head(const float * score, uint32_t n_pos, const std::vector<headkv_span> & spans, uint32_t n_keep) {
    std::vector<int32_t> pos;
    const uint32_t n_protected = order_positions(n_pos, spans, pos);

    std::nth_element(pos.begin() + n_protected, pos.begin() + n_keep, pos.end(), headkv_better { score });
    pos.resize(n_keep);
    std::sort(pos.begin(), pos.end());

    return pos;
}

std::vector<int32_t> headkv_select_critical(
        const float * score, const float * norm, uint32_t n_pos, const std::vector<headkv_span> & spans, uint32_t n_keep) {
    static constexpr float EPSILON = 1e-4f; // the paper's

    std::vector<int32_t> pos;
    const uint32_t n_protected = order_positions(n_pos, spans, pos);

    std::vector<float> second(n_pos);
    for (uint32_t p = 0; p < n_pos; ++p) {
        second[p] = (score[p] + EPSILON)*norm[p];
    }
    for (const int32_t p : headkv_select_head(score, n_pos, spans, n_protected + (n_keep - n_protected)/2)) {
        second[p] = std::numeric_limits<float>::max();
    }
    return headkv_select_head(second.data(), n_pos, spans, n_keep);
}

bool headkv_all_finite(const float * x, size_t n) {
    return std::all_of(x, x + n, [](float v) { return std::isfinite(v); });
}
