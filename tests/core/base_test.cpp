#include <gtest/gtest.h>

#include <clocale>
#include <string>

#include <cmath>

#include "base/bytes.h"
#include "base/half.h"

#include "vidkv/vidkv.h"

namespace vidkv {
namespace {

TEST(Half, EveryValueSurvivesTheRoundTrip) {
    for (unsigned h = 0; h < 65536; ++h) {
        const uint16_t half = static_cast<uint16_t>(h);
        const float f = half_to_float(half);
        if (std::isnan(f)) {
            EXPECT_TRUE(std::isnan(half_to_float(float_to_half(f))));
        } else {
            ASSERT_EQ(float_to_half(f), half) << f;
        }
    }
}

TEST(Half, RoundsToNearestEven) {
    for (unsigned h = 0; h < 0x7bff; ++h) {
        const double low = half_to_float(static_cast<uint16_t>(h)), high = half_to_float(static_cast<uint16_t>(h + 1));
        const float middle = static_cast<float>((low + high) / 2); // exact: a float holds one more bit
        ASSERT_EQ(float_to_half(middle), h % 2 ? h + 1 : h) << middle;
        ASSERT_EQ(float_to_half(std::nextafter(middle, 1e9f)), h + 1);
        ASSERT_EQ(float_to_half(std::nextafter(middle, 0.0f)), h);
    }
    EXPECT_EQ(float_to_half(65519.996f), 0x7bff);
    EXPECT_EQ(float_to_half(65520.0f), 0x7c00);
    EXPECT_EQ(float_to_half(-1e30f), 0xfc00);
    EXPECT_EQ(float_to_half(-0.0f), 0x8000);
}

TEST(ByteReader, StopsAtTheEnd) {
    const uint8_t data[] = {1, 0, 2};
    ByteReader in(data, sizeof data);
    EXPECT_EQ(in.number<uint16_t>(), 1);
    EXPECT_EQ(in.number<uint16_t>(), 0);
    EXPECT_FALSE(in.ok());
    EXPECT_EQ(in.number<uint8_t>(), 0) << "after a short read everything fails";
}

TEST(Version, HeaderAndLibraryAgree) {
    EXPECT_EQ(std::string(vidkv_version()), std::to_string(VIDKV_VERSION_MAJOR) + "." +
                                                std::to_string(VIDKV_VERSION_MINOR) + "." +
                                                std::to_string(VIDKV_VERSION_PATCH));
}

// A host may have chosen a decimal comma; names of presets and messages keep the point.
TEST(Locale, PresetsAreReadWithAPoint) {
    const std::string before = std::setlocale(LC_ALL, nullptr);
    bool found = false;
    for (const char * name : {"de_DE.UTF-8", "de_DE.utf8", "fr_FR.UTF-8"}) found = found || std::setlocale(LC_ALL, name);
    vidkv_params params;
    EXPECT_EQ(vidkv_params_from_preset("k1.5v1.58-stp0.2", &params), VIDKV_OK);
    EXPECT_EQ(params.key_bits, 1.5f);
    EXPECT_EQ(params.protect, 0.2f);
    params.key_bits = 7.25f;
    EXPECT_EQ(vidkv_params_check(&params, 64), VIDKV_E_ARGUMENT);
    EXPECT_NE(std::string(vidkv_last_error()).find("7.25"), std::string::npos) << vidkv_last_error();
    for (const char * name : {"k1.5.2v2", "k.5v2", "kv2", "k1.5v", "k1e0v2", "k+1v2"})
        EXPECT_EQ(vidkv_params_from_preset(name, &params), VIDKV_E_ARGUMENT);
    std::setlocale(LC_ALL, before.c_str());
    if (!found) GTEST_SKIP() << "no locale with a decimal comma is installed; read in the one at hand only";
}

TEST(Sizes, BeyondTheBoundsAreRefused) {
    vidkv_params params;
    ASSERT_EQ(vidkv_params_from_preset("kt4vt3", &params), VIDKV_OK);
    vidkv_store * store = nullptr;
    for (const vidkv_store_shape & shape : {vidkv_store_shape{VIDKV_KEYS, 1 << 24, 512, 128, 1},
                                            {VIDKV_KEYS, 160 * 512, 512, 128, 1},
                                            {VIDKV_VALUES, 64, 64, 128, 1 << 30},
                                            {VIDKV_VALUES, 64, 64, int64_t{1} << 40, 1}}) {
        EXPECT_EQ(vidkv_store_create(&shape, &params, &store), VIDKV_E_ARGUMENT) << shape.channels;
        EXPECT_EQ(vidkv_planned_bytes(&shape, &params), 0u);
    }
    vidkv_cache * cache = nullptr;
    for (const vidkv_cache_shape & shape :
         {vidkv_cache_shape{1, 1 << 23, 512, 128, 1}, {1 << 30, 1, 64, 128, 1}, {1, INT32_MAX, 512, 128, 1}}) {
        EXPECT_EQ(vidkv_cache_create(&shape, &params, &cache), VIDKV_E_ARGUMENT);
    }
    const vidkv_store_shape small{VIDKV_VALUES, 64, 64, 300, 1};
    ASSERT_EQ(vidkv_store_create(&small, &params, &store), VIDKV_OK);
    for (const int64_t page : {int64_t{1} << 57, int64_t{3}, int64_t{-1}, INT64_MAX})
        EXPECT_EQ(vidkv_store_release_page(store, 0, page), VIDKV_E_ARGUMENT);
    vidkv_store_free(store);
}

} // namespace
} // namespace vidkv
