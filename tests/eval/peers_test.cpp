// The peers of 2026 against what their papers promise.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "eval/reference_codecs/eigenvectors.h"
#include "eval/reference_codecs/reference_codec.h"

namespace vidkv::cli {

namespace {

constexpr uint32_t SEED = 20261101;
constexpr int64_t TOKENS = 256;
constexpr int HEADS = 2, HEAD_DIM = 128, ROW = HEADS * HEAD_DIM;

using Numbers = std::vector<float>;

Numbers gaussian(size_t n, uint32_t seed = SEED) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    Numbers x(n);
    for (float & each : x) each = normal(random);
    return x;
}

Numbers rows() { return gaussian(static_cast<size_t>(TOKENS * ROW)); }

Numbers through(const char * name, vidkv_side side, Numbers x, const Calibration * calibration = nullptr) {
    find_reference_codec(name)->round_trip({x.data(), TOKENS, HEADS, HEAD_DIM, calibration}, side);
    return x;
}

double distortion(const Numbers & got, const Numbers & want) {
    double error = 0, energy = 0;
    for (size_t i = 0; i < want.size(); ++i) {
        error += std::pow(got[i] - want[i], 2);
        energy += std::pow(want[i], 2);
    }
    return error / energy;
}

// Every token times another power of two.
Numbers of_uneven_norms(Numbers x) {
    for (size_t i = 0; i < x.size(); ++i) x[i] = std::ldexp(x[i], static_cast<int>(i / ROW * 7 % 9));
    return x;
}

Numbers of_even_norms(Numbers x) {
    for (size_t i = 0; i < x.size(); ++i) x[i] = std::ldexp(x[i], -static_cast<int>(i / ROW * 7 % 9));
    return x;
}

// 256 states leave .0734 and .267 of a Gaussian's energy (.1175 and .363 without a trellis; .0625 and .25 are the bounds); correcting the
// norm costs a little, and so do values 1.04 times as long.
TEST(Peers, TrellisCodesOfAGaussian) {
    const auto corrected = [](double left, double scale) { return 1 + scale * scale - 2 * scale * std::sqrt(1 - left); };
    const Numbers x = rows();
    EXPECT_NEAR(distortion(through("trellis2", VIDKV_KEYS, x), x), corrected(0.0734, 1), 0.003);
    EXPECT_NEAR(distortion(through("trellis2", VIDKV_VALUES, x), x), corrected(0.0734, 1.04), 0.003);
    EXPECT_NEAR(distortion(through("trellis1", VIDKV_KEYS, x), x), corrected(0.267, 1), 0.008);
    EXPECT_NEAR(distortion(through("trellis1", VIDKV_VALUES, x), x), corrected(0.267, 1.04), 0.008);
}

TEST(Peers, TrellisKeepsNormsAndZeros) {
    Numbers x = of_uneven_norms(rows());
    std::fill_n(x.begin(), ROW, 0.0F);
    const Numbers got = through("trellis2", VIDKV_KEYS, x);
    for (size_t at = 0; at < x.size(); at += HEAD_DIM) {
        double before = 0, after = 0;
        for (size_t i = at; i < at + HEAD_DIM; ++i) {
            before += x[i] * x[i];
            after += got[i] * got[i];
        }
        ASSERT_NEAR(std::sqrt(after), std::sqrt(before), 1e-3 * std::sqrt(before)) << at;
    }
}

// No token is worse for another one's larger norm. (Scales below .74 are not given.)
TEST(Peers, KvarnEvensOutTheNormsOfTokens) {
    const Numbers x = rows(), uneven = of_uneven_norms(x);
    for (const vidkv_side side : {VIDKV_KEYS, VIDKV_VALUES}) {
        const double even = distortion(through("kvarn2", side, x), x);
        EXPECT_GT(even, 0.15); // the smallest and largest of 128 numbers are two of the four levels
        EXPECT_LT(even, 0.30);
        EXPECT_LT(distortion(of_even_norms(through("kvarn2", side, uneven)), x), 1.25 * even);
    }
    const Numbers plain = through("kivi2", VIDKV_KEYS, uneven); // which shares a scale among tokens
    EXPECT_GT(distortion(of_even_norms(plain), x), 5 * distortion(through("kivi2", VIDKV_KEYS, x), x));
}

// A channel of huge values, which the columns' scales take in.
TEST(Peers, KvarnTakesInAChannel) {
    Numbers x = rows();
    for (size_t i = 5; i < x.size(); i += HEAD_DIM) x[i] *= 30;
    EXPECT_LT(distortion(through("kvarn2", VIDKV_VALUES, x), x), 0.3);
}

TEST(Peers, OmniScalingTakesTheNormsOut) {
    const Numbers x = rows();
    EXPECT_EQ(of_even_norms(through("oscar-omni2", VIDKV_KEYS, of_uneven_norms(x))), through("oscar-omni2", VIDKV_KEYS, x));
    for (const vidkv_side side : {VIDKV_KEYS, VIDKV_VALUES}) {
        const double left = distortion(through("oscar-omni2", side, x), x);
        const double kivi = distortion(through("kivi2", side, x), x); // whose levels need not have a zero among them
        EXPECT_GT(left, kivi);
        EXPECT_LT(left, 1.6 * kivi);
    }
}

TEST(Peers, OmniScalingHasAZero) {
    Numbers x = rows();
    for (size_t i = 0; i < x.size(); ++i)
        if (i / ROW % 2 == 1) x[i] = 0; // every other token
    const Numbers got = through("oscar-omni2", VIDKV_KEYS, x);
    for (size_t i = ROW; i < x.size(); i += 2 * ROW)
        for (size_t channel = 0; channel < ROW; ++channel) ASSERT_NEAR(got[i + channel], 0, 1e-6) << i;
}

// Rows along the direction that queries look along have one size in all turned channels: two levels say them exactly.
TEST(Peers, SpectralRotationFollowsTheQueries) {
    const Numbers direction = gaussian(HEAD_DIM, 1), parts = gaussian(static_cast<size_t>(TOKENS * HEADS), 2);
    Numbers along(static_cast<size_t>(TOKENS * ROW)), queries = gaussian(along.size(), 3);
    for (size_t i = 0; i < along.size(); ++i) along[i] = parts[i / HEAD_DIM] * direction[i % HEAD_DIM];
    for (size_t i = 0; i < along.size(); ++i) queries[i] = along[i] + 0.01F * queries[i];
    const Calibration calibration{queries, along, HEADS};
    EXPECT_LT(distortion(through("oscar-spectral2", VIDKV_KEYS, along, &calibration), along), 1e-3);
    EXPECT_LT(distortion(through("oscar-spectral2", VIDKV_VALUES, along, &calibration), along), 1e-3);
    const Numbers elsewhere = gaussian(queries.size(), 4);
    const Calibration blind{elsewhere, along, HEADS};
    EXPECT_GT(distortion(through("oscar-spectral2", VIDKV_KEYS, along, &blind), along), 0.05);
}

// On numbers without a direction: 128 of them, clipped at the largest 4 and 8 % of the sizes, in four even levels.
TEST(Peers, SpectralRotationOfAGaussian) {
    const Numbers x = rows(), queries = gaussian(x.size(), 5);
    const Calibration calibration{queries, x, HEADS};
    const double keys = distortion(through("oscar-spectral2", VIDKV_KEYS, x, &calibration), x);
    const double values = distortion(through("oscar-spectral2", VIDKV_VALUES, x, &calibration), x);
    EXPECT_NEAR(keys, 0.16, 0.03);
    EXPECT_NEAR(values, 0.13, 0.03);
}

TEST(Peers, Eigenvectors) {
    constexpr int N = 12;
    const Numbers x = gaussian(N * N, 6);
    std::vector<double> matrix(N * N);
    for (int i = 0; i < N; ++i)
        for (int j = 0; j < N; ++j) matrix[static_cast<size_t>(i * N + j)] = x[i * N + j] + x[j * N + i];
    const Eigenvectors found = eigenvectors(matrix, N);
    for (int i = 0; i < N; ++i) {
        const float * vector = &found.vectors[static_cast<size_t>(i * N)];
        for (int row = 0; row < N; ++row) {
            double product = 0;
            for (int j = 0; j < N; ++j) product += matrix[static_cast<size_t>(row * N + j)] * vector[j];
            EXPECT_NEAR(product, found.values[static_cast<size_t>(i)] * vector[row], 1e-4);
        }
        for (int other = 0; other < N; ++other) EXPECT_NEAR(found.along(other, vector), other == i ? 1 : 0, 1e-5);
    }
}

} // namespace

} // namespace vidkv::cli
