// Exercises on a file whose answers are known exactly: code, lists, arithmetic, and passages to copy, which are long.
#pragma once

#include <cstdint>
#include <vector>

#include "eval/facts.h"

namespace vidkv::cli {

// n exercises at growing depths, all ten forms in turn; the same for the same seed and sample.
std::vector<Fact> make_exercises(uint64_t seed, int64_t sample, int n);

} // namespace vidkv::cli
