// rows/archive.h: memory in which rows of all layers lie whole, and which is not fast memory: a mapped file whose pages leave memory
// when a layer is done with, or, where there is no file, host memory that is taken as it is written to.
//
//     file   | area 0 ........ | area 1 ........ | ...     as long as the context may grow: what nobody wrote takes no room
//
// The file has no name: it is gone with the process, however that ends. Room on the disk is asked for before anything is written,
// since a write through a mapping has no way to fail.

#pragma once

#include "ggml-cpp.h"

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

class headkv_archive {
public:
    // areas: bytes of each. dir: folder of the file, or "": host memory. Throws headkv_error NO_MEMORY, INVALID_ARGUMENT (the folder)
    headkv_archive(const std::vector<size_t> & areas, const std::string & dir);
    ~headkv_archive();

    headkv_archive(const headkv_archive &)             = delete;
    headkv_archive & operator=(const headkv_archive &) = delete;

    // a buffer over all of it, which owns no memory and must not outlive the archive
    ggml_backend_buffer_ptr buffer() const;

    // the tensor lies at the beginning of an area from now on; throws headkv_error INVALID_ARGUMENT if it is larger
    void place(size_t area, ggml_tensor * t) const;

    // from now on the first n bytes of an area may be written; throws headkv_error NO_MEMORY, then nothing has changed
    void hold(size_t area, size_t n);

    // the first n bytes of an area are about to be read: the disk begins to bring what is not in memory. Without this, pages come
    // one by one, so that nothing else comes with them
    void prefetch(size_t area, size_t n) const noexcept;

    // the disk begins to take the bytes [begin, end) of an area, beside what is computed
    void write_behind(size_t area, size_t begin, size_t end) const noexcept;

    // the pages of n areas leave memory, when the disk has what was not written yet. What is in them stays
    void give_back(size_t first, size_t n) noexcept;

    size_t size(size_t area) const { return areas[area].size; }

    size_t bytes()          const; // that may be written: of the disk, or of host memory
    size_t bytes_resident() const; // in memory now

    // the same, but for other areas than these n, which nobody has read or written since they were given back, as it was then: to ask
    // for all pages of a large archive takes milliseconds
    size_t bytes_resident(size_t first, size_t n) const;
    size_t bytes_reserved() const { return n_bytes; }

private:
    struct area {
        size_t offset;
        size_t size;
        size_t n_held = 0;
        size_t n_left = 0; // in memory after it was given back
    };

    size_t measure(const area & a) const; // in memory now
    void   drop   (const area & a) const noexcept;

    std::vector<area> areas;

    char * base = nullptr;
    size_t n_bytes = 0;

    ggml_backend_buffer_ptr whole;
    int    fd   = -1; // -1: host memory
};
