#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <string>

#include "base/half.h"
#include "codec/two_bit.h"
#include "codec/presets.h"
#include "codec/real_dft.h"
#include "codec/trit.h"
#include "core/encoding.h"
#include "core/random.h"

namespace vidkv {
namespace {

using namespace test;

constexpr int dims[] = {64, 72, 80, 96, 112, 128, 256};
constexpr int groups[] = {32, 64, 128};
const char * const presets[] = {"k2v2", "k1.5v2", "k1.5v1.58", "k1v1.58", "k1.5v1.58-g128",
                                "t2.2", "t1.65",  "t1.15",     "t1.0",    "t4.2"};

TEST(Presets, TrueBitsAreTheStatedOnes) {
    struct Row {
        const char * name;
        double k64, v64, k128, v128;
    };
    // Paper, 2-bit: 2 + 16 scale bits and 16 minimum bits in a group; sign: 1 + 16; ternary: 8/5 + 16. Trellis keys: quads
    // of 64 bytes per bit, then 8 scale bits and 8 mean bits per channel, 4 bits per quad, 16 bits per head; trellis
    // values: 8 bits per token.
    const Row rows[] = {{"f16", 16, 16, 16, 16},
                        {"k2v2", 3, 3, 3, 3},
                        {"k1.5v2", 2.25, 3, 2.25, 3},
                        {"k1.5v1.58", 2.25, 2.1015625, 2.25, 2.1015625},
                        {"k1.5v1.58-g128", 1.6875, 1.7255859375, 1.6875, 1.72509765625},
                        {"t4.2", 4.259765625, 4.125, 4.2587890625, 4.0625},
                        {"t3.2", 3.259765625, 3.125, 3.2587890625, 3.0625},
                        {"t2.2", 2.197265625, 2.125, 2.1962890625, 2.0625},
                        {"t1.65", 1.634765625, 1.625, 1.6337890625, 1.5625},
                        {"t1.15", 1.134765625, 1.125, 1.1337890625, 1.0625},
                        {"t1.0", 0.822265625, 1.125, 0.8525390625, 1.0625}};
    for (size_t i = 0; i < std::size(rows); ++i) {
        ASSERT_STREQ(vidkv_preset_name(i), rows[i].name);
        const vidkv_params params = preset(rows[i].name);
        EXPECT_DOUBLE_EQ(vidkv_true_bits(&params, VIDKV_KEYS, 64), rows[i].k64) << rows[i].name;
        EXPECT_DOUBLE_EQ(vidkv_true_bits(&params, VIDKV_VALUES, 64), rows[i].v64) << rows[i].name;
        EXPECT_DOUBLE_EQ(vidkv_true_bits(&params, VIDKV_KEYS, 128), rows[i].k128) << rows[i].name;
        EXPECT_DOUBLE_EQ(vidkv_true_bits(&params, VIDKV_VALUES, 128), rows[i].v128) << rows[i].name;
    }
    EXPECT_EQ(vidkv_preset_name(std::size(rows)), nullptr);
}

TEST(Presets, NamesOfTrellisPresetsPromiseTheirBits) {
    for (const auto & [name, promise] :
         {std::pair{"t4.2", 4.2}, {"t3.2", 3.2}, {"t2.2", 2.2}, {"t1.65", 1.65}, {"t1.15", 1.15}, {"t1.0", 1.0}}) {
        const vidkv_params params = preset(name);
        for (const int dim : {64, 128}) {
            const double mean =
                (vidkv_true_bits(&params, VIDKV_KEYS, dim) + vidkv_true_bits(&params, VIDKV_VALUES, dim)) / 2;
            EXPECT_LE(mean, promise) << name << " " << dim;
            EXPECT_GT(mean, promise - 0.1) << name << " " << dim;
        }
    }
}

TEST(Presets, SuffixesAndMixesMeanWhatTheySay) {
    const vidkv_params mix = preset("kt1.5v1.58-g64-stp0.25");
    EXPECT_EQ(mix.key_codec, VIDKV_CODEC_TRELLIS);
    EXPECT_EQ(mix.value_codec, VIDKV_CODEC_PAPER);
    EXPECT_EQ(mix.group_size, 64);
    EXPECT_FLOAT_EQ(mix.key_bits, 1.5f);
    EXPECT_FLOAT_EQ(mix.value_bits, 1.58f);
    EXPECT_FLOAT_EQ(mix.protect, 0.25f);
    EXPECT_EQ(preset("k16vt1").key_bits, 16.0f);
    const vidkv_params plain = preset("t1.65"), protecting = preset("t1.65-stp0.2");
    EXPECT_EQ(plain.protect, 0.0f);
    EXPECT_FLOAT_EQ(protecting.protect, 0.2f);
    EXPECT_GT(vidkv_true_bits(&protecting, VIDKV_VALUES, 64), vidkv_true_bits(&plain, VIDKV_VALUES, 64))
        << "better codes cost bits";
}

TEST(Presets, BadNamesAndNumbersAreRefusedInOneLine) {
    vidkv_params params;
    for (const char * name : {"",
                              "k",
                              "v2",
                              "k2",
                              "k2v",
                              "k3v2",
                              "k2v3",
                              "k0.5v2",
                              "k1.5v1.58x",
                              "K2V2",
                              "k2v2 ",
                              "k1.5.5v2",
                              "knanv2",
                              "k2v2-g",
                              "k2v2-g33",
                              "k2v2-g128x",
                              "t",
                              "t2.3",
                              "t1.65x",
                              "kt",
                              "kt2",
                              "kt2vt",
                              "kt0.4v2",
                              "kt5.5v2",
                              "k2vt2.5",
                              "k0.5vt1",
                              "k2v2-stp0.2",
                              "kt2vt3-stp0.1",
                              "k1.5v1.58-stp",
                              "k1.5v1.58-stp0.6",
                              "k1.5v1.58-stp0.2-g64",
                              "t1.65-g33"}) {
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
    params = preset("t1.65");
    params.protect = std::numeric_limits<float>::quiet_NaN();
    EXPECT_EQ(vidkv_params_check(&params, 64), VIDKV_E_ARGUMENT);
    params = preset("t1.65");
    params.key_codec = 2;
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
                want +=
                    x[i] * std::sqrt((alone ? 1.0 : 2.0) / n) * (!alone && k % 2 == 0 ? std::sin(angle) : std::cos(angle));
            }
            EXPECT_NEAR(y[k], want, bound) << "n " << n << " k " << k;
            EXPECT_NEAR(back[k], x[k], 2 * std::sqrt(n) * bound);
        }
    }
}

