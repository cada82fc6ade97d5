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
    kl.push_back(sum);
    agreed += std::max_element(reference, reference + vocabulary) - reference ==
              std::max_element(measured, measured + vocabulary) - measured;
    ++tokens;
}

void Divergence::add(const Divergence & more) {
    kl.insert(kl.end(), more.kl.begin(), more.kl.end());
    agreed += more.agreed;
    tokens += more.tokens;
    nll += more.nll;
    predicted += more.predicted;
}

double Divergence::mean_kl() const {
    return kl.empty() ? 0 : std::accumulate(kl.begin(), kl.end(), 0.0) / static_cast<double>(kl.size());
}

double Divergence::kl_quantile(double share) const {
    if (kl.empty()) return 0;
    std::vector<double> sorted = kl;
    std::sort(sorted.begin(), sorted.end());
    const double at = share * static_cast<double>(sorted.size() - 1);
    const auto below = static_cast<size_t>(at), above = std::min(below + 1, sorted.size() - 1);
    return sorted[below] + (at - static_cast<double>(below)) * (sorted[above] - sorted[below]);
}

double Divergence::perplexity() const { return std::exp(nll / static_cast<double>(std::max<int64_t>(1, predicted))); }

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

Estimate mean_kl(const std::vector<Divergence> & answers) {
    Divergence all;
    for (const Divergence & answer : answers) all.add(answer);
    const double mean = all.mean_kl(), n = static_cast<double>(answers.size());
    double squares = 0;
    for (const Divergence & answer : answers) {
        const double off = static_cast<double>(answer.tokens) * (answer.mean_kl() - mean);
        squares += off * off;
    }
    const double error = n > 1 && all.tokens > 0 ? std::sqrt(squares * n / (n - 1)) / static_cast<double>(all.tokens) : 0;
    return {mean, error};
}

} // namespace vidkv::cli
