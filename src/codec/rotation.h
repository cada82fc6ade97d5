// The orthonormal rotation of trellis values: signs, then a Hadamard matrix over the power of two in head_dim, then a real DFT
// over the odd factor. It spreads a head's energy over its channels, so one scale per token is enough.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "codec/real_dft.h"

namespace vidkv {

class Rotation {
  public:
    explicit Rotation(int head_dim);
    void forward(float * x) const; // in place, [head_dim]
    void inverse(float * x) const;
    void inverse(float * x, void (*hadamard)(float * x, int n)) const; // by a faster one of the same bits

  private:
    int n_, even_, odd_;                 // n = even * odd, even a power of two
    std::shared_ptr<const RealDft> dft_; // of size odd, null if odd is 1
    std::vector<float> signs_;           // +-1 / sqrt(even)
};

// x [n] in place, n a power of two, not normalised; a fixed order of sums.
void hadamard(float * x, int n);

// The next of the signs, where true is -1: the top bit of a 32-bit linear congruential generator (a = 1664525, c = 1013904223) that
// begins with state 1.
inline bool next_sign(uint32_t & state) {
    state = state * 1664525u + 1013904223u;
    return state >> 31 != 0;
}

// The shared instance for this size; thread-safe.
std::shared_ptr<const Rotation> rotation(int head_dim);

} // namespace vidkv
