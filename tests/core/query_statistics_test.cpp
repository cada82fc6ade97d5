// What is known of the queries that will look at keys.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "core/encoding.h"
#include "core/random.h"

namespace vidkv {
namespace {

using namespace test;

TEST(QueryStatistics, BrokenTokensLeaveNoTrace) {
    Random rng(35);
    SCOPED_TRACE(rng.trace());
    const int dim = 16, heads = 4, tokens = 64;
    const size_t token = static_cast<size_t>(heads) * dim;
    std::vector<float> good = rng.normals(tokens * token);
    QueryStatistics clean(2, dim), broken(2, dim), only_broken(2, dim);
    clean.observe(good.data(), tokens, heads, static_cast<int64_t>(token), dim);
    broken.observe(good.data(), tokens, heads, static_cast<int64_t>(token), dim);
    for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), 1e30f}) {
        std::vector<float> q = good;
        for (int t = 0; t < tokens; ++t) q[t * token + token / 2] = bad;
        broken.observe(q.data(), tokens, heads, static_cast<int64_t>(token), dim);
        only_broken.observe(q.data(), tokens, heads, static_cast<int64_t>(token), dim);
    }
    EXPECT_TRUE(only_broken.empty());
    EXPECT_FALSE(clean.empty());
    for (int h = 0; h < 2; ++h) {
        for (int i = 0; i < dim; ++i) {
            EXPECT_EQ(broken.mean(h, i), clean.mean(h, i));
            for (int j = 0; j < dim; ++j) EXPECT_EQ(broken.second(h, i, j), clean.second(h, i, j));
        }
    }
}

TEST(QueryStatistics, ThreadsAndBatchesDoNotMatter) {
    constexpr int heads = 6, kv_heads = 2, dim = 64;
    constexpr int64_t tokens = 75;
    Random rng(77);
    const std::vector<float> q = rng.normals(tokens * heads * dim);
    QueryStatistics one(kv_heads, dim), many(kv_heads, dim), parts(kv_heads, dim);
    one.observe(q.data(), tokens, heads, heads * dim, dim);
    many.observe(q.data(), tokens, heads, heads * dim, dim, 5);
    parts.observe(q.data(), 40, heads, heads * dim, dim, 2);
    parts.observe(&q[40 * heads * dim], tokens - 40, heads, heads * dim, dim, 2);
    double weight = 0;
    std::vector<double> second(kv_heads * dim * dim, 0.0);
    for (int64_t t = 0; t < tokens; ++t) {
        const double decay = std::exp(-1 / 300.0);
        const int readers = heads / kv_heads;
        weight = weight * decay + readers;
        for (double & x : second) x *= decay;
        for (int head = 0; head < heads; ++head) {
            const float * row = &q[static_cast<size_t>((t * heads + head) * dim)];
            for (int i = 0; i < dim * dim; ++i) second[(head / 3) * dim * dim + i] += double{row[i / dim]} * row[i % dim];
        }
    }
    for (int head = 0; head < kv_heads; ++head) {
        for (int i = 0; i < dim * dim; ++i) {
            const double got = one.second(head, i / dim, i % dim);
            ASSERT_EQ(got, many.second(head, i / dim, i % dim));
            ASSERT_NEAR(got, second[head * dim * dim + i] / weight, 1e-5);
            ASSERT_NEAR(got, parts.second(head, i / dim, i % dim), 1e-5);
        }
    }
}

TEST(QueryStatistics, CountedTokensAreEqualHoweverTheyCome) {
    constexpr int heads = 6, kv_heads = 2, dim = 16;
    constexpr int64_t tokens = 75;
    Random rng(78);
    const std::vector<float> q = rng.normals(tokens * heads * dim);
    QueryStatistics one(kv_heads, dim), parts(kv_heads, dim), later(kv_heads, dim);
    one.count(q.data(), tokens, heads, heads * dim, dim);
    for (int64_t t = 0; t < tokens; ++t) parts.count(&q[static_cast<size_t>(t * heads * dim)], 1, heads, heads * dim, dim);
    later.begin_with(one, 25); // a third of what is counted behind it
    later.count(q.data(), tokens, heads, heads * dim, dim);
    EXPECT_FALSE(later.empty());
    for (int head = 0; head < kv_heads; ++head) {
        for (int i = 0; i < dim * dim; ++i) {
            double sum = 0;
            for (size_t row = 0; row < q.size() / dim; ++row) {
                if (static_cast<int>(row % heads) / 3 == head)
                    sum += double{q[row * dim + i / dim]} * q[row * dim + i % dim];
            }
            ASSERT_NEAR(one.second(head, i / dim, i % dim), sum / (tokens * 3), 1e-5);
            ASSERT_EQ(one.second(head, i / dim, i % dim), parts.second(head, i / dim, i % dim));
            ASSERT_NEAR(later.second(head, i / dim, i % dim), sum / (tokens * 3), 1e-5);
        }
        ASSERT_EQ(one.mean(head, 3), parts.mean(head, 3));
    }
}

TEST(QueryStatistics, AreTheMomentsOfTheQueriesOfEachHead) {
    Random rng(36);
    SCOPED_TRACE(rng.trace());
    const int dim = 8, heads = 4, tokens = 4000;
    std::vector<float> q = rng.normals(static_cast<size_t>(tokens) * heads * dim);
    for (size_t i = 0; i < q.size(); ++i) {
        if (i % dim == 3)
            q[i] = q[i] * 3 + (static_cast<int>(i / dim) % heads < 2 ? 1.0f : -2.0f); // KV head 0: mean 1, KV head 1: -2
    }
    QueryStatistics statistics(2, dim);
    statistics.observe(q.data(), tokens, heads, heads * dim, dim);
    EXPECT_NEAR(statistics.mean(0, 3), 1, 0.7);
    EXPECT_NEAR(statistics.mean(1, 3), -2, 0.7);
    EXPECT_NEAR(statistics.second(0, 3, 3), 10, 3);
    EXPECT_NEAR(statistics.second(1, 3, 3), 13, 3);
    EXPECT_NEAR(statistics.second(0, 2, 2), 1, 0.4);
    EXPECT_NEAR(statistics.second(0, 2, 3), 0, 0.8);
    EXPECT_EQ(statistics.second(0, 2, 3), statistics.second(0, 3, 2));
}

} // namespace
} // namespace vidkv
