// load.cpp: kernels of PTX modules: translated (ptx/), compiled and loaded when they are first launched; kept on disk.
//
// Environment:
//     CUDAEMU_CACHE    folder of compiled kernels (default: cudaemu in XDG_CACHE_HOME or ~/.cache)
//     CUDAEMU_OPTIMIZE how kernels are compiled (default -O1; -O0: in half of the time, and they run twice as long)
//     CXX              compiler (default: c++)
//     CUDAEMU_VERBOSE  1: says what it compiles

#include "emulator.h"

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <memory>
#include <mutex>
#include <sstream>

#include <dlfcn.h>
#include <spawn.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

extern char ** environ;

namespace emu {

namespace {

// what makes a compiled kernel of its PTX
const char * const TOOLS[] = {
    "/ptx/arithmetic.py", "/ptx/function.py", "/ptx/meeting.py", "/ptx/memory.py", "/ptx/moving.py", "/ptx/names.py", "/ptx/operands.py",
    "/ptx/text.py", "/ptx/unit.py", "/runtime/kernel.h", "/runtime/ptxmath.h",
};
// the same bits of arithmetic as PTX asks for: no contraction, IEEE signs and NaN; vectors do not matter
const char * const FLAGS = "-std=c++20 -march=x86-64-v3 -ffp-contract=off -fno-strict-aliasing -fwrapv -fno-math-errno -w -fPIC -shared";

std::string setting(const char * name, const std::string & other) {
    const char * s = getenv(name);
    return s && *s ? s : other;
}

std::string flags() { return FLAGS + (" " + setting("CUDAEMU_OPTIMIZE", "-O1")); }

std::string read(const std::string & path) {
    std::ifstream f(path, std::ios::binary);
    std::stringstream s;
    s << f.rdbuf();
    return s.str();
}

std::string digest(const std::string & text) {
    uint64_t h[2] = { 0xcbf29ce484222325, 0x9e3779b97f4a7c15 };
    for (unsigned char c : text) {
        h[0] = (h[0] ^ c)*0x100000001b3;
        h[1] = (h[1] + c)*0xff51afd7ed558ccd;
        h[1] ^= h[1] >> 29;
    }
    char s[40];
    snprintf(s, sizeof(s), "%016llx%016llx", (unsigned long long) h[0], (unsigned long long) h[1]);
    return s;
}

struct Variable { uint64_t address, size; };

struct Loaded : Module {
    std::map<std::string, std::unique_ptr<Kernel>> kernels;
    std::map<std::string, Variable> variables;
};

std::recursive_mutex & lock_of_all() { static std::recursive_mutex m; return m; }
std::map<std::string, std::unique_ptr<Loaded>> & modules() { static auto * m = new std::map<std::string, std::unique_ptr<Loaded>>; return *m; }

const std::string HOME = CUDAEMU_HOME; // the folder of ptx/ and runtime/, named by the build

const std::string & cache() {
    static const std::string path = [] {
        const std::string p = setting("CUDAEMU_CACHE", setting("XDG_CACHE_HOME", setting("HOME", "/tmp") + "/.cache") + "/cudaemu");
        for (size_t i = 1; i <= p.size(); i++) {
            if (i == p.size() || p[i] == '/') { mkdir(p.substr(0, i).c_str(), 0777); }
        }
        return p;
    }();
    return path;
}

bool call(const std::vector<std::string> & command) {
    std::vector<char *> a;
    for (const std::string & s : command) { a.push_back((char *) s.c_str()); }
    a.push_back(nullptr);
    // the children are no programs under test
    std::vector<char *> env;
    for (char ** e = environ; *e; e++) {
        if (strncmp(*e, "LD_PRELOAD=", 11) != 0 && strncmp(*e, "LD_LIBRARY_PATH=", 16) != 0) { env.push_back(*e); }
    }
    env.push_back(nullptr);
    pid_t pid;
    int status = -1;
    return posix_spawnp(&pid, a[0], nullptr, nullptr, a.data(), env.data()) == 0 && waitpid(pid, &status, 0) == pid && status == 0;
}

const std::string & tools() { // what a compiled kernel depends on besides its PTX
    static const std::string d = [] {
        std::string text = flags();
        for (const char * file : TOOLS) { text += read(HOME + file); }
        return digest(text);
    }();
    return d;
}

bool exists(const std::string & path) { return access(path.c_str(), R_OK) == 0; }

std::vector<std::string> compiler(const std::string & cpp, const std::string & so) {
    std::vector<std::string> command = { setting("CXX", "c++") };
    std::stringstream all(flags());
    for (std::string f; all >> f;) { command.push_back(f); }
    command.insert(command.end(), { "-I" + HOME + "/runtime", "-o", so, cpp });
    return command;
}

// compiles to `so`, unless that was done for the same text
bool compile(const std::string & cpp, const std::string & so, const std::string & name) {
    const std::string same = cache() + "/" + digest(read(cpp) + tools()) + ".so";
    if (exists(same)) { return link(same.c_str(), so.c_str()) == 0; }
    const auto start = std::chrono::steady_clock::now();
    if (!call(compiler(cpp, so)) || (link(so.c_str(), same.c_str()) != 0 && !exists(same))) { return false; }
    if (setting("CUDAEMU_VERBOSE", "0") != "0") {
        fprintf(stderr, "cudaemu: compiled %s in %.1f s\n", name.c_str(), std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
    return true;
}

// path of the compiled kernel; empty: see stderr. Found by its module, or, where that changed elsewhere, by its C++
std::string build(const Loaded & m, const std::string & name) {
    const std::string base = cache() + "/" + digest(m.digest + name + tools()), so = base + ".so";
    if (exists(so)) { return so; }
    const std::string work = base + "." + std::to_string(getpid()), cpp = work + ".cpp", made = work + ".so";
    const bool ok = call({ "env", "PYTHONPATH=" + HOME, "python3", "-B", "-m", "ptx", m.path, name, cpp }) &&
        compile(cpp, made, name) && rename(made.c_str(), so.c_str()) == 0;
    if (!getenv("CUDAEMU_KEEP")) { unlink(cpp.c_str()); }
    return ok ? so : "";
}

} // namespace

Module * module_of_text(const std::string & ptx) {
    const std::lock_guard<std::recursive_mutex> lock(lock_of_all());
    const std::string d = digest(ptx);
    auto & m = modules()[d];
    if (!m) {
        m.reset(new Loaded);
        m->digest = d;
        m->text = ptx;
        m->path = cache() + "/" + d + ".ptx";
        if (access(m->path.c_str(), R_OK) != 0) {
            const std::string tmp = m->path + "." + std::to_string(getpid());
            std::ofstream(tmp, std::ios::binary) << ptx;
            rename(tmp.c_str(), m->path.c_str());
        }
    }
    return m.get();
}

Module * module_of_file(const std::string & path) {
    const std::string text = read(path);
    if (text.empty()) {
        fprintf(stderr, "cudaemu: cannot read %s\n", path.c_str());
        return nullptr;
    }
    return module_of_text(text);
}

uint64_t variable(Module * module, const std::string & name, uint64_t size, const uint8_t * init, uint64_t init_size) {
    const std::lock_guard<std::recursive_mutex> lock(lock_of_all());
    auto & all = static_cast<Loaded *>(module)->variables;
    const auto it = all.find(name);
    if (it != all.end()) { return it->second.address; }
    const uint64_t a = allocate(size, 0);
    if (!a) { return 0; }
    memset(host(a), 0, size);
    memcpy(host(a), init, init_size);
    all[name] = { a, size };
    return a;
}

uint64_t variable_address(Module * module, const std::string & name) {
    const std::lock_guard<std::recursive_mutex> lock(lock_of_all());
    const auto & all = static_cast<Loaded *>(module)->variables;
    const auto it = all.find(name);
    return it == all.end() ? 0 : it->second.address;
}

const Kernel * kernel(Module * module, const std::string & name) {
    const std::lock_guard<std::recursive_mutex> lock(lock_of_all());
    Loaded & m = *static_cast<Loaded *>(module);
    auto & k = m.kernels[name];
    if (k) { return k->info ? k.get() : nullptr; }
    k.reset(new Kernel{});
    const std::string so = build(m, name);
    void * library = so.empty() ? nullptr : dlopen(so.c_str(), RTLD_NOW | RTLD_LOCAL);
    const auto * info = library ? (const KernelInfo *) dlsym(library, "emu_kernel") : nullptr;
    if (!info) {
        fprintf(stderr, "cudaemu: no kernel %s%s%s\n", name.c_str(), so.empty() ? "" : ": ", so.empty() ? "" : dlerror());
        return nullptr;
    }
    for (uint32_t i = 0; i < info->n_vars; i++) {
        const Var & v = info->vars[i];
        k->vars.push_back(variable(module, v.name, v.size, v.init, v.init_size));
    }
    k->info = info;
    return k.get();
}

} // namespace emu
