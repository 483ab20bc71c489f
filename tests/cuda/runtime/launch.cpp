// launch.cpp: runs the blocks of a launch, one after the other, on several host threads, or together; and printf().
//
// Environment: CUDAEMU_THREADS  host threads that share the blocks of a launch (default 1)

#include "run.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>

#include <cxxabi.h>
#include <immintrin.h>

namespace emu {

int32_t rt_vprintf(Thread *, uint64_t format, uint64_t arguments) {
    const auto text = [&](uint64_t a) { return std::string((const char *) (a - ARENA < ARENA_SIZE ? host(a) : (uint8_t *) a)); };
    const std::string f = text(format);
    std::string out;
    uint64_t a = arguments;
    const auto next = [&](size_t n) { a = (a + n - 1) & ~(uint64_t) (n - 1); uint64_t x = 0; memcpy(&x, (void *) a, n); a += n; return x; };
    int32_t count = 0;
    for (size_t i = 0; i < f.size(); i++) {
        if (f[i] != '%') { out += f[i]; continue; }
        size_t j = i + 1;
        while (j < f.size() && !strchr("diouxXeEfFgGaAcspn%", f[j])) { j++; }
        const std::string spec = f.substr(i, j - i + 1);
        const bool is_long = spec.find('l') != std::string::npos || spec.find('z') != std::string::npos;
        char buffer[200] = "";
        switch (j < f.size() ? f[j] : 0) {
            case '%': buffer[0] = '%'; break;
            case 's': snprintf(buffer, sizeof(buffer), spec.c_str(), text(next(8)).c_str()); count++; break;
            case 'p': snprintf(buffer, sizeof(buffer), spec.c_str(), (void *) next(8)); count++; break;
            case 'e': case 'E': case 'f': case 'F': case 'g': case 'G': case 'a': case 'A':
                snprintf(buffer, sizeof(buffer), spec.c_str(), u2d(next(8))); count++; break;
            default:
                if (is_long) { snprintf(buffer, sizeof(buffer), spec.c_str(), next(8)); } else { snprintf(buffer, sizeof(buffer), spec.c_str(), (uint32_t) next(4)); }
                count++;
        }
        out += buffer;
        i = j;
    }
    fputs(out.c_str(), stdout);
    return count;
}


namespace {

constexpr uint32_t FLUSH_DENORMALS = 0x8040; // of inputs and of results

// the arithmetic of the kernel's instructions, while it lives
class Mode {
public:
    explicit Mode(const KernelInfo & info) : before(_mm_getcsr()) {
        if (info.flush) { _mm_setcsr(before | FLUSH_DENORMALS); }
    }
    ~Mode() { _mm_setcsr(before); }

private:
    uint32_t before;
};

// blocks until none is left
void work(Context & c, uint64_t n_block) {
    static thread_local std::unique_ptr<Run> kept; // its stacks are costly to make
    if (!kept) { kept.reset(new Run); }
    Run & run = *kept;
    run.prepare(c);
    const Mode mode(*run.info);
    for (uint64_t b; !c.failed && (b = c.next_block++) < n_block;) {
        run.start(run.order.block(b, n_block));
        while (run.live && !run.failed) { run.step(); }
    }
}

void work_together(Context & c, uint64_t n_block) {
    std::vector<std::unique_ptr<Run>> runs;
    for (uint64_t b = 0; b < n_block; b++) {
        runs.emplace_back(new Run);
        runs.back()->prepare(c);
        runs.back()->start(b);
    }
    const Mode mode(*runs[0]->info);
    for (bool any = true; any && !c.failed;) {
        any = false;
        for (auto & run : runs) {
            if (run->live && !c.failed) { run->step(); any = true; }
        }
    }
}

void work_on_threads(Context & c, uint64_t n_block) {
    static const int n_host = getenv("CUDAEMU_THREADS") ? std::max(1, atoi(getenv("CUDAEMU_THREADS"))) : 1;
    std::vector<std::thread> others;
    for (int i = 1; i < n_host && (uint64_t) i < n_block; i++) { others.emplace_back([&] { work(c, n_block); }); }
    work(c, n_block);
    for (std::thread & t : others) { t.join(); }
}

} // namespace

std::string demangled(const std::string & name) {
    int status = 0;
    const std::unique_ptr<char, void (*)(void *)> s(abi::__cxa_demangle(name.c_str(), nullptr, nullptr, &status), free);
    return status == 0 && s ? s.get() : name;
}

Result run(const Launch & l) {
    const KernelInfo & info = *l.kernel->info;
    Context c;
    c.launch = &l;
    c.name = demangled(info.name);
    const uint64_t n = (uint64_t) l.block[0]*l.block[1]*l.block[2], n_block = (uint64_t) l.grid[0]*l.grid[1]*l.grid[2];
    if (n == 0 || n > MAX_THREAD || n_block == 0 || (info.max_threads && n > info.max_threads)) {
        fprintf(stderr, "cudaemu: %s: %llu threads in %llu blocks; at most %u threads\n", c.name.c_str(), (unsigned long long) n,
                (unsigned long long) n_block, info.max_threads ? info.max_threads : MAX_THREAD);
        return Result::BAD_LAUNCH;
    }
    if (l.is_cooperative) {
        work_together(c, n_block);
    } else {
        work_on_threads(c, n_block);
    }
    return c.failed ? Result::FAULT : Result::OK;
}

} // namespace emu
