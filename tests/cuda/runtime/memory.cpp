// memory.cpp: device memory. One file, mapped twice (kernel.h); every allocation has whole slots to itself, and at least one empty
// slot behind it, so that whoever leaves it meets nobody else's.
//
// Host code that takes a device pointer for its own is told so, and dies.
//
// Environment: CUDAEMU_FILL  the byte that new memory is full of (default POISON)
//              CUDAEMU_USED  a file that holds how much of each device's memory is taken (nvml.cpp reads it)

#include "emulator.h"

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

namespace emu {

namespace {

constexpr size_t POISON_MAX = 512u << 20; // more is left as it is, zero: the pages would all be taken

struct Allocation {
    uint64_t n_slots;
    size_t   bytes;
    int      device;
    bool     is_pinned;
};

struct Arena {
    std::mutex                     mutex;
    Range *                        all;                  // of every slot
    Range *                        seen[MAX_DEVICES];    // by kernels of a device
    bool                           peers[MAX_DEVICES][MAX_DEVICES] = {};
    std::map<uint64_t, Allocation> live;                 // by first slot
    std::map<uint64_t, uint64_t>   unused;               // first slot -> slots
    size_t                         own[MAX_DEVICES] = {};
    size_t *                       bytes = own;          // taken of each device's memory
    uint64_t                       next = 1;             // slot where the search for a place begins
    int                            file;

    Arena() {
        file = memfd_create("cudaemu", MFD_CLOEXEC);
        if (file < 0 || ftruncate(file, ARENA_SIZE) != 0) { die("memfd_create"); }
        map(ARENA, PROT_NONE);
        map(ARENA + ALIAS, PROT_READ | PROT_WRITE);
        all = table();
        for (Range *& t : seen) { t = table(); }
        unused[1] = N_SLOT - 1; // the first slot stays empty: an address just below an allocation is nobody's
        watch_host();
        if (const char * path = getenv("CUDAEMU_USED")) { publish(path); }
    }

    void publish(const char * path) {
        const int shown = open(path, O_RDWR | O_CREAT | O_TRUNC, 0644);
        if (shown < 0 || ftruncate(shown, sizeof(own)) != 0) { die(path); }
        void * t = mmap(nullptr, sizeof(own), PROT_READ | PROT_WRITE, MAP_SHARED, shown, 0);
        close(shown);
        if (t == MAP_FAILED) { die("mmap"); }
        bytes = (size_t *) t;
    }

