#include "core/parallel.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

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
