#include <gtest/gtest.h>

#include <cmath>

#include "base/bytes.h"
#include "base/half.h"

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

} // namespace
} // namespace vidkv
