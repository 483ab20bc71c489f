#include "rows/archive.h"
#include "core/error.h"

#include "ggml-backend.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#define NOMINMAX
#include <windows.h>
#else
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/statvfs.h>
#include <unistd.h>
#endif

static constexpr size_t PAGE = 65536; // a multiple of the page sizes of all systems

static double mib(size_t n) { return n/1024.0/1024.0; }

#if defined(_WIN32)

// host memory only: reserved whole, committed as it is held
static char * map_memory(size_t size) { return (char *) VirtualAlloc(nullptr, size, MEM_RESERVE, PAGE_READWRITE); }
static void   unmap(char * base, size_t /*size*/) { VirtualFree(base, 0, MEM_RELEASE); }
static bool   commit(char * base, size_t size)    { return VirtualAlloc(base, size, MEM_COMMIT, PAGE_READWRITE) != nullptr; }

static int open_unnamed(const std::string & dir) {
    headkv_fail(HEADKV_STATUS_UNSUPPORTED, "rows cannot be kept in a file on this system: %s", dir.c_str());
}

#else

static char * map_memory(size_t size) {
    void * res = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return res == MAP_FAILED ? nullptr : (char *) res;
}

static void unmap(char * base, size_t size) { munmap(base, size); }

static bool commit(char * /*base*/, size_t /*size*/) { return true; } // taken at the first write

static int open_unnamed(const std::string & dir) {
#if defined(O_TMPFILE)
    if (const int fd = open(dir.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600); fd >= 0) {
        return fd;
    }
#endif
    std::string name = dir + "/rows-XXXXXX";
    const int fd = mkstemp(name.data());
    if (fd < 0) {
        headkv_fail(HEADKV_STATUS_INVALID_ARGUMENT, "no file for rows can be made in %s: %s", dir.c_str(), strerror(errno));
    }
    unlink(name.c_str());
    fcntl(fd, F_SETFD, FD_CLOEXEC);
    return fd;
}

// room on the disk for [offset, offset + n); 0 or the error
static int allocate(int fd, size_t offset, size_t n) {
#if defined(__APPLE__)
    (void) offset;
    fstore_t store = { F_ALLOCATEALL, F_PEOFPOSMODE, 0, (off_t) n, 0 };
    return fcntl(fd, F_PREALLOCATE, &store) == -1 ? errno : 0;
#else
    return posix_fallocate(fd, (off_t) offset, (off_t) n);
#endif
}

#endif

