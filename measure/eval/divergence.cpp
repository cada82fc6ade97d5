#include "eval/divergence.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace vidkv::cli {

void Divergence::add(const float * reference, const float * measured, int64_t vocabulary) {
    double sum = 0;
    for (int64_t i = 0; i < vocabulary; ++i) {
        if (std::isfinite(reference[i])) sum += double{std::exp(reference[i])} * (reference[i] - measured[i]);
    }
    kl += sum;
    agreed += std::max_element(reference, reference + vocabulary) - reference ==
              std::max_element(measured, measured + vocabulary) - measured;
    ++tokens;
}

void Divergence::add_text_token(float log_probability) {
    nll -= log_probability;
    ++predicted;
}

Estimate estimate(const std::vector<double> & samples) {
    if (samples.empty()) return {};
    const auto n = static_cast<double>(samples.size());
    const double mean = std::accumulate(samples.begin(), samples.end(), 0.0) / n;
    double squares = 0;
    for (const double sample : samples) squares += (sample - mean) * (sample - mean);
    return {mean, samples.size() > 1 ? std::sqrt(squares / (n - 1) / n) : 0};
}

} // namespace vidkv::cli
