// What ends a command early: one line for people, and the exit code.
#pragma once

#include <stdexcept>
#include <string>

namespace vidkv::cli {

enum ExitCode { EXIT_OK = 0, EXIT_FAILED = 1, EXIT_USAGE = 2, EXIT_INTERRUPTED = 130 };

struct Error : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// The command line itself makes no sense (exit code 2).
struct UsageError : Error {
    using Error::Error;
};

// Ctrl-C.
struct Interrupted : std::exception {};

} // namespace vidkv::cli
