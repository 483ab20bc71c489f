// test-archive.cpp: rows in an archive stay what they are, in a file and in host memory, whatever leaves memory; the file has no name;
// and where there is no room, nothing has changed.

#include "refused.h"
#include "rows/layer_archive.h"
#include "small-folder.h"

#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "ggml.h"

#include <algorithm>
#include <cstring>
#include <fstream>
#include <numeric>

#if defined(__linux__)
#include <csignal>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/statfs.h>
#include <unistd.h>
#endif

static constexpr size_t KIB = 1024;
static constexpr size_t PAD = 64*KIB; // an archive's pages

struct tensors {
    ggml_context_ptr ctx { ggml_init({ 32*ggml_tensor_overhead(), nullptr, /*.no_alloc =*/ true }) };

    ggml_tensor * bytes(size_t n)                 { return ggml_new_tensor_1d(ctx.get(), GGML_TYPE_I8, (int64_t) n); }
    ggml_tensor * cells(size_t bytes, uint32_t n) { return ggml_new_tensor_2d(ctx.get(), GGML_TYPE_I8, (int64_t) bytes, n); }
};

static char pattern(int seed, size_t i) { return (char) (seed*31 + i/3 + i*i/7); }

static void fill(ggml_tensor * t, int seed, size_t n) {
    for (size_t i = 0; i < n; ++i) {
        ((char *) t->data)[i] = pattern(seed, i);
    }
}

static void fill(ggml_tensor * t, int seed) { fill(t, seed, ggml_nbytes(t)); }

static bool is_filled(const ggml_tensor * t, int seed) {
    for (size_t i = 0; i < ggml_nbytes(t); ++i) {
        if (((const char *) t->data)[i] != pattern(seed, i)) {
            return false;
        }
    }
    return true;
}

static bool is_zero(const ggml_tensor * t) {
    const char * x = (const char *) t->data;
    return std::all_of(x, x + ggml_nbytes(t), [](char c) { return c == 0; });
}

// whether pages leave memory when they are on the disk: not those of a file system that is memory, or lies over another
static bool can_drop(const std::string & dir) {
#if defined(__linux__)
    static constexpr long TMPFS = 0x01021994, OVERLAY = 0x794c7630;
    struct statfs fs = {};
    if (!dir.empty() && statfs(dir.c_str(), &fs) == 0 && (long) fs.f_type != TMPFS && (long) fs.f_type != OVERLAY) {
        return true;
    }
#endif
    return false;
}

static void test_rows_stay(const std::string & dir) {
    const std::vector<size_t> sizes = { 1024*KIB, 0, 300*KIB + 1, 1, 512*KIB };
    headkv_archive archive(sizes, dir);
    CHECK_EQUAL(archive.bytes(), (size_t) 0);
    CHECK_EQUAL(archive.bytes_reserved(), (1024 + 320 + 64 + 512)*KIB);
    CHECK_EQUAL(archive.size(1), (size_t) 0);
    CHECK_EQUAL(archive.size(3), PAD);

    tensors all;
    std::vector<ggml_tensor *> t;
    for (size_t i = 0; i < sizes.size(); ++i) {
        t.push_back(all.bytes(sizes[i]));
        archive.place(i, t[i]);
        archive.hold(i, sizes[i]);
    }
    CHECK_EQUAL(archive.bytes(), archive.bytes_reserved());
    for (size_t i = 0; i < t.size(); ++i) {
        CHECK(is_zero(t[i])); // what nobody wrote
    }
    for (size_t i = 0; i < t.size(); ++i) {
        fill(t[i], (int) i);
    }
    const size_t n_before = archive.bytes_resident();
    CHECK(n_before >= std::accumulate(sizes.begin(), sizes.end(), (size_t) 0)); // and pages that nobody wrote, or not
    CHECK(n_before <= archive.bytes());

    const void * const where = t[0]->data;
    for (size_t i = 0; i < t.size(); ++i) {
        archive.write_behind(i, 0, sizes[i]/2);
        archive.give_back(i, 1);
    }
    CHECK_EQUAL(archive.bytes(), archive.bytes_reserved());
    CHECK_EQUAL(archive.bytes_resident(), can_drop(dir) ? 0 : n_before);
    CHECK(t[0]->data == where);
    for (size_t i = 0; i < t.size(); ++i) {
        CHECK(is_filled(t[i], (int) i));
    }

    archive.prefetch(0, sizes[0]);
    archive.prefetch(1, 100);
    CHECK(is_filled(t[0], 0));

    fill(t[0], 7); // and written again
    archive.give_back(0, t.size());
    CHECK_EQUAL(archive.bytes_resident(), can_drop(dir) ? 0 : n_before);
    CHECK(is_filled(t[0], 7));
    CHECK(is_filled(t[4], 4));
}

