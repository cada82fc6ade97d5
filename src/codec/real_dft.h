// Orthonormal real DFT: n real numbers in, n real coefficients out (no redundant half).
#pragma once

#include <memory>
#include <vector>

namespace vidkv {

// Coefficients: [0] the mean times sqrt(n); [2k-1], [2k] cosine and sine of frequency k; [n-1] the alternating sum if n is
// even. Being orthonormal it keeps dot products, so attention transforms the query and never inverts the codes. Held as an
// n x n matrix: at n <= 512 one small matrix product with a fixed order of sums, the same bits on every machine.
class RealDft {
  public:
    explicit RealDft(int n);
    int size() const { return n_; }
    // out[k] = sum_i basis[k][i] in[i]; in and out must not overlap.
    void forward(const float * in, float * out) const;
    void inverse(const float * in, float * out) const;
    // The same for `width` vectors at once: in and out are [n][width].
    void forward_columns(const float * in, float * out, int width) const;
    void inverse_columns(const float * in, float * out, int width) const;

  private:
    int n_;
    std::vector<float> basis_;      // [coefficient][element]
    std::vector<float> transposed_; // [element][coefficient], so that one vector runs along memory too
};

// The shared instance for this size; thread-safe.
std::shared_ptr<const RealDft> real_dft(int n);

} // namespace vidkv
