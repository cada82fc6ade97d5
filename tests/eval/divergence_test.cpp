#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "engine/log_softmax.h"
#include "eval/divergence.h"

namespace vidkv::cli {

namespace {

TEST(Divergence, LogSoftmaxSumsToOne) {
    std::vector<float> x = {1000.0F, 1001.0F, 998.0F};
    log_softmax(x.data(), 3);
    double sum = 0;
    for (const float each : x) sum += std::exp(each);
    EXPECT_NEAR(sum, 1, 1e-6);
    EXPECT_NEAR(x[1] - x[0], 1, 1e-4);
}

TEST(Divergence, OfTwoKnownDistributions) {
    const std::vector<float> p = {std::log(0.5F), std::log(0.25F), std::log(0.25F)};
    const std::vector<float> q = {std::log(0.25F), std::log(0.5F), std::log(0.25F)};
    Divergence sums;
    sums.add(p.data(), q.data(), 3);
    EXPECT_NEAR(sums.mean_kl(), 0.25 * std::log(2.0), 1e-6); // 0.5 ln 2 - 0.25 ln 2
    EXPECT_EQ(sums.top1(), 0);
    sums.add(p.data(), p.data(), 3);
    EXPECT_NEAR(sums.mean_kl(), 0.125 * std::log(2.0), 1e-6);
    EXPECT_EQ(sums.top1(), 0.5);
}

TEST(Divergence, ImpossibleTokensOfTheReferenceCountNothing) {
    const std::vector<float> p = {0, -INFINITY}, q = {std::log(0.5F), std::log(0.5F)};
    Divergence sums;
    sums.add(p.data(), q.data(), 2);
    EXPECT_NEAR(sums.mean_kl(), std::log(2.0), 1e-6);
}

TEST(Divergence, QuantilesLieBetweenTokens) {
    Divergence sums, more;
    sums.kl = {3, 1};
    more.kl = {0, 2, 4};
    sums.add(more);
    EXPECT_DOUBLE_EQ(sums.mean_kl(), 2);
    EXPECT_DOUBLE_EQ(sums.kl_quantile(0.5), 2);
    EXPECT_DOUBLE_EQ(sums.kl_quantile(0.9), 3.6);
    EXPECT_DOUBLE_EQ(sums.kl_quantile(1), 4);
    EXPECT_EQ(Divergence().kl_quantile(0.5), 0);
}

TEST(Divergence, StandardErrorOverWindows) {
    const Estimate three = estimate({1, 2, 3});
    EXPECT_DOUBLE_EQ(three.mean, 2);
    EXPECT_DOUBLE_EQ(three.error, std::sqrt(1.0 / 3.0)); // sample variance 1
    EXPECT_EQ(estimate({5}).error, 0);
    EXPECT_EQ(estimate({}).mean, 0);
}

TEST(Divergence, OfAnswersIsThatOfTheirTokensAndItsErrorThatOfAnswers) {
    Divergence one, two, three;
    one.kl = {1, 3};
    two.kl = {2, 2};
    three.kl = {5, 5};
    for (Divergence * answer : {&one, &two, &three}) answer->tokens = 2;
    const Estimate mean = mean_kl({one, two, three}), of_answers = estimate({2, 2, 5});
    EXPECT_DOUBLE_EQ(mean.mean, 3);
    EXPECT_NEAR(mean.error, of_answers.error, 1e-12); // answers of one length: as if each were one number
    EXPECT_EQ(mean_kl({one}).error, 0);
    EXPECT_EQ(mean_kl({}).mean, 0);
}

} // namespace

} // namespace vidkv::cli