    static Range * table() {
        void * t = mmap(nullptr, N_SLOT*sizeof(Range), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (t == MAP_FAILED) { die("mmap"); }
        return (Range *) t;
    }

    void map(uint64_t where, int protection) {
        if (mmap((void *) where, ARENA_SIZE, protection, MAP_SHARED | MAP_NORESERVE | MAP_FIXED_NOREPLACE, file, 0) != (void *) where) { die("mmap"); }
    }

    [[noreturn]] static void die(const char * what) { perror(what); abort(); }

    bool may_see(int device, const Allocation & a) const {
        return a.device == device || a.is_pinned || peers[device][a.device];
    }

    // n unused slots, at or behind a slot; 0: there are none
    uint64_t take(uint64_t from, uint64_t n) {
        for (const auto & [begin, length] : unused) {
            const uint64_t first = std::max(begin, from), end = begin + length;
            if (first + n > end) { continue; }
            const uint64_t before = first - begin, behind = end - first - n;
            unused.erase(begin);
            if (before) { unused[first - before] = before; }
            if (behind) { unused[first + n] = behind; }
            return first;
        }
        return 0;
    }

    void show(uint64_t first, const Allocation & a, bool is_live) {
        const uint64_t address = ARENA + (first << SLOT_BITS);
        const Range    range   = is_live && a.bytes ? Range{ address, address + a.bytes } : Range{ 0, 0 };
        for (uint64_t i = first; i < first + a.n_slots; i++) {
            all[i] = range;
            for (int d = 0; d < MAX_DEVICES; d++) { seen[d][i] = may_see(d, a) ? range : Range{ 0, 0 }; }
        }
    }

    static void watch_host();
};

Arena & arena() {
    static Arena * a = new Arena; // never destroyed: programs free memory in destructors of their own
    return *a;
}

struct sigaction before;

void on_fault(int, siginfo_t * info, void *) {
    if (is_device(info->si_addr)) {
        char text[120];
        const int n = snprintf(text, sizeof(text), "cudaemu: host code touches device memory at %p\n", info->si_addr);
        if (write(STDERR_FILENO, text, n) < 0) { _exit(1); }
    }
    sigaction(SIGSEGV, &before, nullptr); // the access is tried again, and ends as it would have
}

void Arena::watch_host() {
    struct sigaction ours = {};
    ours.sa_sigaction = on_fault;
    ours.sa_flags = SA_SIGINFO;
    sigaction(SIGSEGV, &ours, &before);
}

const Allocation * allocation(Arena & a, uint64_t address) {
    const auto it = a.live.upper_bound((address - ARENA) >> SLOT_BITS);
    return it == a.live.begin() ? nullptr : &std::prev(it)->second;
}

} // namespace

const Range * ranges(int device) { return arena().seen[device]; }
size_t bytes_live(int device) { return arena().bytes[device]; }

uint64_t allocate(size_t bytes, int device, bool is_pinned) {
    Arena & a = arena();
    const std::lock_guard<std::mutex> lock(a.mutex);
    const uint64_t n = (std::max<size_t>(bytes, 1) >> SLOT_BITS) + 2;
    uint64_t first = a.take(a.next, n); // not what was freed just now
    if (!first) { first = a.take(0, n); }
    if (!first) { return 0; }
    a.next = first + n;
    const Allocation made = { n, bytes, device, is_pinned };
    a.live[first] = made;
    a.bytes[device] += is_pinned ? 0 : bytes;
    a.show(first, made, true);
    const uint64_t address = ARENA + (first << SLOT_BITS);
    static const int fill = getenv("CUDAEMU_FILL") ? atoi(getenv("CUDAEMU_FILL")) : POISON;
    if (bytes <= POISON_MAX) { memset(host(address), fill, bytes); }
    return address;
}

bool release(uint64_t address) {
    Arena & a = arena();
    const std::lock_guard<std::mutex> lock(a.mutex);
    const uint64_t first = (address - ARENA) >> SLOT_BITS;
    const auto it = a.live.find(first);
    if (address - ARENA >= ARENA_SIZE || it == a.live.end() || address != ARENA + (first << SLOT_BITS)) { return false; }
    const Allocation gone = it->second;
    uint64_t n = gone.n_slots;
    a.bytes[gone.device] -= gone.is_pinned ? 0 : gone.bytes;
    a.show(first, gone, false);
    fallocate(a.file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, first << SLOT_BITS, n << SLOT_BITS);
    a.live.erase(it);
    auto next = a.unused.lower_bound(first);
    if (next != a.unused.end() && next->first == first + n) { n += next->second; next = a.unused.erase(next); }
    if (next != a.unused.begin()) {
        const auto last = std::prev(next);
        if (last->first + last->second == first) { last->second += n; return true; }
    }
    a.unused[first] = n;
    return true;
}

bool find(uint64_t address, Range & range) {
    if (address - ARENA >= ARENA_SIZE) { return false; }
    range = arena().all[(address - ARENA) >> SLOT_BITS];
    return range.lo <= address && address < range.hi;
}

bool is_pinned(const void * p) {
    const uint64_t address = (uint64_t) p - ALIAS;
    Range r;
    if (!find(address, r)) { return false; }
    const std::lock_guard<std::mutex> lock(arena().mutex);
    const Allocation * a = allocation(arena(), address);
    return a && a->is_pinned;
}

int device_of(uint64_t address) {
    const std::lock_guard<std::mutex> lock(arena().mutex);
    const Allocation * a = allocation(arena(), address);
    return a ? a->device : 0;
}

void allow_peer(int device, int peer, bool may) {
    Arena & a = arena();
    const std::lock_guard<std::mutex> lock(a.mutex);
    a.peers[device][peer] = may;
    for (const auto & [first, made] : a.live) { a.show(first, made, true); }
}

} // namespace emu
