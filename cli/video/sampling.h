// Which pictures of a video are taken.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>

namespace vidkv::cli {

struct Sampling {
    double fps = 4;         // frames taken per second, at most those there are
    int64_t max_frames = 0; // 0: all; else at most this many, evenly over the video
    bool both_ends = false; // with max_frames: the first, the last, and evenly between, each the one on show at its time
    double start = 0;       // seconds
    double end = std::numeric_limits<double>::infinity();
    bool accept_damaged = false; // take what can be decoded of a broken file
    bool blank = false;          // frames of the same number and size with nothing on them
    int threads = 0;             // of the decoder; 0: a few
};

// The times for which a picture is wanted: begin, begin + interval, ... before end, `count` of them at most.
class WantedTimes {
  public:
    WantedTimes() = default;
    WantedTimes(double begin, double end, double interval, int64_t count);

    std::optional<double> current() const;
    void advance() { ++index_; }
    // Passes over times before which nothing new is shown.
    void advance_to(double seconds);
    double interval() const { return interval_; }

  private:
    double begin_ = 0, end_ = 0, interval_ = 1;
    int64_t count_ = 0, index_ = 0;
};

// Of the picture on show at a time and the one after it: true if the later one is meant. It is if it is nearer, and comes
// within half an interval.
bool later_is_nearer(double wanted, double interval, double shown, double later);

} // namespace vidkv::cli
