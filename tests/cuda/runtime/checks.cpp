// checks.cpp: what a kernel does wrong: accesses that are not allowed, races in shared memory, reads of what nobody wrote.
//
// Environment:
//     CUDAEMU_CHECK    1: accesses to shared memory are checked for races and for reads of what nobody wrote
//     CUDAEMU_REPORTS  such reports that are printed in full (default 10)
//
// Races: only barriers and __syncwarp() order accesses of different threads, by clocks of the warps. Shuffles do not.

#include "run.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace emu {

namespace {

std::atomic<uint64_t> found{0};

} // namespace

uint64_t n_found() { return found; }

bool checks_shared() {
    static const bool does = getenv("CUDAEMU_CHECK") && strcmp(getenv("CUDAEMU_CHECK"), "0") != 0;
    return does;
}

// ------------------------------------------------------------------------------------------------ reports

std::string Run::place(const Lane & lane, uint32_t site) const {
    const Site & s = info->sites[site];
    char text[400];
    snprintf(text, sizeof(text), "block (%u,%u,%u) thread (%u,%u,%u), line %u of its PTX, %s:%u", block.ctaid[0], block.ctaid[1], block.ctaid[2],
            lane.tid[0], lane.tid[1], lane.tid[2], s.ptx_line, info->files[s.file], s.line);
    return text;
}

void Run::say(const std::string & text) const {
    static std::mutex mutex;
    const std::lock_guard<std::mutex> lock(mutex);
    fprintf(stderr, "cudaemu: %s: %s\n", context->name.c_str(), text.c_str());
}

void Run::fail(const std::string & text) {
    say(text);
    failed = context->failed = true;
}

// ------------------------------------------------------------------------------------------------ faults

namespace {

std::string distance(const Range & r, uint64_t address) {
    const bool     is_before = address < r.lo;
    const uint64_t n = is_before ? r.lo - address : address - r.hi;
    return std::to_string((int64_t) n) + (is_before ? " bytes before" : " bytes behind") + " an allocation of " + std::to_string(r.hi - r.lo);
}

std::string more_about(const Run & run, uint32_t fault, uint64_t address) {
    if (fault == FAULT_SHARED) { return " (" + std::to_string(run.block.shared_size) + " bytes)"; }
    if (fault != FAULT_GLOBAL) { return ""; }
    if (address - ARENA >= ARENA_SIZE) { return " (no device memory)"; }
    Range r;
    if (find(address, r) && run.block.ranges[(address - ARENA) >> SLOT_BITS].hi == 0) {
        return " (of device " + std::to_string(device_of(address)) + ", without peer access)";
    }
    return r.hi ? " (" + distance(r, address) + ")" : " (freed, or never allocated)";
}

} // namespace

void rt_fault(Thread * t, uint32_t fault, uint64_t address, uint32_t bytes, uint32_t site) {
    static const char * const NAMES[] = { "outside global memory", "outside shared memory", "outside local memory", "at a bad address", "not aligned",
        "trap or failed assertion", "write to parameters" };
    Lane & lane = *static_cast<Lane *>(t);
    Run & run = *lane.run;
    char text[300];
    if (fault == FAULT_TRAP) {
        snprintf(text, sizeof(text), "%s: ", NAMES[fault]);
    } else {
        snprintf(text, sizeof(text), "access of %u bytes at 0x%llx %s%s: ", bytes, (unsigned long long) address, NAMES[fault],
                more_about(run, fault, address).c_str());
    }
    run.fail(text + run.place(lane, site));
    run.abandon();
}

uint8_t * rt_global(Thread * t, uint64_t address, uint32_t bytes, uint32_t site) {
    const Run & run = *static_cast<Lane *>(t)->run;
    if (is_pinned((const void *) address)) { address -= ALIAS; } // pinned memory has the same address for all
    const bool is_power = (bytes & (bytes - 1)) == 0;
    if (is_power && (address & (bytes - 1))) { rt_fault(t, FAULT_ALIGN, address, bytes, site); }
    if (address - ARENA >= ARENA_SIZE || !in_global(run.block.ranges, address, bytes)) { rt_fault(t, FAULT_GLOBAL, address, bytes, site); }
    return host(address);
}

// ------------------------------------------------------------------------------------------------ shared memory

