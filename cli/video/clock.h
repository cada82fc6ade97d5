// Times of packets or frames made to run forward: files repeat time stamps, lack them, and start anew in the middle.
#pragma once

#include <optional>

namespace vidkv::cli {

class Clock {
  public:
    // frame_seconds: how long a frame lasts where the file does not say. jumps_mean_nothing: of formats that are recordings
    // of broadcasts, where a jump ahead is a break in the recording and no picture that is shown so long.
    Clock(double frame_seconds, bool jumps_mean_nothing);

    // The time of what comes next, in seconds; always later than the one before.
    double next(std::optional<double> stamp);
    // After a seek: time may go back.
    void forget_last() { last_.reset(); }
    // True once a stamp went back or jumped: then the file's own stamps do not tell where to seek.
    bool broken() const { return broken_; }

  private:
    double frame_seconds_;
    bool jumps_mean_nothing_;
    std::optional<double> last_;
    double shift_ = 0; // added to the stamps since the last break
    bool broken_ = false;
};

} // namespace vidkv::cli
