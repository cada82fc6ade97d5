// A progress bar on standard error; silent where that is not a terminal.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace vidkv::cli {

// "8 s", "1:05 min", "2:10 h".
std::string duration_text(double seconds);
// One line of less than `width` columns; after some seconds with the time that is left.
std::string progress_line(const std::string & stage, int64_t done, int64_t total, const char * unit, double elapsed,
                          int width);

class Progress {
  public:
    // quiet: never draw (as with --json).
    explicit Progress(bool quiet);
    ~Progress();
    Progress(const Progress &) = delete;
    Progress & operator=(const Progress &) = delete;

    // The named stage has done `done` of `total` units (total 0: not known).
    void show(const std::string & stage, int64_t done, int64_t total, const char * unit);
    // Wipes the bar, so that other text can follow.
    void clear();

  private:
    bool enabled_;
    bool drawn_ = false;
    std::string stage_;
    std::chrono::steady_clock::time_point began_, last_; // of the stage; drawn
};

} // namespace vidkv::cli
