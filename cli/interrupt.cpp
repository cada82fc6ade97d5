#include "interrupt.h"

#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <set>
#include <thread>

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include "error.h"

namespace vidkv::cli {

namespace {

constexpr int PATIENCE_MILLISECONDS = 600; // from the signal to the end

std::atomic<int> signals{0};
std::array<int, 2> signal_pipe = {-1, -1};

std::mutex guard;
std::set<std::string> unfinished_files;
std::set<pid_t> children;

void on_interrupt(int) {
    const int error = errno;
    ++signals;
    [[maybe_unused]] const ssize_t written = write(signal_pipe[1], "", 1);
    errno = error;
}

[[noreturn]] void end_at_once() {
    const std::lock_guard lock(guard);
    for (const pid_t child : children) kill(child, SIGKILL);
    for (const std::string & path : unfinished_files) std::remove(path.c_str());
    [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, "\n", 1);
    _exit(EXIT_INTERRUPTED);
}

// Not every phase can be asked to stop (a vision tower at work, a name looked up): this thread sees to it that the command
// ends.
void watch_over() {
    char byte;
    while (read(signal_pipe[0], &byte, 1) < 0 && errno == EINTR) {
    }
    pollfd second = {signal_pipe[0], POLLIN, 0};
    poll(&second, 1, PATIENCE_MILLISECONDS);
    end_at_once();
}

} // namespace

void catch_interrupts() {
    if (pipe2(signal_pipe.data(), O_CLOEXEC) == 0) std::thread(watch_over).detach();
    struct sigaction action = {};
    action.sa_handler = on_interrupt; // without SA_RESTART, so that a blocked read returns
    sigaction(SIGINT, &action, nullptr);
    sigaction(SIGTERM, &action, nullptr);
    std::signal(SIGXFSZ, SIG_IGN); // a file size limit is then an error of write(), as a full disk is
}

bool interrupted() { return signals.load(std::memory_order_relaxed) != 0; }

void check_interrupt() {
    if (interrupted()) throw Interrupted();
}

bool interrupt_callback(void *) { return interrupted(); }
bool go_on_loading(float, void *) { return !interrupted(); }

UnfinishedFile::UnfinishedFile(std::string path) : path_(std::move(path)) {
    const std::lock_guard lock(guard);
    unfinished_files.insert(path_);
}

UnfinishedFile::~UnfinishedFile() {
    const std::lock_guard lock(guard);
    std::remove(path_.c_str()); // nothing is there if it has been renamed
    unfinished_files.erase(path_);
}

Child::Child(pid_t child) : child_(child) {
    const std::lock_guard lock(guard);
    if (child_ > 0) children.insert(child_);
}

Child::~Child() {
    const std::lock_guard lock(guard);
    children.erase(child_);
}

} // namespace vidkv::cli
