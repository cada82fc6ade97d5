// What tests of single kernels share: every table that runs here, memory as kernels want it, random numbers and equality of bits.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "base/half.h"
#include "core/random.h"
#include "kernels/dispatch.h"

namespace vidkv::test {

inline constexpr double unit = 0x1p-24;
inline constexpr float infinity = std::numeric_limits<float>::infinity();
inline constexpr int head_dims[] = {8, 24, 64, 72, 80, 96, 112, 128, 136, 256, 512};

// Runs body for each vector instruction set and many seeds, or skips visibly.
template <typename Body> void for_each_fast(int seeds, Body body) {
    int tables = 0;
    for (const KernelChoice & choice : kernel_choices()) {
        if (choice.kernels == &scalar_kernels || !choice.supported()) continue;
        ++tables;
        for (int seed = 0; seed < seeds; ++seed) {
            Random rng(static_cast<uint64_t>(seed));
            SCOPED_TRACE(std::string(choice.kernels->name) + " " + rng.trace());
            body(*choice.kernels, rng);
        }
    }
    if (tables == 0) GTEST_SKIP() << "this machine has none of the vector instruction sets in this build";
}

// Memory aligned as kernels ask for, with room behind.
template <typename T> class Aligned {
  public:
    explicit Aligned(size_t n, T fill = T{}) : storage_(n * sizeof(T) + 128), n_(n) {
        T * at = data();
        for (size_t i = 0; i < n; ++i) at[i] = fill;
    }
    T * data() {
        void * start = storage_.data();
        size_t room = storage_.size();
        return static_cast<T *>(std::align(64, n_ * sizeof(T), start, room));
    }
    T & operator[](size_t i) { return data()[i]; }
    std::vector<T> copy() { return {data(), data() + n_}; }

  private:
    std::vector<uint8_t> storage_;
    size_t n_;
};

inline Aligned<uint8_t> random_bytes(Random & rng, size_t n, int largest = 255) {
    Aligned<uint8_t> bytes(n);
    for (size_t i = 0; i < n; ++i) bytes[i] = static_cast<uint8_t>(rng.integer(0, largest));
    return bytes;
}

inline Aligned<float> random_floats(Random & rng, size_t n, float deviation = 1.0f) {
    Aligned<float> out(n);
    for (size_t i = 0; i < n; ++i) out[i] = rng.normal(rng.integer(0, 20) ? deviation : 10 * deviation);
    return out;
}

inline Aligned<uint16_t> random_halves(Random & rng, size_t n) {
    Aligned<uint16_t> halves(n);
    for (size_t i = 0; i < n; ++i) halves[i] = float_to_half(rng.normal(rng.integer(0, 9) ? 2.0f : 1e-6f));
    return halves;
}

inline bool same(float a, float b) {
    return std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b) || (std::isnan(a) && std::isnan(b));
}

inline void expect_same(const std::vector<float> & got, const std::vector<float> & want) {
    ASSERT_EQ(got.size(), want.size());
    for (size_t i = 0; i < got.size(); ++i) ASSERT_TRUE(same(got[i], want[i])) << i << ": " << got[i] << " " << want[i];
}

inline std::vector<float> values_of(const float * x, int rows) { return {x, x + rows}; }

} // namespace vidkv::test
