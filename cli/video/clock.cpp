#include "video/clock.h"

namespace vidkv::cli {

namespace {

constexpr double BREAK_BACK = 1, BREAK_AHEAD = 10; // seconds that are more than disorder
constexpr double LEAST_STEP = 1e-3;

} // namespace

Clock::Clock(double frame_seconds, bool jumps_mean_nothing)
    : frame_seconds_(frame_seconds), jumps_mean_nothing_(jumps_mean_nothing) {}

double Clock::next(std::optional<double> stamp) {
    if (!last_) return *(last_ = stamp.value_or(0) + shift_);
    if (!stamp) return *(last_ = *last_ + frame_seconds_);
    const double time = *stamp + shift_;
    const bool is_break = time < *last_ - BREAK_BACK || (jumps_mean_nothing_ && time > *last_ + BREAK_AHEAD);
    if (is_break) {
        broken_ = true;
        shift_ += *last_ + frame_seconds_ - time;
        return *(last_ = *last_ + frame_seconds_);
    }
    return *(last_ = time > *last_ ? time : *last_ + LEAST_STEP);
}

} // namespace vidkv::cli
