// check.h: the assertion of the native tests. Prints both values, goes on, and is active in every build type.

#pragma once

#include <iostream>
#include <vector>

static int n_failed = 0;

template <typename T>
static void print(const T & value) {
    std::cerr << value;
}

template <typename T>
static void print(const std::vector<T> & values) {
    for (const T & value : values) {
        std::cerr << value << ' ';
    }
}

template <typename A, typename B>
static void check_equal(const A & got, const B & want, const char * what, int line) {
    if (!(got == want)) {
        std::cerr << "line " << line << ": " << what << " is ";
        print(got);
        std::cerr << ", expected ";
        print(want);
        std::cerr << "\n";
        n_failed++;
    }
}

#define CHECK_EQUAL(got, want) check_equal((got), (want), #got, __LINE__)
#define CHECK(condition)       check_equal(bool(condition), true, #condition, __LINE__)
