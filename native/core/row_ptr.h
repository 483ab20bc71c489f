// core/row_ptr.h: rows of one layer, packed head after head: KV head ih owns the rows [row_ptr[ih], row_ptr[ih + 1]).
//
//     n_head_kv = 3, lengths {2, 0, 3}:   row_ptr = {0, 2, 2, 5}
//
//     row      0    1    2    3    4
//              |head 0 |  head 2    |      head 1 has none

#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

class headkv_row_ptr {
public:
    // no heads
    headkv_row_ptr() = default;

    explicit headkv_row_ptr(const std::vector<uint32_t> & len) {
        for (const uint32_t n : len) {
            values.push_back(values.back() + n);
        }
    }

    uint32_t n_head_kv() const { return (uint32_t) values.size() - 1; }
    uint32_t n_rows()    const { return values.back(); }

    uint32_t begin(uint32_t ih) const { return values[ih]; }
    uint32_t len  (uint32_t ih) const { return values[ih + 1] - values[ih]; }

    uint32_t max_len() const {
        uint32_t res = 0;
        for (uint32_t ih = 0; ih < n_head_kv(); ++ih) {
            res = std::max(res, len(ih));
        }
        return res;
    }

    const std::vector<uint32_t> & data() const { return values; } // [n_head_kv + 1]

private:
    std::vector<uint32_t> values = { 0 };
};
