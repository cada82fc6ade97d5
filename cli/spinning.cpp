#include "spinning.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>

#include <fcntl.h>
#include <unistd.h>

namespace vidkv::cli {

namespace {

// Turns of the loop (plugins/ggml/README.md has the figures). A thousand, some ten microseconds, cost an idle machine nothing; where others
// want the cores they cost half of the time, and threads that sleep at once do best.
constexpr const char *IDLE_SPIN_COUNT = "1000", *BUSY_SPIN_COUNT = "0";
constexpr int LOOKS = 3;

// Tasks of the machine that run or could run now, this one among them; 1 where the system does not say.
int runnable_tasks() {
    static std::array<char, 1 << 16> text;
    constexpr const char * NAME = "procs_running ";
    const int file = open("/proc/stat", O_RDONLY | O_CLOEXEC);
    if (file < 0) return 1;
    const ssize_t size = read(file, text.data(), text.size() - 1);
    close(file);
    text[static_cast<size_t>(std::max<ssize_t>(size, 0))] = '\0';
    const char * found = std::strstr(text.data(), NAME);
    return found ? std::atoi(found + std::strlen(NAME)) : 1;
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

// An entry of the environment that no library looks at while it is set up, and whose place the bound has until main.
constexpr std::array SPARE = {"_=", "OLDPWD=", "SHLVL=", "PWD="};
char * lent = nullptr;

char ** find_entry(char ** environment, const char * beginning) {
    char ** entry = environment;
    while (*entry && std::strncmp(*entry, beginning, std::strlen(beginning)) != 0) ++entry;
    return *entry ? entry : nullptr;
}

// Runs before any library is set up, libgomp and libc among them: there is no std::getenv and no stream yet.
void bound_before_libraries(int, char **, char ** environment) {
    static std::array<char, 20> idle = {"GOMP_SPINCOUNT=1000"}, busy = {"GOMP_SPINCOUNT=0"};
    if (find_entry(environment, "GOMP_SPINCOUNT=") || find_entry(environment, "OMP_WAIT_POLICY=")) return;
    for (const char * each : SPARE) {
        char ** entry = find_entry(environment, each);
        if (!entry) continue;
        lent = *entry;
        *entry = is_busy() ? busy.data() : idle.data();
        return;
    }
}

__attribute__((section(".preinit_array"), used)) void (*const first)(int, char **, char **) = bound_before_libraries;

} // namespace

void bound_spinning(char ** argv) {
    if (lent) putenv(lent);
    if (is_set("GOMP_SPINCOUNT") || is_set("OMP_WAIT_POLICY")) return;
    std::array<char, 4096> program = {};
    if (readlink("/proc/self/exe", program.data(), program.size() - 1) <= 0) return;
    if (setenv("GOMP_SPINCOUNT", is_busy() ? BUSY_SPIN_COUNT : IDLE_SPIN_COUNT, 1) == 0) execv(program.data(), argv);
}

} // namespace vidkv::cli