TEST(ChannelPlan, TakesTheWidestRangesPerHead) {
    const int dim = 16;
    std::vector<float> rows(static_cast<size_t>(dim) * page_tokens, 0.0f);
    rows[5 * page_tokens] = 9, rows[11 * page_tokens + 1] = -7, rows[2 * page_tokens + 2] = 100;
    std::vector<uint8_t> use = all_used();
    use[2] = 0; // this token does not count
    const ChannelPlan plan = choose_channels({&rows}, use, dim, 2);
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
            const KeyLayout layout = make_key_layout(preset("k2v2", tokens), dim, 1);
            ASSERT_EQ(layout.narrow, 0);
            const std::vector<float> x = rng.normals(static_cast<size_t>(dim) * page_tokens, 5.0f);
            const std::vector<float> back = encode_key_page(layout, {x}, all_used()).decode(0);
            for (size_t first = 0; first < x.size(); first += static_cast<size_t>(tokens)) { // one channel of one group
                const auto [low, high] = std::minmax_element(&x[first], &x[first] + tokens);
                // Half a step, and what rounding scale and minimum to f16 moves the ends by.
                const float bound = (*high - *low) / 6 + 4 * std::max(std::fabs(*low), std::fabs(*high)) / 2048;
                for (size_t i = first; i < first + static_cast<size_t>(tokens); ++i) ASSERT_NEAR(back[i], x[i], bound);
            }
        }
    }
}

// The paper's 1-bit code keeps sign and mean magnitude: NMSE 1 - 2/pi = 0.363 on Gaussians; {0, s} would give 0.68.
TEST(KeyCodec, SignCodesHaveTheExpectedDistortion) {
    Random rng(3);
    SCOPED_TRACE(rng.trace());
    const KeyLayout layout = make_key_layout(preset("k1v2", 128), 128, 1);
    ASSERT_EQ(layout.wide, 0);
    Fidelity fidelity;
    for (int repeat = 0; repeat < 20; ++repeat) {
        const std::vector<float> x = rng.normals(128 * 128, 5.0f);
        fidelity.add(x, encode_key_page(layout, {x}, all_used()).decode(0));
    }
    EXPECT_NEAR(fidelity.nmse(), 1 - 2 / std::numbers::pi, 0.01);
}

