#include "core/plan.h"

#include <algorithm>
#include <utility>

headkv_layer_rows::headkv_layer_rows(std::vector<uint32_t> len_) : len(std::move(len_)), indptr(len.size() + 1, 0) {
    for (size_t ih = 0; ih < len.size(); ++ih) {
        indptr[ih + 1] = indptr[ih] + len[ih];
    }
}

uint32_t headkv_layer_rows::max_len() const {
    return len.empty() ? 0 : *std::max_element(len.begin(), len.end());
}

uint32_t headkv_plan::n_always() const {
    uint32_t n = 0;
    for (const auto & span : always) {
        n += span.end - span.first;
    }
    return n;
}

static std::string head_name(size_t i, size_t ih) {
    return "layer " + std::to_string(i) + " kv head " + std::to_string(ih);
}

static bool check_window(uint32_t n_pos, uint32_t n_obs, std::string & error) {
    if (n_obs < 1 || n_obs >= n_pos) {
        error = "n_obs = " + std::to_string(n_obs) + " is outside [1, " + std::to_string((int64_t) n_pos - 1) + "], the positions seen less one";
        return false;
    }
    return true;
}

static bool check_size(const char * name, uint32_t size, const std::vector<uint32_t> & n_head_kv, std::string & error) {
    uint64_t n_heads = 0;
    for (uint32_t n : n_head_kv) {
        n_heads += n;
    }
    if (size != n_heads) {
        error = std::string(name) + " has " + std::to_string(size) + " elements, the model has " + std::to_string(n_heads) + " kv heads";
        return false;
    }
    return true;
}

// spans lie behind the sinks and before the window, one behind the other
static bool add_spans(const headkv_plan_request & request, headkv_plan & plan, std::string & error) {
    if (plan.n_sink > 0) {
        plan.always.push_back({ 0, plan.n_sink });
    }
    uint32_t last = plan.n_sink;
    for (uint32_t i = 0; i < request.n_spans; ++i) {
        const headkv_span span { request.spans[2*i], request.spans[2*i + 1] };
        if (span.first < last || span.first >= span.end || span.end > plan.n_pos_prefix()) {
            error = "span " + std::to_string(i) + ", positions " + std::to_string(span.first) + " to " + std::to_string(span.end) +
                ", is empty or not inside [" + std::to_string(last) + ", " + std::to_string(plan.n_pos_prefix()) + "]";
            return false;
        }
        plan.always.push_back(span);
        last = span.end;
    }
    return true;
}

bool headkv_plan_make(
        const headkv_plan_request & request, const std::vector<uint32_t> & n_head_kv, headkv_plan & plan, std::string & error) {
    if (!check_window(request.n_pos, request.n_obs, error) || !check_size("n_rows", request.n_rows_size, n_head_kv, error)) {
        return false;
    }

    headkv_plan res;
    res.n_pos  = request.n_pos;
    res.n_obs  = request.n_obs;
    res.n_sink = std::min(request.n_sink, res.n_pos_prefix()); // a prompt shorter than the sinks keeps what it has
    if (!add_spans(request, res, error)) {
        return false;
    }

    const uint32_t   n_min  = res.n_always() + res.n_obs;
    const uint32_t * n_rows = request.n_rows;
    for (size_t i = 0; i < n_head_kv.size(); ++i) {
        std::vector<uint32_t> len(n_head_kv[i]);
        for (size_t ih = 0; ih < len.size(); ++ih) {
            const uint32_t n = *n_rows++;
            if (n < n_min || n > res.n_pos) {
                error = head_name(i, ih) + ": " + std::to_string(n) + " rows are outside [" + std::to_string(n_min) + ", " + std::to_string(res.n_pos) + "]";
                return false;
            }
            len[ih] = n - res.n_obs;
        }
        res.layers.emplace_back(std::move(len));
    }

    plan = std::move(res);
    return true;
}

bool headkv_plan_make_explicit(
        uint32_t n_pos, uint32_t n_obs,
        const std::vector<uint32_t> & n_head_kv, const uint32_t * n_kept, uint32_t n_kept_size,
        const int32_t * pos, size_t pos_size,
        headkv_plan & plan, std::string & error) {
    if (!check_window(n_pos, n_obs, error) || !check_size("n_kept", n_kept_size, n_head_kv, error)) {
        return false;
    }

    headkv_plan res;
    res.n_pos = n_pos;
    res.n_obs = n_obs;

    const int64_t n_pos_prefix = res.n_pos_prefix();

    size_t offset = 0;
    for (size_t i = 0; i < n_head_kv.size(); ++i) {
        std::vector<uint32_t> len(n_kept, n_kept + n_head_kv[i]);
        n_kept += n_head_kv[i];

        for (size_t ih = 0; ih < len.size(); ++ih) {
            if (len[ih] > pos_size - offset) {
                error = head_name(i, ih) + ": " + std::to_string(len[ih]) + " positions wanted, " + std::to_string(pos_size - offset) + " are left in pos";
                return false;
            }
            int64_t last = -1;
            for (uint32_t j = 0; j < len[ih]; ++j) {
                const int64_t p = pos[offset++];
                if (p <= last || p >= n_pos_prefix) {
                    error = head_name(i, ih) + ": position " + std::to_string(p) + " is not above " + std::to_string(last) + " and below " + std::to_string(n_pos_prefix);
                    return false;
                }
                last = p;
            }
        }
        res.layers.emplace_back(std::move(len));
    }
    if (offset != pos_size) {
        error = "pos has " + std::to_string(pos_size) + " elements, n_kept adds up to " + std::to_string(offset);
        return false;
    }

    plan = std::move(res);
    return true;
}
