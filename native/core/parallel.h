// core/parallel.h: a loop on several threads.

#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

// run fn(0) .. fn(n - 1) on up to n_threads threads; the first exception of a worker is thrown again here
void headkv_parallel_for(size_t n, uint32_t n_threads, const std::function<void(size_t)> & fn);