TEST(ValueCodec, TernaryHasTheExpectedDistortion) {
    Random rng(4);
    SCOPED_TRACE(rng.trace());
    for (const int dim : dims) {
        const ValueLayout layout = make_value_layout(preset("k2v1.58", 128), dim, 1);
        Fidelity fidelity;
        for (int repeat = 0; repeat < 20; ++repeat) {
            const std::vector<float> x = rng.normals(static_cast<size_t>(dim) * 128, 5.0f);
            fidelity.add(x, encode_value_page(layout, x, all_used()).decode());
        }
        EXPECT_NEAR(fidelity.nmse(), 0.210, 0.012) << dim; // threshold mean |x| / 2; 0.262 with mean |x| as the scale too
    }
}

TEST(ValueCodec, EveryTernaryPlaceIsItsOwn) {
    for (const int dim : {8, 16, 24, 64, 72, 80, 96, 112, 128, 256}) {
        for (const int tokens : groups) {
            const ValueLayout layout = make_value_layout(preset("k2v1.58", tokens), dim, 1);
            Random rng(5);
            std::vector<float> x(static_cast<size_t>(dim) * page_tokens);
            for (float & v : x) v = static_cast<float>(rng.integer(-1, 1));
            const std::vector<float> back = encode_value_page(layout, x, all_used()).decode();
            for (size_t i = 0; i < x.size(); ++i) {
                ASSERT_EQ(x[i] > 0, back[i] > 0) << dim << " " << tokens << " " << i;
                ASSERT_EQ(x[i] < 0, back[i] < 0) << dim << " " << tokens << " " << i;
            }
        }
    }
}

TEST(Codecs, TokensLeftOutDoNotTouchTheOthers) {
    Random rng(6);
    SCOPED_TRACE(rng.trace());
    const int dim = 64;
    for (const char * name : presets) {
        const KeyLayout keys = make_key_layout(preset(name), dim, 1);
        const ValueLayout values = make_value_layout(preset(name), dim, 1);
        std::vector<uint8_t> use = all_used();
        use[0] = use[9] = use[77] = 0;
        std::vector<float> k = rng.normals(dim * page_tokens), v = rng.normals(dim * page_tokens);
        const EncodedKeys k1 = encode_key_page(keys, {k}, use);
        const EncodedValues v1 = encode_value_page(values, v, use);
        for (int c = 0; c < dim; ++c) {
            for (const int t : {0, 9, 77}) k[c * page_tokens + t] = v[t * dim + c] = 1e4f;
        }
        const EncodedKeys k2 = encode_key_page(keys, {k}, use);
        const EncodedValues v2 = encode_value_page(values, v, use);
        EXPECT_EQ(k1.plans[0].order, k2.plans[0].order) << name;
        const std::vector<float> kx1 = k1.decode(0), kx2 = k2.decode(0), vx1 = v1.decode(), vx2 = v2.decode();
        // The paper's keys transform over channels: the same coefficients in the same order give the same bits.
        for (int c = 0; c < dim; ++c) {
            for (int t = 0; t < page_tokens; ++t) {
                if (!use[t]) continue;
                ASSERT_EQ(kx1[c * page_tokens + t], kx2[c * page_tokens + t]) << name << " channel " << c << " token " << t;
                ASSERT_EQ(vx1[t * dim + c], vx2[t * dim + c]) << name << " channel " << c << " token " << t;
            }
        }
    }
}

