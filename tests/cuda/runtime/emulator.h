// emulator.h: what the emulator offers to a host program: memory, kernels, launches.
#pragma once

#include "kernel.h"

#include <string>
#include <vector>

namespace emu {

// ---- memory (memory.cpp)

constexpr int     MAX_DEVICES = 4;
constexpr uint8_t POISON      = 0xff; // a NaN in every float type

uint64_t allocate(size_t bytes, int device, bool is_pinned = false); // device address, 0: none left; full of POISON
bool     release(uint64_t address);     // false: not an allocation
bool     find(uint64_t address, Range & range); // the live allocation that holds the address
bool     is_pinned(const void * p);     // host memory that a device may touch too
int      device_of(uint64_t address);   // of a live allocation
size_t   bytes_live(int device);
void     allow_peer(int device, int peer, bool may); // may kernels of the device touch the peer's memory?

const Range * ranges(int device);       // what its kernels may touch
inline bool      is_device(const void * p) { return (uint64_t) p - ARENA < ARENA_SIZE; }
inline uint8_t * host(uint64_t address) { return (uint8_t *) (address + ALIAS); } // where the emulator touches device memory

// ---- kernels (load.cpp)

struct Kernel {
    const KernelInfo *    info;
    std::vector<uint64_t> vars; // device addresses
};

struct Module {
    std::string text;           // PTX
    std::string path;           // a file that holds it
    std::string digest;
};

Module *       module_of_text(const std::string & ptx);
Module *       module_of_file(const std::string & path);
const Kernel * kernel(Module *, const std::string & name); // translated and compiled when it is first asked for; null: see stderr
uint64_t       variable(Module *, const std::string & name, uint64_t size, const uint8_t * init, uint64_t init_size);
uint64_t       variable_address(Module *, const std::string & name); // of a variable that a loaded kernel uses; 0: none

// ---- launches (launch.cpp)

struct Launch {
    const Kernel * kernel;
    uint32_t       grid[3], block[3];
    uint32_t       dynamic_shared;
    const void *   params;      // packed as KernelInfo says
    bool           is_cooperative = false; // blocks may wait for each other
    int            device = 0;
};

enum class Result { OK, BAD_LAUNCH, FAULT };

Result      run(const Launch &);
bool        checks_shared();    // CUDAEMU_CHECK
uint64_t    n_found();          // races and reads of what nobody wrote, reported so far
std::string demangled(const std::string & name);

} // namespace emu