static void test_hold(const std::string & dir) {
    headkv_archive archive({ 1024*KIB, 1024*KIB }, dir);
    tensors all;
    ggml_tensor * t = all.bytes(1024*KIB);
    archive.place(1, t);
    archive.give_back(0, 2); // of which nothing is held
    CHECK_EQUAL(archive.bytes_resident(), (size_t) 0);

    archive.hold(1, 1);
    CHECK_EQUAL(archive.bytes(), PAD);
    fill(t, 3, PAD);
    const void * const where = t->data;
    archive.hold(1, PAD + 1);
    CHECK_EQUAL(archive.bytes(), 2*PAD);
    archive.hold(1, 5);
    CHECK_EQUAL(archive.bytes(), 2*PAD); // never less
    archive.give_back(1, 1);
    archive.hold(1, 100*1024*KIB);
    CHECK_EQUAL(archive.bytes(), 1024*KIB); // all there is
    CHECK(archive.bytes_resident() <= archive.bytes());
    CHECK(t->data == where);
    for (size_t i = PAD; i < 1024*KIB; ++i) {
        ((char *) t->data)[i] = pattern(3, i);
    }
    CHECK(is_filled(t, 3));
    archive.hold(0, 1024*KIB);
    CHECK_EQUAL(archive.bytes(), 2*1024*KIB);
}

static void test_too_large(const std::string & dir) {
    headkv_archive archive({ 100, 0 }, dir);
    tensors all;
    archive.place(0, all.bytes(PAD));
    CHECK_REFUSED((archive.place(0, all.bytes(PAD + 1)), 0), HEADKV_STATUS_INVALID_ARGUMENT, "65537 bytes do not fit into the 65536 of area 0");
    CHECK_REFUSED((archive.place(1, all.bytes(1)), 0), HEADKV_STATUS_INVALID_ARGUMENT, "1 bytes do not fit into the 0 of area 1");
    archive.place(1, all.bytes(0));
}

static void test_nothing(const std::string & dir) {
    for (const auto & sizes : { std::vector<size_t> {}, std::vector<size_t>(3, 0) }) {
        headkv_archive archive(sizes, dir);
        for (size_t i = 0; i < sizes.size(); ++i) {
            archive.hold(i, 100);
        }
        archive.give_back(0, sizes.size());
        CHECK_EQUAL(archive.bytes(), (size_t) 0);
        CHECK_EQUAL(archive.bytes_resident(), (size_t) 0);
        CHECK(archive.buffer() != nullptr);
    }
}

//
// rows of layers
//

static void test_layers(const std::string & dir) {
    static constexpr uint32_t N_CELLS = 1000;
    const std::vector<headkv_cell_bytes> layers = { { 256, 128, 64 }, { 70, 0, 33 }, { 256, 300, 0 } };
    headkv_layer_archive archive(layers, N_CELLS, dir);
    CHECK_EQUAL(archive.n_cells(), N_CELLS);

    tensors all;
    std::vector<ggml_tensor *> k, v, observed;
    for (size_t i = 0; i < layers.size(); ++i) {
        k.push_back(all.cells(layers[i].k, N_CELLS));
        v.push_back(layers[i].v ? all.cells(layers[i].v, N_CELLS) : nullptr);
        archive.place(i, k[i], v[i]);
    }
    archive.hold(300);
    CHECK_EQUAL(archive.bytes(), (2 + 1 + 1 + 2 + 2)*PAD); // 300 cells of each, in pages
    archive.hold(N_CELLS);
    const size_t n_rows = (4 + 2 + 2 + 4 + 5)*PAD;
    CHECK_EQUAL(archive.bytes(), n_rows);

    for (size_t i = 0; i < layers.size(); ++i) {
        observed.push_back(all.cells(layers[i].observed, N_CELLS));
        CHECK(archive.place_observed(i, observed[i]));
    }
    CHECK_EQUAL(archive.bytes(), n_rows + (1 + 1 + 0)*PAD);
    CHECK(!archive.place_observed(1, all.bytes(PAD + 1)));
    CHECK(!archive.place_observed(2, all.bytes(1)));

    const auto each = [&](const auto & f) {
        for (size_t i = 0; i < layers.size(); ++i) {
            f(k[i], (int) i);
            f(observed[i], (int) i + 20);
            if (v[i]) {
                f(v[i], (int) i + 10);
            }
        }
    };
    each([](ggml_tensor * t, int seed) { fill(t, seed); });
    each([](ggml_tensor * t, int seed) { CHECK(is_filled(t, seed)); }); // none lies over another

    const size_t n_before = archive.bytes_resident();
    archive.write_behind(1, 0, 200);
    archive.write_behind(1, 200, N_CELLS);
    archive.give_back(0);
    CHECK(archive.bytes_resident() <= n_before - (can_drop(dir) ? N_CELLS*(256 + 128 + 64) : 0));
    archive.give_back(1);
    archive.give_back(2);
    CHECK(archive.bytes_resident() <= (can_drop(dir) ? 0 : n_before));
    each([](ggml_tensor * t, int seed) { CHECK(is_filled(t, seed)); });

    // observed anew
    ggml_tensor * again = all.cells(33, N_CELLS/2);
    CHECK(archive.place_observed(1, again));
    CHECK(again->data == observed[1]->data);
    CHECK(is_zero(again));
    CHECK(is_filled(k[1], 1));
    CHECK(is_filled(observed[0], 20));
    CHECK(is_filled(k[2], 2));
}