TEST(Codecs, BadNumbersGiveFiniteResults) {
    Random rng(9);
    SCOPED_TRACE(rng.trace());
    const float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
    int turn = 0;
    for (const float bad : {nan, inf, -inf, 3e38f, 1e-45f, 6e-8f, 65504.0f, -65504.0f, 0.0f}) {
        for (const char * name : presets) {
            constexpr int odd[] = {72, 80, 96, 112}; // they take turns, so that each codec meets each
            const int dim = odd[turn++ % 4];
            const KeyLayout keys = make_key_layout(preset(name), dim, 1);
            const ValueLayout values = make_value_layout(preset(name), dim, 1);
            std::vector<float> constant(static_cast<size_t>(dim) * page_tokens, bad),
                sprinkled = rng.normals(constant.size());
            constant[7] = 1.0f;
            for (size_t i = 0; i < sprinkled.size(); i += 37) sprinkled[i] = bad;
            for (std::vector<float> x : {constant, sprinkled}) {
                for (const float y : encode_value_page(values, x, all_used()).decode())
                    ASSERT_TRUE(std::isfinite(y)) << name << bad;
                std::transform(x.begin(), x.end(), x.begin(), sanitize); // as the store hands keys over
                for (const float y : encode_key_page(keys, {x}, all_used()).decode(0))
                    ASSERT_TRUE(std::isfinite(y)) << name << bad;
            }
        }
        ++turn;
    }
}

TEST(Codecs, ConstantAndEmptyPagesComeBack) {
    Random rng(10);
    SCOPED_TRACE(rng.trace());
    for (const char * name : presets) {
        const KeyLayout keys = make_key_layout(preset(name), 64, 1);
        const ValueLayout values = make_value_layout(preset(name), 64, 1);
        for (const float value : {0.0f, 0.37f, -3.0f, 2000.0f}) {
            const std::vector<float> x(64 * page_tokens, value);
            for (const float y : encode_key_page(keys, {x}, all_used()).decode(0))
                ASSERT_NEAR(y, value, std::fabs(value) / 512) << name;
        }
        const std::vector<float> nothing(64 * page_tokens, 0.0f), x = rng.normals(64 * page_tokens);
        for (const float y : encode_value_page(values, nothing, all_used()).decode()) ASSERT_EQ(y, 0.0f) << name;
        const std::vector<uint8_t> unused(page_tokens, 0);
        for (const float y : encode_key_page(keys, {x}, unused).decode(0)) ASSERT_TRUE(std::isfinite(y)) << name;
        for (const float y : encode_value_page(values, x, unused).decode()) ASSERT_TRUE(std::isfinite(y)) << name;
    }
}

TEST(KeyCodec, PlannedQueryKeepsDotProducts) {
    Random rng(7);
    SCOPED_TRACE(rng.trace());
    for (const char * name : {"k1.5v2", "k1v2", "k2v2-g64", "t1.65"}) {
        for (const int dim : dims) {
            const KeyLayout layout = make_key_layout(preset(name), dim, 1);
            const std::vector<float> x = rng.normals(static_cast<size_t>(dim) * page_tokens), q = rng.normals(dim);
            const EncodedKeys encoded = encode_key_page(layout, {x}, all_used());
            const std::vector<float> back = encoded.decode(0);
            const KeyPage page = key_page(layout, encoded.page.data(), 0);
            std::vector<float> planned(dim), a(dim), b(dim);
            plan_query(layout, encoded.plans[0], q.data(), planned.data());
            std::vector<double> through(page_tokens);
            const uint8_t * codes = page.codes;
            uint8_t levels[4 * page_tokens];
            for (int c = 0; c < dim; ++c) {
                const QuadCode code = key_quad_code(layout, page.meta, c / 4);
                if (c % 4 == 0) {
                    unpack_quad(code, codes, page_tokens, levels);
                    codes += quad_bytes(code, page_tokens);
                }
                for (int t = 0; t < page_tokens; ++t) {
                    if (t % layout.group == 0)
                        key_affine(layout, encoded.plans[0], page.meta, t / layout.group, a.data(), b.data());
                    through[t] += static_cast<double>(planned[c]) * (a[c] * levels[4 * t + c % 4] + b[c]);
                }
            }
            for (int t = 0; t < page_tokens; ++t) {
                double direct = 0, norm = 0;
                for (int c = 0; c < dim; ++c) {
                    direct += static_cast<double>(q[c]) * back[c * page_tokens + t];
                    norm += std::fabs(q[c]) * std::fabs(back[c * page_tokens + t]);
                }
                // The two orthonormal transforms cost dim rounded sums each, on values of the size of the norms.
                EXPECT_NEAR(direct, through[t], 4 * dim * norm * std::numeric_limits<float>::epsilon()) << name;
            }
        }
    }
}

} // namespace
} // namespace vidkv
