#include "core/plan.h"
#include "core/error.h"

#include <algorithm>

uint32_t headkv_plan::n_protected() const {
    uint32_t n = 0;
    for (const auto & span : spans) {
        n += span.end - span.first;
    }
    return n;
}

static void check_window(uint32_t n_pos, uint32_t n_obs) {
    if (n_obs < 1 || n_obs >= n_pos) {
        headkv_fail(HEADKV_STATUS_INVALID_ARGUMENT,
            "n_obs = %u is outside [1, %lld], the positions seen less one", n_obs, (long long) n_pos - 1);
    }
}

static void check_size(const char * name, uint32_t size, const std::vector<uint32_t> & n_head_kv) {
    unsigned long long n_heads = 0;
    for (uint32_t n : n_head_kv) {
        n_heads += n;
    }
    if (size != n_heads) {
        headkv_fail(HEADKV_STATUS_INVALID_ARGUMENT, "%s has %u elements, the model has %llu kv heads", name, size, n_heads);
    }
}

// spans lie behind the sinks and before the window, one behind the other
static void add_spans(const headkv_plan_request & request, headkv_plan & plan) {
    if (plan.n_sink > 0) {
        plan.spans.push_back({ 0, plan.n_sink });
    }
    uint32_t last = plan.n_sink;
    for (uint32_t i = 0; i < request.n_spans; ++i) {
        const headkv_span span { request.spans[2*i], request.spans[2*i + 1] };
        if (span.first < last || span.first >= span.end || span.end > plan.n_pos_hot()) {
            headkv_fail(HEADKV_STATUS_INVALID_ARGUMENT, "span %u, positions %u to %u, is empty or not inside [%u, %u]",
                i, span.first, span.end, last, plan.n_pos_hot());
        }
        plan.spans.push_back(span);
        last = span.end;
    }
}

headkv_plan headkv_plan_make(const headkv_plan_request & request, const std::vector<uint32_t> & n_head_kv) {
    check_window(request.n_pos, request.n_obs);
    check_size("n_rows", request.n_rows_size, n_head_kv);

    headkv_plan res;
    res.n_pos  = request.n_pos;
    res.n_obs  = request.n_obs;
    res.n_sink = std::min(request.n_sink, res.n_pos_hot()); // a prompt shorter than the sinks keeps what it has
    add_spans(request, res);

    const uint32_t   n_min  = res.n_protected() + res.n_obs;
    const uint32_t * n_rows = request.n_rows;
    for (size_t i = 0; i < n_head_kv.size(); ++i) {
        std::vector<uint32_t> len(n_head_kv[i]);
        for (size_t ih = 0; ih < len.size(); ++ih) {
            const uint32_t n = *n_rows++;
            if (n < n_min || n > res.n_pos) {
                headkv_fail(HEADKV_STATUS_INVALID_ARGUMENT,
                    "layer %zu kv head %zu: %u rows are outside [%u, %u]", i, ih, n, n_min, res.n_pos);
            }
            len[ih] = n - res.n_obs;
        }
        res.layers.emplace_back(len);
    }
    return res;
}

headkv_plan headkv_plan_make_explicit(
        uint32_t n_pos, uint32_t n_obs,
        const std::vector<uint32_t> & n_head_kv, const uint32_t * n_kept, uint32_t n_kept_size,
        const int32_t * pos, size_t pos_size) {
    check_window(n_pos, n_obs);
    check_size("n_kept", n_kept_size, n_head_kv);

    headkv_plan res;
    res.n_pos = n_pos;
    res.n_obs = n_obs;

    size_t offset = 0;
    for (size_t i = 0; i < n_head_kv.size(); ++i) {
        const std::vector<uint32_t> len(n_kept, n_kept + n_head_kv[i]);
        n_kept += n_head_kv[i];

        for (size_t ih = 0; ih < len.size(); ++ih) {
            if (len[ih] > pos_size - offset) {
                headkv_fail(HEADKV_STATUS_INVALID_ARGUMENT,
                    "layer %zu kv head %zu: %u positions wanted, %zu are left in pos", i, ih, len[ih], pos_size - offset);
            }
            int64_t last = -1;
            for (uint32_t j = 0; j < len[ih]; ++j) {
                const int64_t p = pos[offset++];
                if (p <= last || p >= res.n_pos_hot()) {
                    headkv_fail(HEADKV_STATUS_INVALID_ARGUMENT, "layer %zu kv head %zu: position %lld is not above %lld and below %u",
                        i, ih, (long long) p, (long long) last, res.n_pos_hot());
                }
                last = p;
            }
        }
        res.layers.emplace_back(len);
    }
    if (offset != pos_size) {
        headkv_fail(HEADKV_STATUS_INVALID_ARGUMENT, "pos has %zu elements, n_kept adds up to %zu", pos_size, offset);
    }
    return res;
}
