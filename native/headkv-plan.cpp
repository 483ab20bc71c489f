#include "headkv-plan.h"

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

bool headkv_plan_make(
        uint32_t n_pos, uint32_t n_obs, uint32_t n_sink,
        const std::vector<uint32_t> & n_head_kv, const uint32_t * n_rows, uint32_t n_rows_size,
        headkv_plan & plan, std::string & error) {
    if (!check_window(n_pos, n_obs, error) || !check_size("n_rows", n_rows_size, n_head_kv, error)) {
        return false;
    }

    // a prompt shorter than the sinks keeps what it has
    const uint32_t n_sink_here = std::min(n_sink, n_pos - n_obs);
    const uint32_t n_min       = n_sink_here + n_obs;

    headkv_plan res;
    res.n_pos  = n_pos;
    res.n_obs  = n_obs;
    res.n_sink = n_sink_here;

    for (size_t i = 0; i < n_head_kv.size(); ++i) {
        std::vector<uint32_t> len(n_head_kv[i]);
        for (size_t ih = 0; ih < len.size(); ++ih) {
            const uint32_t n = *n_rows++;
            if (n < n_min || n > n_pos) {
                error = head_name(i, ih) + ": " + std::to_string(n) + " rows are outside [" + std::to_string(n_min) + ", " + std::to_string(n_pos) + "]";
                return false;
            }
            len[ih] = n - n_obs;
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
