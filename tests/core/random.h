// Reproducible test data: the seed is printed with every failure by SCOPED_TRACE(rng.trace()).
#pragma once

#include <cstdint>
#include <random>
#include <string>
#include <vector>

namespace vidkv::test {

class Random {
  public:
    explicit Random(uint64_t seed) : seed_(seed), engine_(seed) {}
    std::string trace() const { return "seed " + std::to_string(seed_); }
    float normal(float deviation = 1.0f) { return deviation * std::normal_distribution<float>()(engine_); }
    int integer(int low, int high) { return std::uniform_int_distribution<int>(low, high)(engine_); }
    std::vector<float> normals(size_t n, float deviation = 1.0f) {
        std::vector<float> out(n);
        for (float & x : out) x = normal(deviation);
        return out;
    }

  private:
    uint64_t seed_;
    std::mt19937_64 engine_;
};

} // namespace vidkv::test
