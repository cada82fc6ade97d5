// How far one next-token distribution is from another.
#pragma once

#include <cstdint>
#include <vector>

namespace vidkv::cli {

// Sums over tokens that were scored.
struct Divergence {
    std::vector<double> kl; // KL(reference || measured) of each token, nats
    double agreed = 0;      // tokens whose likeliest next token is the reference's
    int64_t tokens = 0;
    double nll = 0; // sum of -log p(the text's next token)
    int64_t predicted = 0;

    // One token: log-probabilities [vocabulary] of both.
    void add(const float * reference, const float * measured, int64_t vocabulary);
    void add_text_token(float log_probability);

    void add(const Divergence & more);

    double mean_kl() const;
    // The KL divergence that a share of the tokens stays below, 0 to 1; between two tokens' in proportion.
    double kl_quantile(double share) const;
    double top1() const { return tokens > 0 ? agreed / static_cast<double>(tokens) : 0; }
    double perplexity() const;
};

// Mean and standard error.
struct Estimate {
    double mean = 0, error = 0;
};
Estimate estimate(const std::vector<double> & samples);
// Mean divergence of all tokens of some answers; its standard error takes each answer, not each token, for a sample.
Estimate mean_kl(const std::vector<Divergence> & answers);

} // namespace vidkv::cli