headkv_archive::headkv_archive(const std::vector<size_t> & sizes, const std::string & dir) {
    for (const size_t n : sizes) {
        areas.push_back({ n_bytes, GGML_PAD(n, PAGE) });
        n_bytes += areas.back().size;
    }
    n_bytes = std::max(n_bytes, PAGE);
    if (dir.empty()) {
        base = map_memory(n_bytes);
    } else {
        fd = open_unnamed(dir);
#if !defined(_WIN32)
        void * map = MAP_FAILED;
        if (ftruncate(fd, (off_t) n_bytes) == 0) {
            map = mmap(nullptr, n_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        }
        if (map == MAP_FAILED) {
            const int error = errno;
            close(fd);
            headkv_fail(HEADKV_STATUS_NO_MEMORY, "a file of %.1f MiB for rows cannot be made in %s: %s", mib(n_bytes), dir.c_str(), strerror(error));
        }
        base = (char *) map;
        madvise(base, n_bytes, MADV_RANDOM);
#endif
    }
    if (!base) {
        headkv_fail(HEADKV_STATUS_NO_MEMORY, "out of memory: %.1f MiB for rows could not be reserved", mib(n_bytes));
    }
    whole = buffer();
}

headkv_archive::~headkv_archive() {
    unmap(base, n_bytes);
#if !defined(_WIN32)
    if (fd >= 0) {
        close(fd);
    }
#endif
}

ggml_backend_buffer_ptr headkv_archive::buffer() const {
    return ggml_backend_buffer_ptr(ggml_backend_cpu_buffer_from_ptr(base, n_bytes));
}

void headkv_archive::place(size_t i, ggml_tensor * t) const {
    if (ggml_nbytes(t) > areas[i].size) {
        headkv_fail(HEADKV_STATUS_INVALID_ARGUMENT, "%zu bytes do not fit into the %zu of area %zu", ggml_nbytes(t), areas[i].size, i);
    }
    ggml_backend_tensor_alloc(whole.get(), t, base + areas[i].offset);
}

void headkv_archive::hold(size_t i, size_t n) {
    area & a = areas[i];
    n = std::min(GGML_PAD(n, PAGE), a.size);
    if (n <= a.n_held) {
        return;
    }
    if (fd < 0 && !commit(base + a.offset + a.n_held, n - a.n_held)) {
        headkv_fail(HEADKV_STATUS_NO_MEMORY, "out of memory: %.1f MiB for rows could not be had", mib(n - a.n_held));
    }
#if !defined(_WIN32)
    if (fd >= 0) {
        if (const int error = allocate(fd, a.offset + a.n_held, n - a.n_held)) {
            struct statvfs fs = {};
            fstatvfs(fd, &fs);
            headkv_fail(HEADKV_STATUS_NO_MEMORY, "the disk has no room for %.1f MiB of rows, %.1f MiB are free: %s",
                mib(n - a.n_held), mib((size_t) fs.f_bavail*fs.f_frsize), strerror(error));
        }
    }
#endif
    a.n_held = n;
}

void headkv_archive::prefetch(size_t i, size_t n) const noexcept {
#if !defined(_WIN32)
    if (fd >= 0 && n > 0) {
        madvise(base + areas[i].offset, std::min(n, areas[i].n_held), MADV_WILLNEED);
    }
#else
    (void) i; (void) n;
#endif
}

void headkv_archive::write_behind(size_t i, size_t begin, size_t end) const noexcept {
#if defined(__linux__)
    if (fd >= 0 && begin < end) {
        sync_file_range(fd, (off_t) (areas[i].offset + begin), (off_t) (end - begin), SYNC_FILE_RANGE_WRITE);
    }
#else
    (void) i; (void) begin; (void) end;
#endif
}

void headkv_archive::drop(const area & a) const noexcept {
#if defined(__linux__)
    madvise(base + a.offset, a.n_held, MADV_DONTNEED);
    sync_file_range(fd, (off_t) a.offset, (off_t) a.n_held,
        SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER);
    posix_fadvise(fd, (off_t) a.offset, (off_t) a.n_held, POSIX_FADV_DONTNEED); // those that are on the disk
#elif !defined(_WIN32)
    msync(base + a.offset, a.n_held, MS_ASYNC);
    madvise(base + a.offset, a.n_held, MADV_DONTNEED);
#else
    (void) a;
#endif
}

void headkv_archive::give_back(size_t first, size_t n) noexcept {
    for (size_t i = first; i < first + n; ++i) {
        area & a = areas[i];
        if (a.n_held == 0) {
            continue;
        }
        if (fd >= 0) {
            drop(a);
        }
        a.n_left = measure(a);
    }
}

size_t headkv_archive::bytes() const {
    size_t res = 0;
    for (const area & a : areas) {
        res += a.n_held;
    }
    return res;
}

size_t headkv_archive::measure(const area & a) const {
#if defined(__linux__)
    const size_t page = (size_t) sysconf(_SC_PAGESIZE);
    std::vector<unsigned char> in_memory(a.n_held/page);
    if (!in_memory.empty() && mincore(base + a.offset, a.n_held, in_memory.data()) == 0) {
        return page*std::count_if(in_memory.begin(), in_memory.end(), [](unsigned char x) { return x & 1; });
    }
    return 0;
#else
    return a.n_held;
#endif
}

size_t headkv_archive::bytes_resident() const {
    return bytes_resident(0, areas.size());
}

size_t headkv_archive::bytes_resident(size_t first, size_t n) const {
    size_t res = 0;
    for (size_t i = 0; i < areas.size(); ++i) {
        res += i >= first && i < first + n ? measure(areas[i]) : areas[i].n_left;
    }
    return res;
}