namespace {

bool is_ordered(const Run & run, const Access & a, const Lane & lane) {
    const uint32_t other = a.thread - 1u, w = other/WARP;
    if (other == lane.index) { return true; }
    const Warp & mine = run.warps[lane.warp];
    return w == lane.warp ? a.syncs < mine.syncs : a.clock <= mine.clock[w];
}

// other: null where nobody was there before
void report(Run & run, const Lane & lane, uint32_t site, const Access * other, uint32_t offset, const char * what) {
    static const uint64_t full = getenv("CUDAEMU_REPORTS") ? strtoull(getenv("CUDAEMU_REPORTS"), nullptr, 10) : 10;
    const std::lock_guard<std::mutex> lock(run.context->mutex);
    if (!run.context->races.insert({ site, other ? other->site : 0 }).second || found++ >= full) { return; }
    run.say(what + std::string(" at shared address ") + std::to_string(offset) + ": " + run.place(lane, site) +
            (other ? "; before: " + run.place(run.lanes[other->thread - 1], other->site) : ""));
}

void note_read(Run & run, const Lane & lane, Shadow & s, const Access & me, uint32_t offset) {
    if (!s.write.thread) { report(run, lane, me.site, nullptr, offset, "uninitialised read"); }
    Access & r0 = s.read[0];
    Access & r1 = s.read[1];
    if (!r0.thread || (r0.thread - 1)/WARP == lane.warp || is_ordered(run, r0, lane)) { r0 = me; } else { r1 = me; }
}

} // namespace

void rt_race(Thread * t, uint32_t offset, uint32_t bytes, uint32_t access, uint32_t site) {
    Lane & lane = *static_cast<Lane *>(t);
    Run & run = *lane.run;
    if (run.shadow.size() < run.block.shared_size) { run.shadow.resize(run.block.shared_size); }
    const Warp & warp = run.warps[lane.warp];
    const Access me = { (uint16_t) (lane.index + 1), access == ATOMIC, warp.clock[lane.warp], warp.syncs, site };
    for (uint32_t i = offset; i < offset + bytes; i++) {
        Shadow & s = run.shadow[i];
        if (s.write.thread && !(s.write.atomic && me.atomic) && !is_ordered(run, s.write, lane)) {
            report(run, lane, site, &s.write, i, access == READ ? "race: read after write" : "race: write after write");
        }
        if (access == READ) {
            note_read(run, lane, s, me, i);
            continue;
        }
        for (const Access & r : s.read) {
            if (r.thread && !is_ordered(run, r, lane)) { report(run, lane, site, &r, i, "race: write after read"); }
        }
        s.write = me;
        s.read[0] = s.read[1] = {};
    }
}

// ------------------------------------------------------------------------------------------------ cp.async

void rt_copy_async(Thread * t, uint64_t dst, uint64_t src, uint32_t bytes, uint32_t from_src, uint32_t site) {
    static_cast<Lane *>(t)->copies.push_back({ dst, src, bytes, from_src, site });
}

void rt_copy_commit(Thread * t) {
    Lane & lane = *static_cast<Lane *>(t);
    size_t n = lane.copies.size();
    for (const size_t g : lane.groups) { n -= g; }
    lane.groups.push_back(n);
}

namespace {

void copy_now(Thread * t, const Copy & c) {
    uint8_t * dst = c.bytes == 16 ? at_shared<16>(t, c.dst, c.site, WRITE) : c.bytes == 8 ? at_shared<8>(t, c.dst, c.site, WRITE) :
        at_shared<4>(t, c.dst, c.site, WRITE);
    memset(dst, 0, c.bytes);
    if (c.from_src) { memcpy(dst, rt_global(t, c.src, c.from_src, c.site), c.from_src); }
}

} // namespace

void rt_copy_wait(Thread * t, uint32_t n_left) {
    Lane & lane = *static_cast<Lane *>(t);
    if (n_left == 0) { // also those that nobody committed
        for (const Copy & c : lane.copies) { copy_now(t, c); }
        lane.copies.clear();
        lane.groups.clear();
        return;
    }
    while (lane.groups.size() > n_left) {
        const size_t n = lane.groups.front();
        for (size_t i = 0; i < n; i++) { copy_now(t, lane.copies[i]); }
        lane.copies.erase(lane.copies.begin(), lane.copies.begin() + n);
        lane.groups.erase(lane.groups.begin());
    }
}

} // namespace emu
