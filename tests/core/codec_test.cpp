#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numbers>
#include <string>

#include "base/half.h"
#include "codec/channel_plan.h"
#include "codec/key_codec.h"
#include "codec/presets.h"
#include "codec/real_dft.h"
#include "codec/trit.h"
#include "codec/value_codec.h"
#include "core/random.h"

namespace vidkv {
namespace {

using test::Random;

constexpr int dims[] = {64, 72, 80, 96, 112, 128, 256};
constexpr int groups[] = {32, 64, 96, 128};

vidkv_params preset(const std::string & name, int group = 0) {
    vidkv_params params;
    EXPECT_EQ(vidkv_params_from_preset(name.c_str(), &params), VIDKV_OK) << vidkv_last_error();
    if (group) params.group_size = group;
    return params;
}

ChannelPlan plain_plan(const KeyLayout & layout) {
    const std::vector<float> flat(layout.head_dim);
    const uint8_t use = 1;
    return choose_channels(flat.data(), &use, 1, layout.head_dim, layout.wide);
}

struct Moments {
    double error = 0, energy = 0;
    void add(double x, double y) { error += (x - y) * (x - y), energy += x * x; }
    double nmse() const { return error / energy; }
};

TEST(Presets, TrueBitsAreTheStatedOnes) {
    struct Row {
        const char * name;
        double k, v;
    };
    // 2-bit: 2 + 16 scale bits and 16 minimum bits in 32; sign: 1 + 16 in 32; ternary: (6 * 8 + the tail) / 32 + 16 in 32.
    const Row rows[] = {{"f16", 16, 16}, {"k2v2", 3, 3}, {"k1.5v2", 2.25, 3}, {"k1.5v1.58", 2.25, 2.1015625},
                        {"k1.5v1.58-g128", 1.6875, 1.7265625}};
    for (size_t i = 0; i < std::size(rows); ++i) {
        ASSERT_STREQ(vidkv_preset_name(i), rows[i].name);
        const vidkv_params params = preset(rows[i].name);
        for (const int dim : {64, 128}) {
            EXPECT_DOUBLE_EQ(vidkv_true_bits(&params, VIDKV_KEYS, dim), rows[i].k) << rows[i].name << " " << dim;
            EXPECT_NEAR(vidkv_true_bits(&params, VIDKV_VALUES, dim), rows[i].v, 0.004) << rows[i].name << " " << dim;
        }
    }
    EXPECT_EQ(vidkv_preset_name(std::size(rows)), nullptr);
}

TEST(Presets, BadNamesAndNumbersAreRefusedInOneLine) {
    vidkv_params params;
    for (const char * name : {"", "k", "v2", "k2", "k2v", "k3v2", "k2v3", "k0.5v2", "k1.5v1.58x", "K2V2", "k2v2 ", "k1.5.5v2", "knanv2", "k2v2-g", "k2v2-g33", "k2v2-g128x"}) {
        EXPECT_EQ(vidkv_params_from_preset(name, &params), VIDKV_E_ARGUMENT) << name;
        const std::string line = vidkv_last_error();
        EXPECT_NE(line.find(std::string("'") + name + "'"), std::string::npos) << line;
        EXPECT_EQ(line.find('\n'), std::string::npos) << line;
    }
    EXPECT_EQ(vidkv_params_from_preset(nullptr, &params), VIDKV_E_ARGUMENT);
    params = preset("k2v2");
    EXPECT_EQ(vidkv_params_check(&params, 60), VIDKV_E_ARGUMENT);
    EXPECT_EQ(vidkv_params_check(&params, 520), VIDKV_E_ARGUMENT);
    params.sink_tokens = 33;
    EXPECT_EQ(vidkv_params_check(&params, 64), VIDKV_E_ARGUMENT);
    params = preset("k2v2");
    params.key_bits = std::numeric_limits<float>::quiet_NaN();
    EXPECT_EQ(vidkv_params_check(&params, 64), VIDKV_E_ARGUMENT);
}

TEST(Trit, AllFiveDigitNumbersSurvive) {
    for (int v = 0; v < 243; ++v) {
        uint8_t digits[5], back[5];
        for (int i = 4, rest = v; i >= 0; --i, rest /= 3) digits[i] = static_cast<uint8_t>(rest % 3);
        unpack_trits(pack_trits(digits), back);
        for (int i = 0; i < 5; ++i) ASSERT_EQ(back[i], digits[i]) << v;
    }
}

TEST(RealDft, IsTheDefinitionAndOrthonormal) {
    Random rng(1);
    SCOPED_TRACE(rng.trace());
    for (const int n : {1, 2, 3, 8, 31, 36, 64, 96, 128, 256}) {
        const std::vector<float> x = rng.normals(n);
        std::vector<float> y(n), back(n);
        real_dft(n)->forward(x.data(), y.data());
        real_dft(n)->inverse(y.data(), back.data());
        double norm = 0;
        for (const float v : x) norm += std::fabs(v);
        // n products and sums, each coefficient rounded once, on terms that sum to at most norm.
        const double bound = (n + 2) * norm * std::numeric_limits<float>::epsilon();
        for (int k = 0; k < n; ++k) {
            const int f = (k + 1) / 2;
            const bool alone = k == 0 || (n % 2 == 0 && k == n - 1);
            double want = 0;
            for (int i = 0; i < n; ++i) {
                const double angle = 2 * std::numbers::pi * f * i / n;
                want += x[i] * std::sqrt((alone ? 1.0 : 2.0) / n) * (!alone && k % 2 == 0 ? std::sin(angle) : std::cos(angle));
            }
            EXPECT_NEAR(y[k], want, bound) << "n " << n << " k " << k;
            EXPECT_NEAR(back[k], x[k], 2 * std::sqrt(n) * bound);
        }
    }
}

TEST(ChannelPlan, TakesTheWidestRangesPerHead) {
    const int dim = 16;
    std::vector<float> rows(3 * dim, 0.0f);
    rows[5] = 9, rows[dim + 11] = -7, rows[2 * dim + 2] = 100;
    const uint8_t use[] = {1, 1, 0}; // the last token does not count
    const ChannelPlan plan = choose_channels(rows.data(), use, 3, dim, 2);
    EXPECT_EQ(plan.order[0], 5);
    EXPECT_EQ(plan.order[1], 11);
    EXPECT_EQ(plan.order[2], 0);
    EXPECT_EQ(plan.order[15], 15);
}

TEST(KeyCodec, TwoBitErrorIsAtMostHalfAStep) {
    Random rng(2);
    SCOPED_TRACE(rng.trace());
    for (const int dim : dims) {
        for (const int tokens : groups) {
            const KeyLayout layout = make_key_layout(preset("k2v2", tokens), dim);
            ASSERT_EQ(layout.narrow, 0);
            std::vector<float> x = rng.normals(static_cast<size_t>(dim) * tokens, 5.0f), tile(x.size()), back(x.size());
            const std::vector<uint8_t> use(tokens, 1);
            std::vector<uint8_t> block(layout.bytes);
            const ChannelPlan plan = plain_plan(layout);
            encode_keys(layout, plan, x.data(), use.data(), block.data());
            decode_keys(layout, block.data(), tile.data());
            restore_keys(layout, plan, tile.data(), back.data());
            for (int c = 0; c < dim; ++c) {
                const auto [low, high] = std::minmax_element(&x[c * tokens], &x[c * tokens] + tokens);
                // Half a step, and what rounding scale and minimum to f16 moves the ends by.
                const float bound = (*high - *low) / 6 + 4 * std::max(std::fabs(*low), std::fabs(*high)) / 2048;
                for (int t = 0; t < tokens; ++t) ASSERT_NEAR(back[c * tokens + t], x[c * tokens + t], bound);
            }
        }
    }
}

// The paper's 1-bit code keeps sign and mean magnitude: NMSE 1 - 2/pi = 0.363 on Gaussians; {0, s} would give 0.68.
TEST(KeyCodec, SignCodesHaveTheExpectedDistortion) {
    Random rng(3);
    SCOPED_TRACE(rng.trace());
    const KeyLayout layout = make_key_layout(preset("k1v2", 128), 128);
    ASSERT_EQ(layout.wide, 0);
    Moments moments;
    for (int repeat = 0; repeat < 20; ++repeat) {
        const std::vector<float> x = rng.normals(128 * 128, 5.0f);
        std::vector<float> tile(x.size()), back(x.size());
        const std::vector<uint8_t> use(128, 1);
        std::vector<uint8_t> block(layout.bytes);
        const ChannelPlan plan = plain_plan(layout);
        encode_keys(layout, plan, x.data(), use.data(), block.data());
        decode_keys(layout, block.data(), tile.data());
        restore_keys(layout, plan, tile.data(), back.data());
        for (size_t i = 0; i < x.size(); ++i) moments.add(x[i], back[i]);
    }
    EXPECT_NEAR(moments.nmse(), 1 - 2 / std::numbers::pi, 0.01);
}

TEST(ValueCodec, TernaryHasTheExpectedDistortion) {
    Random rng(4);
    SCOPED_TRACE(rng.trace());
    for (const int dim : dims) {
        const ValueLayout layout = make_value_layout(preset("k2v1.58", 128), dim);
        Moments moments;
        for (int repeat = 0; repeat < 20; ++repeat) {
            const std::vector<float> x = rng.normals(static_cast<size_t>(dim) * 128, 5.0f);
            std::vector<float> tile(x.size());
            const std::vector<uint8_t> use(128, 1);
            std::vector<uint8_t> block(layout.bytes);
            encode_values(layout, x.data(), use.data(), block.data());
            decode_values(layout, block.data(), tile.data());
            for (size_t i = 0; i < x.size(); ++i) moments.add(x[i], tile[i]);
        }
        EXPECT_NEAR(moments.nmse(), 0.262, 0.012) << dim; // with s = mean |x| and threshold s/2 (paper.md: 0.26)
    }
}

TEST(ValueCodec, EveryTernaryPlaceIsItsOwn) {
    for (const int dim : dims) {
        for (const int tokens : groups) {
            const ValueLayout layout = make_value_layout(preset("k2v1.58", tokens), dim);
            Random rng(5);
            std::vector<float> x(static_cast<size_t>(dim) * tokens), tile(x.size());
            for (float & v : x) v = static_cast<float>(rng.integer(-1, 1));
            const std::vector<uint8_t> use(tokens, 1);
            std::vector<uint8_t> block(layout.bytes);
            encode_values(layout, x.data(), use.data(), block.data());
            decode_values(layout, block.data(), tile.data());
            for (size_t i = 0; i < x.size(); ++i) {
                ASSERT_EQ(x[i] > 0, tile[i] > 0) << dim << " " << tokens << " " << i;
                ASSERT_EQ(x[i] < 0, tile[i] < 0) << dim << " " << tokens << " " << i;
            }
        }
    }
}

TEST(Codecs, TokensLeftOutDoNotTouchTheOthers) {
    Random rng(6);
    SCOPED_TRACE(rng.trace());
    const int dim = 64, tokens = 32;
    for (const char * name : {"k1.5v2", "k1.5v1.58"}) {
        const KeyLayout keys = make_key_layout(preset(name), dim);
        const ValueLayout values = make_value_layout(preset(name), dim);
        std::vector<float> x = rng.normals(dim * tokens);
        std::vector<uint8_t> use(tokens, 1);
        use[0] = use[9] = 0;
        const ChannelPlan plan = plain_plan(keys);
        std::vector<uint8_t> k1(keys.bytes), v1(values.bytes), k2(keys.bytes), v2(values.bytes);
        encode_keys(keys, plan, x.data(), use.data(), k1.data());
        encode_values(values, x.data(), use.data(), v1.data());
        for (int c = 0; c < dim; ++c) x[c * tokens] = x[c * tokens + 9] = 1e4f;
        encode_keys(keys, plan, x.data(), use.data(), k2.data());
        EXPECT_TRUE(std::equal(k1.begin(), k1.begin() + static_cast<long>(keys.codes), k2.begin())) << "key scales moved";
        x = rng.normals(0);
        x.assign(dim * tokens, 0.5f);
        encode_values(values, x.data(), use.data(), v1.data());
        std::fill_n(x.begin(), dim, -1e4f);
        encode_values(values, x.data(), use.data(), v2.data());
        EXPECT_TRUE(std::equal(v1.begin(), v1.begin() + static_cast<long>(values.codes), v2.begin())) << "value scales moved";
    }
}

TEST(Codecs, BadNumbersGiveFiniteResults) {
    const int dim = 64, tokens = 32;
    const float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
    for (const float bad : {nan, inf, -inf, 3e38f, 1e-45f, 65504.0f, -65504.0f, 0.0f}) {
        std::vector<float> x(dim * tokens, bad), tile(x.size()), back(x.size());
        x[7] = 1.0f;
        const std::vector<uint8_t> use(tokens, 1);
        for (const char * name : {"k2v2", "k1.5v1.58", "k1v1.58"}) {
            const KeyLayout keys = make_key_layout(preset(name), dim);
            const ValueLayout values = make_value_layout(preset(name), dim);
            std::vector<uint8_t> block(std::max(keys.bytes, values.bytes));
            const ChannelPlan plan = plain_plan(keys);
            encode_keys(keys, plan, x.data(), use.data(), block.data());
            decode_keys(keys, block.data(), tile.data());
            restore_keys(keys, plan, tile.data(), back.data());
            for (const float v : back) ASSERT_TRUE(std::isfinite(v)) << name << " " << bad;
            encode_values(values, x.data(), use.data(), block.data());
            decode_values(values, block.data(), tile.data());
            for (const float v : tile) ASSERT_TRUE(std::isfinite(v)) << name << " " << bad;
        }
    }
}

TEST(KeyCodec, PlannedQueryKeepsDotProducts) {
    Random rng(7);
    SCOPED_TRACE(rng.trace());
    for (const int dim : dims) {
        const int tokens = 32;
        const KeyLayout layout = make_key_layout(preset("k1.5v2"), dim);
        const std::vector<float> x = rng.normals(static_cast<size_t>(dim) * tokens), q = rng.normals(dim);
        const ChannelPlan plan = plain_plan(layout);
        const std::vector<uint8_t> use(tokens, 1);
        std::vector<uint8_t> block(layout.bytes);
        std::vector<float> tile(x.size()), back(x.size()), planned(dim);
        encode_keys(layout, plan, x.data(), use.data(), block.data());
        decode_keys(layout, block.data(), tile.data());
        restore_keys(layout, plan, tile.data(), back.data());
        plan_query(layout, plan, q.data(), planned.data());
        for (int t = 0; t < tokens; ++t) {
            double direct = 0, through = 0, norm = 0;
            for (int c = 0; c < dim; ++c) {
                direct += static_cast<double>(q[c]) * back[c * tokens + t];
                through += static_cast<double>(planned[c]) * tile[c * tokens + t];
                norm += std::fabs(q[c]) * std::fabs(back[c * tokens + t]);
            }
            // The two orthonormal transforms cost dim rounded sums each, on values of the size of the norms.
            EXPECT_NEAR(direct, through, 4 * dim * norm * std::numeric_limits<float>::epsilon());
        }
    }
}

} // namespace
} // namespace vidkv
