// Bytes hidden in f16 rows: what they do to the numbers, and that they are found again.
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "hidden_rows.h"

namespace vidkv_ggml {

namespace {

double to_double(uint16_t half) {
    const int exponent = half >> 10 & 31, mantissa = half & 1023;
    const double magnitude = exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
    return half & 0x8000 ? -magnitude : magnitude;
}

TEST(HiddenRows, EveryNumberStaysNear) {
    std::mt19937 random(7);
    for (int bits = least_hidden_bits; bits <= most_hidden_bits; ++bits) {
        for (uint32_t base = 0; base < 0x10000; base += 64) {
            std::vector<uint16_t> row(64), changed;
            for (uint32_t i = 0; i < 64; ++i)
                row[i] = static_cast<uint16_t>(((base + i) & 0x7c00) == 0x7c00 ? 0x7bff : base + i);
            std::vector<uint8_t> bytes(static_cast<size_t>(hidden_bytes(64, bits))), found(bytes.size());
            for (uint8_t & byte : bytes) byte = static_cast<uint8_t>(random());
            changed = row;
            hide(changed.data(), 64, {base, 100, 4, bits}, bytes.data());
            for (int i = 0; i < 64; ++i) {
                const double before = to_double(row[i]), after = to_double(changed[i]);
                EXPECT_TRUE(std::isfinite(after));
                EXPECT_NE(changed[i] & 0x7c00, 0x7c00);
                const double smallest = std::ldexp(1, -14); // of the numbers with a full mantissa
                EXPECT_LE(std::abs(after - before), std::max(0.004 * std::abs(before), 0.008 * smallest))
                    << before << " " << after;
            }
            const auto seen = find_tag(changed.data(), 64);
            ASSERT_TRUE(seen);
            EXPECT_EQ(seen->page, base);
            EXPECT_EQ(seen->token, 100);
            EXPECT_EQ(seen->first, 4);
            EXPECT_EQ(seen->bits, bits);
            reveal(changed.data(), 64, bits, found.data());
            EXPECT_EQ(found, bytes);
        }
    }
}

TEST(HiddenRows, PlainRowsHaveNoTag) {
    std::mt19937 random(8);
    for (int i = 0; i < 100000; ++i) {
        std::vector<uint16_t> row(64);
        for (uint16_t & x : row) x = static_cast<uint16_t>(random());
        EXPECT_FALSE(find_tag(row.data(), 64));
    }
    EXPECT_FALSE(find_tag(std::vector<uint16_t>(64, 0).data(), 64));
    EXPECT_FALSE(find_tag(std::vector<uint16_t>(8, 1).data(), 8));
}

TEST(HiddenRows, Pages) {
    for (const size_t size : {size_t(0), size_t(1), size_t(124 * 9 - 16), size_t(1500), size_t(124 * 17 - 16)}) {
        std::vector<uint8_t> page(size);
        for (size_t i = 0; i < size; ++i) page[i] = static_cast<uint8_t>(i * 7);
        HiddenPage hidden = to_hidden(page, 64, 4); // 64 channels carry 9 bytes a row, or 17
        EXPECT_EQ(hidden.bits, size <= 124 * 9 - 16 ? 2 : 3);
        EXPECT_EQ(from_hidden(hidden.bytes), page);
        if (size > 0) hidden.bytes[16 + size / 2] ^= 1;
        EXPECT_EQ(from_hidden(hidden.bytes).has_value(), size == 0);
    }
    EXPECT_EQ(to_hidden(std::vector<uint8_t>(124 * 17 - 15), 64, 4).bits, 0); // too many for any row
}

} // namespace

} // namespace vidkv_ggml
