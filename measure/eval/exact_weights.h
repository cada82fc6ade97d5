// A copy of a small model with its quantized weights written out as f32. llama.cpp rounds activations to 8 bits wherever weights
// are quantized, so that differences of 1e-7 in attention grow to a KL divergence of 0.004: more than a good cache costs.
#pragma once

#include <cstdint>
#include <string>

namespace vidkv::cli {

class ExactWeights {
  public:
    // Writes the copy into the folder for temporary files, if the model has quantized weights and at most 10^9
    // of them; a larger one with at most `most_as_f16` of them as f16, whose rounding counts for little. Throws Error.
    explicit ExactWeights(const std::string & model, int64_t most_as_f16 = 0);
    ~ExactWeights();
    ExactWeights(const ExactWeights &) = delete;
    ExactWeights & operator=(const ExactWeights &) = delete;

    // The copy, or the model itself.
    const std::string & path() const { return copy_.empty() ? model_ : copy_; }
    bool copied() const { return !copy_.empty(); }
    bool too_many() const { return too_many_; } // quantized weights, which stay so

  private:
    std::string model_, copy_;
    bool too_many_ = false;
};

} // namespace vidkv::cli
