// How far one next-token distribution is from another.
#pragma once

#include <cstdint>
#include <vector>

namespace vidkv::cli {

// Sums over tokens that were scored.
struct Divergence {
    double kl = 0;     // sum of KL(reference || measured), nats
    double agreed = 0; // tokens whose likeliest next token is the reference's
    int64_t tokens = 0;
    double nll = 0; // sum of -log p(the text's next token)
    int64_t predicted = 0;

    // One token: log-probabilities [vocabulary] of both.
    void add(const float * reference, const float * measured, int64_t vocabulary);
    void add_text_token(float log_probability);

    double mean_kl() const { return tokens > 0 ? kl / static_cast<double>(tokens) : 0; }
    double top1() const { return tokens > 0 ? agreed / static_cast<double>(tokens) : 0; }
};

// Mean and standard error.
struct Estimate {
    double mean = 0, error = 0;
};
Estimate estimate(const std::vector<double> & samples);

} // namespace vidkv::cli
