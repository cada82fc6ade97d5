// A child program whose output is read through a pipe and whose complaints are kept.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include <sys/types.h>

#include "interrupt.h"

namespace vidkv::cli {

class Subprocess {
  public:
    // Starts argv[0], found in PATH. Throws Error if it cannot be started.
    explicit Subprocess(const std::vector<std::string> & argv);
    // Ends the child if it still runs.
    ~Subprocess();
    Subprocess(const Subprocess &) = delete;
    Subprocess & operator=(const Subprocess &) = delete;

    // Reads up to n bytes of its output; 0 at the end. Throws Interrupted on Ctrl-C.
    size_t read(void * data, size_t n) const;
    std::string read_all() const;
    // Waits for the child; its exit status, or 128 + the signal that ended it.
    int wait();
    // What it wrote to standard error (after wait()).
    std::string complaints() const;

  private:
    pid_t child_ = -1;
    std::optional<Child> guard_;
    int output_ = -1;
    int errors_ = -1; // an unnamed file
};

} // namespace vidkv::cli
