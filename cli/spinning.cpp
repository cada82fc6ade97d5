#include "spinning.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <fstream>
#include <string>

#include <unistd.h>

namespace vidkv::cli {

namespace {

// Turns of the loop (plugins/ggml/README.md has the figures). A thousand, some ten microseconds, cost an idle machine nothing; where others
// want the cores they cost half of the time, and threads that sleep at once do best.
constexpr const char *IDLE_SPIN_COUNT = "1000", *BUSY_SPIN_COUNT = "0";
constexpr int LOOKS = 3;

// Tasks of the machine that run or could run now, this one among them; 1 where the system does not say.
int runnable_tasks() {
    std::ifstream stat("/proc/stat");
    std::string word;
    int count = 1;
    while (stat >> word) {
        if (word == "procs_running" && stat >> count) break;
    }
    return count;
}

// Whether other tasks want a quarter of the cores: at every one of a few looks, a millisecond apart, so that no passing one counts.
bool is_busy() {
    const auto many = std::max(1L, sysconf(_SC_NPROCESSORS_ONLN) / 4);
    for (int i = 0; i < LOOKS; ++i) {
        if (i > 0) usleep(1000);
        if (runnable_tasks() - 1 < many) return false;
    }
    return true;
}

bool is_set(const char * name) {
    const char * value = std::getenv(name);
    return value && *value;
}

} // namespace

void bound_spinning(char ** argv) {
    if (is_set("GOMP_SPINCOUNT") || is_set("OMP_WAIT_POLICY")) return;
    std::array<char, 4096> program = {};
    if (readlink("/proc/self/exe", program.data(), program.size() - 1) <= 0) return;
    if (setenv("GOMP_SPINCOUNT", is_busy() ? BUSY_SPIN_COUNT : IDLE_SPIN_COUNT, 1) == 0) execv(program.data(), argv);
}

} // namespace vidkv::cli
