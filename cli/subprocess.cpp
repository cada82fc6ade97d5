#include "subprocess.h"

#include <cerrno>
#include <csignal>
#include <cstring>

#include <fcntl.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "error.h"
#include "interrupt.h"

namespace vidkv::cli {

Subprocess::Subprocess(const std::vector<std::string> & argv) {
    int ends[2];
    errors_ = memfd_create("stderr", MFD_CLOEXEC);
    if (errors_ < 0 || pipe2(ends, O_CLOEXEC) != 0) throw Error(std::string("cannot make a pipe: ") + std::strerror(errno));
    output_ = ends[0];
    posix_spawn_file_actions_t files;
    posix_spawn_file_actions_init(&files);
    posix_spawn_file_actions_addopen(&files, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&files, ends[1], STDOUT_FILENO);
    posix_spawn_file_actions_adddup2(&files, errors_, STDERR_FILENO);
    std::vector<char *> arguments;
    for (const std::string & argument : argv) arguments.push_back(const_cast<char *>(argument.c_str()));
    arguments.push_back(nullptr);
    const int failed = posix_spawnp(&child_, arguments[0], &files, nullptr, arguments.data(), environ);
    posix_spawn_file_actions_destroy(&files);
    close(ends[1]);
    if (!failed) guard_.emplace(child_);
    if (failed) {
        close(output_);
        close(errors_);
        throw Error("cannot run '" + argv[0] + "' (" + std::strerror(failed) + "): install it");
    }
}

Subprocess::~Subprocess() {
    close(output_);
    if (child_ > 0) {
        kill(child_, SIGKILL);
        wait();
    }
    close(errors_);
}

size_t Subprocess::read(void * data, size_t n) const {
    for (;;) {
        check_interrupt();
        const ssize_t got = ::read(output_, data, n);
        if (got >= 0) return static_cast<size_t>(got);
        if (errno != EINTR) throw Error(std::string("cannot read from a pipe: ") + std::strerror(errno));
    }
}

std::string Subprocess::read_all() const {
    std::string all;
    char block[4096];
    while (const size_t got = read(block, sizeof(block))) all.append(block, got);
    return all;
}

int Subprocess::wait() {
    if (child_ <= 0) return 0;
    int status = 0;
    while (waitpid(child_, &status, 0) < 0 && errno == EINTR) {
    }
    child_ = -1;
    guard_.reset();
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

std::string Subprocess::complaints() const {
    std::string text;
    char block[4096];
    off_t at = 0;
    for (ssize_t got; (got = pread(errors_, block, sizeof(block), at)) > 0; at += got)
        text.append(block, static_cast<size_t>(got));
    return text;
}

} // namespace vidkv::cli
