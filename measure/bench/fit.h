// A straight line through time over tokens.
#pragma once

#include "bench/bench.h"

namespace vidkv::cli {

struct Line {
    double intercept = 0, slope = 0, r2 = 0;
};

// Least squares; r2: the share of the variation that the line explains.
Line fit_line(const std::vector<double> & x, const std::vector<double> & y);

// A line for every series of rows that differ in "tokens" alone and has at least three.
Json linear_fits(const Json & rows);

} // namespace vidkv::cli
