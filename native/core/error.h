// core/error.h: the one error of our code: a status for the C ABI, and what is said of it.

#pragma once

#include "headkv.h"

#include <stdexcept>
#include <string>

class headkv_error : public std::runtime_error {
public:
    headkv_error(headkv_status status, const std::string & message) : std::runtime_error(message), status(status) {}

    const headkv_status status;
};

#if defined(__GNUC__)
__attribute__((format(printf, 2, 3)))
#endif
[[noreturn]] void headkv_fail(headkv_status status, const char * format, ...);
