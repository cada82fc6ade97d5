// Each reference codec against what its formula promises: bits, distortion, and the defects it is known for.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <set>
#include <vector>

#include "eval/reference_codecs/reference_codec.h"

namespace vidkv::cli {

namespace {

constexpr uint32_t SEED = 20260101;
constexpr int64_t TOKENS = 256;
constexpr int HEADS = 2, HEAD_DIM = 64;

std::vector<float> gaussian(float deviation = 1, int head_dim = HEAD_DIM) {
    std::mt19937 random(SEED);
    std::normal_distribution<float> normal(0, deviation);
    std::vector<float> x(static_cast<size_t>(TOKENS * HEADS * head_dim));
    for (float & each : x) each = normal(random);
    return x;
}

std::vector<float> through(const char * name, vidkv_side side, std::vector<float> x, int head_dim = HEAD_DIM) {
    find_reference_codec(name)->round_trip({x.data(), TOKENS, HEADS, head_dim}, side);
    return x;
}

// Squared error over energy.
double distortion(const std::vector<float> & got, const std::vector<float> & want) {
    double error = 0, energy = 0;
    for (size_t i = 0; i < want.size(); ++i) {
        error += std::pow(got[i] - want[i], 2);
        energy += std::pow(want[i], 2);
    }
    return error / energy;
}

double bits(const char * name, vidkv_side side, int head_dim = HEAD_DIM) {
    return find_reference_codec(name)->bits(side, HEADS, head_dim);
}

TEST(ReferenceCodecs, TrueBits) {
    for (const vidkv_side side : {VIDKV_KEYS, VIDKV_VALUES}) {
        EXPECT_DOUBLE_EQ(bits("q8_0", side), 8.5);
        EXPECT_DOUBLE_EQ(bits("q4_0", side), 4.5);
        EXPECT_DOUBLE_EQ(bits("q4_0-rot", side), 4.5);
        EXPECT_DOUBLE_EQ(bits("kivi2", side), 3);
        EXPECT_DOUBLE_EQ(bits("turbo2", side), 2.25);
        EXPECT_DOUBLE_EQ(bits("turbo3", side), 3.25);
        EXPECT_DOUBLE_EQ(bits("trellis2", side), 8 * 20.0 / 64); // 2 bytes of norm, 6 bits to start from and 128: 18 bytes
        EXPECT_DOUBLE_EQ(bits("trellis1", side), 8 * 12.0 / 64);
        EXPECT_DOUBLE_EQ(bits("oscar-spectral2", side), 2.5);
        for (const int head_dim : {128, 256}) { // as their authors count them
            EXPECT_DOUBLE_EQ(bits("trellis2", side, head_dim), 2.25);
            EXPECT_DOUBLE_EQ(bits("trellis1", side, head_dim), 1.25);
            EXPECT_DOUBLE_EQ(bits("oscar-spectral2", side, head_dim), 2.25);
        }
        EXPECT_DOUBLE_EQ(bits("kvarn2", side, 128), 2.375);
    }
    EXPECT_DOUBLE_EQ(bits("kvarn2", VIDKV_KEYS), 2.5);
    EXPECT_DOUBLE_EQ(bits("kvarn2", VIDKV_VALUES), 2.625);
    EXPECT_DOUBLE_EQ(bits("oscar-omni2", VIDKV_KEYS), 3 + 16.0 / (HEADS * HEAD_DIM));
    EXPECT_DOUBLE_EQ(bits("oscar-omni2", VIDKV_VALUES), 3);
    EXPECT_DOUBLE_EQ((bits("vidkv-released", VIDKV_KEYS) + bits("vidkv-released", VIDKV_VALUES)) / 2, 3.25);
}

TEST(ReferenceCodecs, UnknownName) { EXPECT_EQ(find_reference_codec("kivi9"), nullptr); }

// Lloyd-Max codes of a Gaussian: 0.1175 at 2 bits, 0.03454 at 3; a little less, as each token's norm is known.
TEST(ReferenceCodecs, TurboIsLloydMaxOfAGaussian) {
    const std::vector<float> x = gaussian(3);
    for (const vidkv_side side : {VIDKV_KEYS, VIDKV_VALUES}) {
        EXPECT_NEAR(distortion(through("turbo2", side, x), x), 0.1145, 0.004);
        EXPECT_NEAR(distortion(through("turbo3", side, x), x), 0.0345, 0.002);
    }
}

TEST(ReferenceCodecs, TurboSpreadsAnOutlierOverTheHead) {
    std::vector<float> x(static_cast<size_t>(TOKENS * HEADS * HEAD_DIM), 0.0F);
    x[5] = 100;
    const std::vector<float> got = through("turbo3", VIDKV_KEYS, x);
    EXPECT_LT(distortion(got, x), 0.1);
    for (size_t i = HEAD_DIM; i < x.size(); ++i) ASSERT_EQ(got[i], 0); // tokens of zeros stay so
}

TEST(ReferenceCodecs, TurboTakesHeadsThatAreNoPowerOfTwo) {
    const std::vector<float> x = gaussian(1, 80);
    EXPECT_NEAR(distortion(through("turbo2", VIDKV_VALUES, x, 80), x), 0.1175, 0.02);
}

// Uniform codes: no error above half a step (and f16's rounding of step and minimum).
TEST(ReferenceCodecs, KiviStaysWithinHalfAStep) {
    const std::vector<float> x = gaussian();
    const std::vector<float> keys = through("kivi2", VIDKV_KEYS, x), values = through("kivi2", VIDKV_VALUES, x);
    const auto at = [](int64_t token, int64_t i) { return static_cast<size_t>(token * HEADS * HEAD_DIM + i); };
    for (int64_t group = 0; group < TOKENS; group += 32) {
        for (int64_t channel = 0; channel < HEADS * HEAD_DIM; ++channel) {
            float low = INFINITY, high = -INFINITY, worst = 0;
            std::set<float> levels;
            for (int64_t i = group; i < group + 32; ++i) {
                low = std::min(low, x[at(i, channel)]);
                high = std::max(high, x[at(i, channel)]);
                worst = std::max(worst, std::fabs(keys[at(i, channel)] - x[at(i, channel)]));
                levels.insert(keys[at(i, channel)]);
            }
            EXPECT_LE(worst, (high - low) / 6 + 0.01F);
            EXPECT_LE(levels.size(), 4U);
        }
    }
    for (int64_t token = 0; token < TOKENS; ++token) {
        for (int64_t first = 0; first < HEADS * HEAD_DIM; first += 32) {
            const auto [low, high] = std::minmax_element(&x[at(token, first)], &x[at(token, first)] + 32);
            for (int64_t i = first; i < first + 32; ++i)
                EXPECT_LE(std::fabs(values[at(token, i)] - x[at(token, i)]), (*high - *low) / 6 + 0.01F);
        }
    }
}

TEST(ReferenceCodecs, GgmlTypes) {
    const std::vector<float> x = gaussian();
    EXPECT_LT(distortion(through("q8_0", VIDKV_KEYS, x), x), 1e-4);
    const double four = distortion(through("q4_0", VIDKV_VALUES, x), x);
    EXPECT_GT(four, 0.003);
    EXPECT_LT(four, 0.012);
    for (const char * name : {"q5_0", "q5_1", "q5_0-rot"}) {
        const double five = distortion(through(name, VIDKV_VALUES, x), x);
        EXPECT_GT(five, four / 8) << name;
        EXPECT_LT(five, four / 3) << name;
    }
}

// A channel of huge keys takes its block's levels from the others, unless all are turned before.
TEST(ReferenceCodecs, RotatedGgmlTypesSpreadAnOutlier) {
    std::vector<float> x = gaussian();
    for (size_t i = 5; i < x.size(); i += HEAD_DIM) x[i] *= 30;
    for (const vidkv_side side : {VIDKV_KEYS, VIDKV_VALUES}) {
        const double plain = distortion(through("q4_0", side, x), x);
        EXPECT_LT(distortion(through("q4_0-rot", side, x), x), 0.5 * plain);
        EXPECT_LT(distortion(through("q8_0-rot", side, x), x), 1e-4);
    }
    const std::vector<float> narrow = gaussian(1, 80); // which 64 does not divide
    EXPECT_EQ(through("q4_0-rot", VIDKV_KEYS, narrow, 80), through("q4_0", VIDKV_KEYS, narrow, 80));
}

// Values come back without a scale: -1, 0 or 1, whatever they were.
TEST(ReferenceCodecs, ReleasedValuesLoseTheirScale) {
    for (const float value : through("vidkv-released", VIDKV_VALUES, gaussian(5)))
        ASSERT_TRUE(value == -1 || value == 0 || value == 1) << value;
}

// Half of the channels at 2 bits, the rest decoded from {0, s}: far worse than one sign bit, whose distortion is 0.36.
TEST(ReferenceCodecs, ReleasedKeysDecodeSignsToZeroOrScale) {
    std::vector<float> x = gaussian();
    for (size_t i = 0; i < x.size(); ++i)
        if (i % HEAD_DIM < HEAD_DIM / 2) x[i] *= 10; // the anomalous channels
    const std::vector<float> got = through("vidkv-released", VIDKV_KEYS, x);
    double error[2] = {0, 0}, energy[2] = {0, 0};
    for (size_t i = 0; i < x.size(); ++i) {
        const int part = i % HEAD_DIM < HEAD_DIM / 2 ? 0 : 1;
        error[part] += std::pow(got[i] - x[i], 2);
        energy[part] += std::pow(x[i], 2);
    }
    EXPECT_LT(error[0] / energy[0], 0.2);
    EXPECT_GT(error[1] / energy[1], 0.5);
    EXPECT_LT(error[1] / energy[1], 0.85);
}

TEST(ReferenceCodecs, ConstantRowsComeBack) {
    std::vector<float> x(static_cast<size_t>(TOKENS * HEADS * HEAD_DIM), 0.5F);
    for (const char * name : {"kivi2", "q8_0", "q5_1", "q5_0", "q4_0", "q8_0-rot", "q4_0-rot"})
        for (const vidkv_side side : {VIDKV_KEYS, VIDKV_VALUES})
            EXPECT_LT(distortion(through(name, side, x), x), 1e-3) << name;
}

} // namespace

} // namespace vidkv::cli
