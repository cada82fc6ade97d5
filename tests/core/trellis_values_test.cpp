// Values of trellis codes, and the mean that still pages have.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <string>

#include "codec/page_mean.h"
#include "codec/log_scale.h"
#include "core/encoding.h"
#include "core/random.h"

namespace vidkv {
namespace {

using namespace test;

TEST(TrellisValues, HaveTheDistortionOfTheirRateAndNoBias) {
    Random rng(37);
    SCOPED_TRACE(rng.trace());
    for (const auto & [name, low, high] : {std::tuple{"k2vt1", 0.25, 0.34},
                                           {"k2vt1.5", 0.125, 0.19},
                                           {"k2vt2", 0.0625, 0.11},
                                           {"k2vt3", 0.015, 0.035},
                                           {"k2vt4", 0.008, 0.015}}) {
        for (const int dim : dims) {
            const ValueLayout layout = make_value_layout(preset(name), dim, 1);
            std::vector<float> x = rng.normals(static_cast<size_t>(dim) * page_tokens);
            for (size_t i = 0; i < x.size(); ++i) {
                const size_t token = i / dim;
                x[i] *= std::exp2(static_cast<float>(rng.integer(-3, 3)) * (i % 7 == 0) +
                                  static_cast<float>(token) / (8.0f * page_tokens));
            }
            Fidelity fidelity;
            fidelity.add(x, encode_value_page(layout, x, all_used()).decode());
            EXPECT_GT(fidelity.nmse(), low) << name << " " << dim;
            EXPECT_LT(fidelity.nmse(), high / (1 - high)) << name << " " << dim;
            EXPECT_NEAR(fidelity.gain(), 1, 0.015) << name << " " << dim;
        }
    }
}

// A still picture: the codes of tokens that are alike must not all miss in the same way, or attention that averages over them
// averages nothing.
TEST(TrellisValues, TokensThatAreAlikeMakeUpForEachOther) {
    const int dim = 128;
    for (const char * name : {"k2vt1", "k2vt1.5", "k2vt2"}) {
        for (const auto & [kinds, noise] : {std::pair{1, 0.0f}, {1, 0.1f}, {2, 0.0f}}) {
            Random rng(39);
            SCOPED_TRACE(rng.trace());
            const ValueLayout layout = make_value_layout(preset(name), dim, 1);
            const std::vector<float> scenes = rng.normals(static_cast<size_t>(dim) * kinds);
            std::vector<float> x = rng.normals(static_cast<size_t>(dim) * page_tokens, noise);
            for (int t = 0; t < page_tokens; ++t)
                for (int c = 0; c < dim; ++c) x[t * dim + c] += scenes[t % kinds * dim + c];
            const std::vector<float> y = encode_value_page(layout, x, all_used()).decode();
            Fidelity of_tokens, of_mean;
            of_tokens.add(x, y);
            for (int c = 0; c < dim; ++c) {
                double mean_x = 0, mean_y = 0;
                for (int t = 0; t < page_tokens; ++t) mean_x += x[t * dim + c], mean_y += y[t * dim + c];
                of_mean.add(mean_x / page_tokens, mean_y / page_tokens);
            }
            EXPECT_LT(of_mean.nmse(), std::max(0.2 * of_tokens.nmse(), 1e-7)) << name << " " << kinds << " " << noise;
            EXPECT_LT(of_tokens.nmse(), 0.6) << name << " " << kinds << " " << noise;
        }
    }
}

// Tokens that are parallel and of any length make up for each other's errors, but the short ones not beyond their own size.
TEST(TrellisValues, AShortTokenDoesNotPayForLongOnes) {
    Random rng(43);
    SCOPED_TRACE(rng.trace());
    const int dim = 128, short_one = 64;
    for (const auto & [name, most] : {std::pair{"k2vt1", 1.2}, {"k2vt1.5", 0.8}, {"k2vt2", 0.5}, {"k2vt3", 0.3}}) {
        for (const float length : {0.5f, 0.1f, 0.02f, 0.002f}) {
            const ValueLayout layout = make_value_layout(preset(name), dim, 1);
            const std::vector<float> scene = rng.normals(dim);
            std::vector<float> x = rng.normals(static_cast<size_t>(dim) * page_tokens);
            for (int t = 1; t < page_tokens; t += 4)
                for (int c = 0; c < dim; ++c) x[t * dim + c] = scene[c] + 0.05f * x[t * dim + c];
            for (int c = 0; c < dim; ++c) x[short_one * dim + c] = length * scene[c];
            const EncodedValues encoded = encode_value_page(layout, x, all_used());
            ASSERT_FALSE(encoded.view().is_still()) << "means are not the subject";
            const std::vector<float> y = encoded.decode();
            Fidelity of_it;
            for (int i = short_one * dim; i < (short_one + 1) * dim; ++i) of_it.add(x[i], y[i]);
            EXPECT_LT(of_it.nmse(), most) << name << " " << length;
        }
    }
}

// The mean of many rows, as attention over them gives it, and single rows, with scales per channel beside it.
TEST(TrellisValues, StillPagesAverageAsWellAsScalesPerChannel) {
    const int dim = 64, pages = 4;
    for (const char * name : {"k2vt1", "k2vt1.5", "k2vt2", "k2vt3", "k2vt4"}) {
        for (const float noise : {0.01f, 0.1f, 0.3f, 0.7f}) {
            Random rng(40);
            SCOPED_TRACE(rng.trace() + " " + name + " noise " + std::to_string(noise));
            const ValueLayout layout = make_value_layout(preset(name), dim, 1),
                              other = make_value_layout(preset("k2v2"), dim, 1);
            const std::vector<float> scene = rng.normals(dim);
            std::vector<double> miss(dim), other_miss(dim), sum(dim);
            Fidelity of_tokens;
            for (int p = 0; p < pages; ++p) {
                std::vector<float> x = rng.normals(static_cast<size_t>(dim) * page_tokens, noise);
                for (size_t i = 0; i < x.size(); ++i) x[i] += scene[i % dim];
                const EncodedValues encoded = encode_value_page(layout, x, all_used());
                EXPECT_TRUE(encoded.view().is_still());
                const std::vector<float> y = encoded.decode(), z = encode_value_page(other, x, all_used()).decode();
                of_tokens.add(x, y);
                for (size_t i = 0; i < x.size(); ++i) {
                    miss[i % dim] += x[i] - y[i];
                    other_miss[i % dim] += x[i] - z[i];
                    sum[i % dim] += x[i];
                }
            }
            const auto length = [](const std::vector<double> & v) {
                return std::sqrt(std::inner_product(v.begin(), v.end(), v.begin(), 0.0));
            };
            EXPECT_LT(length(miss), std::max(length(other_miss), 0.0004 * length(sum)));
            EXPECT_LT(std::sqrt(of_tokens.nmse()), 0.8 * noise);
        }
    }
}

TEST(TrellisValues, AMeanIsOnlyWhereItHelpsEveryToken) {
    Random rng(41);
    SCOPED_TRACE(rng.trace());
    const int dim = 64;
    const ValueLayout layout = make_value_layout(preset("t1.65"), dim, 1);
    std::vector<float> x = rng.normals(static_cast<size_t>(dim) * page_tokens);
    EXPECT_FALSE(encode_value_page(layout, x, all_used()).view().is_still()) << "tokens that have nothing in common";
    for (size_t i = 0; i < x.size(); ++i) x[i] = x[i % dim] + 0.2f * x[i];
    EXPECT_TRUE(encode_value_page(layout, x, all_used()).view().is_still());
    for (int c = 0; c < dim; ++c) x[50 * dim + c] *= 0.05f;
    EXPECT_FALSE(encode_value_page(layout, x, all_used()).view().is_still()) << "a short token";
    for (int c = 0; c < dim; ++c) x[50 * dim + c] = 65504.0f;
    const EncodedValues far = encode_value_page(layout, x, all_used());
    const std::vector<float> y = far.decode();
    Fidelity of_others;
    for (int i = 0; i < dim * page_tokens; ++i)
        if (i / dim != 50) of_others.add(x[i], y[i]);
    EXPECT_LT(of_others.nmse(), 0.2) << "a token without measure";
    std::fill(x.begin(), x.end(), 65504.0f);
    for (size_t i = 0; i < x.size(); ++i) x[i] *= rng.normal() > 0 ? 1.0f : -1.0f;
    EXPECT_LT(encode_value_page(layout, x, all_used()).view().meta[page_tokens - 1], still_mark) << "the mark is no scale";
}

// Values of one bit leave the last slots of a still page without codes: what happens there must not be lost.
TEST(TrellisValues, ATokenThatDiffersIsSaidInEverySlot) {
    Random rng(44);
    SCOPED_TRACE(rng.trace());
    const int dim = 64;
    for (const char * name : {"k2vt1", "k2vt1.5", "k2vt2"}) {
        for (const bool moving : {false, true}) {
            for (const int token : {3, 90, 127}) {
                const ValueLayout layout = make_value_layout(preset(name), dim, 1);
                const std::vector<float> picture = rng.normals(dim), way = rng.normals(dim), other = rng.normals(dim);
                std::vector<float> x = rng.normals(static_cast<size_t>(dim) * page_tokens, 0.1f);
                for (int i = 0; i < dim * page_tokens; ++i)
                    x[i] += picture[i % dim] + (moving ? static_cast<float>(i / dim) / 32 * way[i % dim] : 0.0f);
                std::copy(other.begin(), other.end(), x.begin() + token * dim);
                const std::vector<float> y = encode_value_page(layout, x, all_used()).decode();
                Fidelity of_it;
                for (int i = token * dim; i < (token + 1) * dim; ++i) of_it.add(x[i], y[i]);
                EXPECT_LT(of_it.nmse(), 1.3) << name << " " << token << (moving ? " moving" : "");
            }
        }
    }
}

// Half of the tokens protected: their quads leave no room for a direction of so few channels.
TEST(PageMean, ADirectionWithoutRoomIsRefused) {
    const ValueLayout layout = make_value_layout(preset("t1.15-stp0.5"), 8, 1);
    const int units = 16;
    ASSERT_FALSE(layout.has_room_for_direction(units));
    std::vector<uint8_t> page(layout.page_bytes(units));
    std::fill_n(page.begin(), page_tokens / 16, uint8_t{0xff}); // 64 tokens
    page.back() = still_mark;
    uint8_t & scale = page[page_tokens / 8 + layout.head_codes(units) - page_mean_bytes(8) + 1];
    EXPECT_FALSE(is_sound(layout, page.data(), page.size()));
    scale = 1;
    EXPECT_TRUE(is_sound(layout, page.data(), page.size())) << "a mean alone";
    scale = 0;
    page.back() = 1;
    EXPECT_TRUE(is_sound(layout, page.data(), page.size())) << "not still";
}

TEST(PageMean, EveryNumberComesBack) {
    const int dim = 72;
    std::vector<uint8_t> bytes(page_mean_bytes(dim));
    for (int first = -2048; first + dim <= 2048; first += 61) {
        std::vector<float> mean(dim);
        for (int c = 0; c < dim; ++c) mean[c] = static_cast<float>(first + c) / 2048.0f;
        mean[first & 63] = -1.0f; // the scale is 1 throughout
        const std::vector<float> want = mean;
        bytes[1] = store_shared_vector(mean.data(), dim, &bytes[2]);
        for (int c = 0; c < dim; ++c)
            ASSERT_NEAR(mean[c], want[c], 0.5f * log_scale_value(bytes[1]) / 2048.0f * 1.01f) << c;
        std::vector<float> again = mean;
        std::vector<uint8_t> same(bytes.size());
        same[1] = store_shared_vector(again.data(), dim, &same[2]);
        for (int c = 0; c < dim; ++c)
            ASSERT_NEAR(again[c], mean[c], 0.5f * log_scale_value(same[1]) / 2048.0f * 1.01f) << c;
    }
    std::vector<float> nothing(dim);
    store_shared_vector(nothing.data(), dim, &bytes[2]);
    for (const float x : nothing) EXPECT_EQ(x, 0.0f);
}

TEST(TrellisValues, TokensDoNotTouchEachOther) {
    Random rng(38);
    SCOPED_TRACE(rng.trace());
    const int dim = 80;
    const ValueLayout layout = make_value_layout(preset("t1.65"), dim, 1);
    std::vector<float> x = rng.normals(static_cast<size_t>(dim) * page_tokens);
    const std::vector<float> before = encode_value_page(layout, x, all_used()).decode();
    for (const float bad : {std::numeric_limits<float>::quiet_NaN(), 65504.0f, 0.0f}) {
        for (int c = 0; c < dim; ++c) x[50 * dim + c] = bad;
        const std::vector<float> after = encode_value_page(layout, x, all_used()).decode();
        for (int i = 0; i < dim * page_tokens; ++i) {
            ASSERT_TRUE(std::isfinite(after[i]));
            ASSERT_TRUE(i / dim == 50 || after[i] == before[i]) << bad << " token " << i / dim;
        }
    }
}

} // namespace
} // namespace vidkv
