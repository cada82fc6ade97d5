#include "spinning.h"

#include <array>
#include <cstdlib>

#include <unistd.h>

namespace vidkv::cli {

namespace {

// Turns of the loop, some ten microseconds: an idle machine loses at most 3 %, a busy one no longer stalls
// (plugins/ggml/README.md).
constexpr const char * SPIN_COUNT = "1000";

bool is_set(const char * name) {
    const char * value = std::getenv(name);
    return value && *value;
}

} // namespace

void bound_spinning(char ** argv) {
    if (is_set("GOMP_SPINCOUNT") || is_set("OMP_WAIT_POLICY")) return;
    std::array<char, 4096> program = {};
    if (readlink("/proc/self/exe", program.data(), program.size() - 1) <= 0) return;
    if (setenv("GOMP_SPINCOUNT", SPIN_COUNT, 1) == 0) execv(program.data(), argv);
}

} // namespace vidkv::cli
