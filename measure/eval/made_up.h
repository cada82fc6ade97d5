// Made-up names and numbers: the same for the same seed and sample.
#pragma once

#include <cstdint>
#include <random>
#include <string>

namespace vidkv::cli {

// The standard's distributions differ between libraries; this does not.
class Dice {
  public:
    Dice(uint64_t seed, int64_t sample) : engine_(seed * 1'000'003 + static_cast<uint64_t>(sample)) {}
    size_t below(size_t n) { return static_cast<size_t>(engine_() % n); }
    int from_to(int least, int most) { return least + static_cast<int>(below(static_cast<size_t>(most - least + 1))); }

  private:
    std::mt19937_64 engine_;
};

// "amber", "falcon"
struct Name {
    std::string first, second;
};

// Names in an order that the dice choose; none comes twice among the first 576.
class Names {
  public:
    explicit Names(Dice & dice);
    Name next();
    std::string next(char between); // amber-falcon

  private:
    size_t at_;
};

} // namespace vidkv::cli
