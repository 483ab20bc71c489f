#include "core/error.h"

#include <cstdarg>
#include <cstdio>
#include <vector>

void headkv_fail(headkv_status status, const char * format, ...) {
    va_list args;
    va_list again;
    va_start(args, format);
    va_copy(again, args);
    std::vector<char> text(std::vsnprintf(nullptr, 0, format, args) + 1);
    std::vsnprintf(text.data(), text.size(), format, again);
    va_end(again);
    va_end(args);
    throw headkv_error(status, text.data());
}
