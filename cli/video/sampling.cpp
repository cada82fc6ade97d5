#include "video/sampling.h"

#include <algorithm>
#include <cmath>

namespace vidkv::cli {

namespace {

constexpr double SLACK = 1e-9; // of an interval, for sums of fractions

} // namespace

WantedTimes::WantedTimes(double begin, double end, double interval, int64_t count)
    : begin_(begin), end_(end), interval_(interval), count_(count > 0 ? count : std::numeric_limits<int64_t>::max()) {}

std::optional<double> WantedTimes::current() const {
    const double time = begin_ + static_cast<double>(index_) * interval_;
    if (index_ >= count_ || !(time < end_ - SLACK * interval_)) return std::nullopt;
    return time;
}

void WantedTimes::advance_to(double seconds) {
    const double steps = std::ceil((seconds - begin_) / interval_ - SLACK);
    if (!(steps < static_cast<double>(count_)))
        index_ = count_;
    else if (steps > static_cast<double>(index_))
        index_ = static_cast<int64_t>(steps);
}

bool later_is_nearer(double wanted, double interval, double shown, double later) {
    return later - wanted < wanted - shown && later - wanted <= interval / 2;
}

} // namespace vidkv::cli