//
// the file
//

#if !defined(_WIN32)
static void test_file_has_no_name() {
    small_folder folder;
    {
        headkv_archive archive({ 1024*KIB }, folder.name());
        CHECK(folder.is_empty());
        archive.hold(0, 1024*KIB);
        tensors all;
        ggml_tensor * t = all.bytes(1024*KIB);
        archive.place(0, t);
        fill(t, 1);
        archive.give_back(0, 1);
        CHECK(folder.is_empty());
    }
    CHECK(folder.is_empty());
}

static void test_folder() {
    small_folder folder;
    const auto check = [](const std::string & dir) {
        CHECK_REFUSED(headkv_archive({ 1 }, dir), HEADKV_STATUS_INVALID_ARGUMENT, "no file for rows can be made in " + dir);
    };
    check(folder.name() + "/missing");
    std::ofstream(folder.path/"file").put('x');
    check(folder.name() + "/file");
#if defined(__linux__)
    check("/proc"); // where nobody can write, whoever runs this
#endif
}
#endif

#if defined(__linux__)
static size_t n_open_files() {
    const auto all = std::filesystem::directory_iterator("/proc/self/fd");
    return std::distance(begin(all), end(all));
}

static void test_nothing_is_left_open() {
    small_folder folder;
    const size_t n_before = n_open_files();
    for (const std::string & dir : { std::string(), folder.name() }) {
        tensors all;
        ggml_tensor * t = all.bytes(PAD);
        {
            headkv_archive archive({ PAD }, dir);
            archive.place(0, t);
            CHECK_EQUAL(n_open_files(), n_before + !dir.empty());
        }
        CHECK_EQUAL(n_open_files(), n_before);
        CHECK(msync(t->data, PAD, MS_ASYNC) == -1); // nothing lies there
    }
}

// while it lives, no file can grow beyond n bytes
struct largest_file {
    rlimit before = {};

    explicit largest_file(size_t n) {
        signal(SIGXFSZ, SIG_IGN);
        getrlimit(RLIMIT_FSIZE, &before);
        const rlimit now { n, before.rlim_max };
        setrlimit(RLIMIT_FSIZE, &now);
    }

    ~largest_file() { setrlimit(RLIMIT_FSIZE, &before); }
};

static void test_file_cannot_be_so_large() {
    small_folder folder;
    const size_t n_before = n_open_files();
    {
        const largest_file limit(1024*KIB);
        CHECK_REFUSED(headkv_archive({ 1024*KIB, 1 }, folder.name()), HEADKV_STATUS_NO_MEMORY, "a file of 1.1 MiB for rows cannot be made in " + folder.name());
    }
    CHECK_EQUAL(n_open_files(), n_before);
    CHECK(folder.is_empty());
}

// host memory is taken as it is written to
static void test_host_memory() {
    headkv_archive archive({ 64*1024*KIB, 64*1024*KIB }, "");
    archive.hold(0, 64*1024*KIB);
    archive.hold(1, 64*1024*KIB);
    CHECK_EQUAL(archive.bytes_resident(), (size_t) 0);
    tensors all;
    ggml_tensor * t = all.bytes(64*1024*KIB);
    archive.place(1, t);
    fill(t, 1, PAD);
    CHECK(archive.bytes_resident() >= PAD);
    CHECK(archive.bytes_resident() <= 64*1024*KIB); // of huge pages
}
#endif

int main() {
    const auto both = [](const std::string & dir) {
        test_rows_stay(dir);
        test_hold(dir);
        test_too_large(dir);
        test_nothing(dir);
        test_layers(dir);
    };
    both("");
#if defined(_WIN32)
    CHECK_REFUSED(headkv_archive({ 1 }, "somewhere"), HEADKV_STATUS_UNSUPPORTED, "rows cannot be kept in a file on this system");
#else
    small_folder folder;
    both(folder.name());
    test_file_has_no_name();
    test_folder();
#endif
#if defined(__linux__)
    if (!can_drop(folder.name())) {
        std::cerr << "skipped: pages that leave memory, which those of " << folder.name() << " do not\n";
    }
    test_nothing_is_left_open();
    test_file_cannot_be_so_large();
    test_host_memory();
#endif
    return n_failed != 0;
}
