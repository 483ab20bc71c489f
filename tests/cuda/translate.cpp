// translate.cpp: `translate PART PARTS FILE.ptx...`: translates and compiles kernels of these modules before they are asked for:
// every PARTS-th, beginning with PART. For several of this program at once.

#include "emulator.h"

#include <cstdlib>
#include <sstream>

static std::string name_in(const std::string & line) {
    const std::string entry = ".entry ";
    const size_t i = line.find(entry);
    return i == std::string::npos ? "" : line.substr(i + entry.size(), line.find('(') - i - entry.size());
}

int main(int argc, char ** argv) {
    if (argc < 4) { return 2; }
    const int part = atoi(argv[1]), n_parts = atoi(argv[2]);
    int n = 0;
    bool ok = true;
    for (int i = 3; i < argc; i++) {
        emu::Module * m = emu::module_of_file(argv[i]);
        if (!m) { return 2; }
        std::istringstream text(m->text);
        for (std::string line; std::getline(text, line);) {
            const std::string name = name_in(line);
            if (!name.empty() && n++ % n_parts == part) { ok = emu::kernel(m, name) && ok; }
        }
    }
    return ok ? 0 : 1;
}
