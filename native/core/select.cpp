#include "core/select.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <exception>
#include <limits>
#include <mutex>
#include <numeric>
#include <thread>

void headkv_fold(const headkv_score_shape & shape, headkv_fold_type fold, const float * attn, float * score) {
    if (fold == headkv_fold_type::layer) {
        headkv_fold({ shape.n_head, 1, shape.n_pos }, headkv_fold_type::mean, attn, score);
        for (uint32_t ih = 1; ih < shape.n_head_kv; ++ih) {
            std::copy_n(score, shape.n_pos, score + (size_t) ih*shape.n_pos);
        }
        return;
    }
    const uint32_t n_gqa = shape.n_head / shape.n_head_kv;
    const size_t   n     = shape.n_pos;

    const float scale = fold == headkv_fold_type::mean ? 1.0f / n_gqa : 1.0f;

    for (uint32_t ih = 0; ih < shape.n_head_kv; ++ih) {
        const float * src = attn + (size_t) ih*n_gqa*n;
        float       * dst = score + (size_t) ih*n;

        std::copy(src, src + n, dst);
        for (uint32_t j = 1; j < n_gqa; ++j) {
            src += n;
            for (size_t p = 0; p < n; ++p) {
                dst[p] = fold == headkv_fold_type::mean ? dst[p] + src[p] : std::max(dst[p], src[p]);
            }
        }
        for (size_t p = 0; p < n; ++p) {
            dst[p] *= scale;
        }
    }
}

void headkv_pool_row(headkv_pool_type pool, uint32_t kernel, float * score, size_t n) {
    const size_t half = kernel / 2;
    if (half == 0 || n == 0) {
        return;
    }

    const std::vector<float> src(score, score + n);

    for (size_t p = 0; p < n; ++p) {
        const auto first = src.begin() + (p > half ? p - half : 0);
        const auto last  = src.begin() + std::min(n, p + half + 1);
        score[p] = pool == headkv_pool_type::max
            ? *std::max_element(first, last)
            : std::accumulate(first, last, 0.0f) / (float) (last - first);
    }
}

// those that are always kept first, then the others, each in order; returns the number of the former
static uint32_t order_positions(uint32_t n_pos, const std::vector<headkv_span> & always, std::vector<int32_t> & pos) {
    std::vector<int32_t> others;
    pos.reserve(n_pos);
    others.reserve(n_pos);

    uint32_t p = 0;
    for (const auto & span : always) {
        for (; p < span.first; ++p) {
            others.push_back(p);
        }
        for (; p < span.end; ++p) {
            pos.push_back(p);
        }
    }
    for (; p < n_pos; ++p) {
        others.push_back(p);
    }
    const uint32_t n_always = pos.size();
    pos.insert(pos.end(), others.begin(), others.end());
    return n_always;
}

std::vector<int32_t> headkv_select_head(const float * score, uint32_t n_pos, const std::vector<headkv_span> & always, uint32_t n_keep) {
    std::vector<int32_t> pos;
    const uint32_t n_always = order_positions(n_pos, always, pos);

    // a strict order on (score, position), so that equal scores give the same rows on every machine
    const auto better = [score](int32_t a, int32_t b) {
        return score[a] != score[b] ? score[a] > score[b] : a < b;
    };

    std::nth_element(pos.begin() + n_always, pos.begin() + n_keep, pos.end(), better);
    pos.resize(n_keep);
    std::sort(pos.begin(), pos.end());

    return pos;
}

std::vector<int32_t> headkv_select_critical(
        const float * score, const float * norm, uint32_t n_pos, const std::vector<headkv_span> & always, uint32_t n_keep) {
    static constexpr float EPSILON = 1e-4f; // the paper's

    std::vector<int32_t> pos;
    const uint32_t n_always = order_positions(n_pos, always, pos);

    std::vector<float> second(n_pos);
    for (uint32_t p = 0; p < n_pos; ++p) {
        second[p] = (score[p] + EPSILON)*norm[p];
    }
    for (const int32_t p : headkv_select_head(score, n_pos, always, n_always + (n_keep - n_always)/2)) {
        second[p] = std::numeric_limits<float>::max();
    }
    return headkv_select_head(second.data(), n_pos, always, n_keep);
}

bool headkv_all_finite(const float * x, size_t n) {
    return std::all_of(x, x + n, [](float v) { return std::isfinite(v); });
}

void headkv_parallel_for(size_t n, uint32_t n_threads, const std::function<void(size_t)> & fn) {
    std::atomic<size_t> next { 0 };
    std::exception_ptr  error;
    std::mutex          mutex;

    const auto work = [&]() {
        try {
            for (size_t i = next++; i < n; i = next++) {
                fn(i);
            }
        } catch (...) {
            std::lock_guard<std::mutex> lock(mutex);
            error = error ? error : std::current_exception();
        }
    };

    std::vector<std::thread> threads;
    try {
        for (size_t t = 1; t < std::min<size_t>(n_threads, n); ++t) {
            threads.emplace_back(work);
        }
    } catch (const std::exception &) {
        // no more threads to be had: those that started, and this one, do the work
    }

    work();

    for (auto & thread : threads) {
        thread.join();
    }
    if (error) {
        std::rethrow_exception(error);
    }
}
