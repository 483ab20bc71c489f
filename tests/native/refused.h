// refused.h: the assertion that a call is refused with a status and words.

#pragma once

#include "check.h"
#include "core/error.h"

#include <string>

template <typename F>
static void check_refused(const F & call, headkv_status status, const std::string & words, int line) {
    try {
        call();
    } catch (const headkv_error & err) {
        check_equal((int) err.status, (int) status, "status", line);
        if (std::string(err.what()).find(words) == std::string::npos) {
            check_equal(std::string(err.what()), "... " + words + " ...", "message", line);
        }
        return;
    }
    check_equal(std::string("no error"), words, "result", line);
}

#define CHECK_REFUSED(call, status, words) check_refused([&] { (void) (call); }, status, words, __LINE__)
