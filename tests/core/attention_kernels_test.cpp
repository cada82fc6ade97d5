// Each kernel by itself: decoding bit for bit, arithmetic within its bound (docs/numerics.md).
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/bytes.h"
#include "base/half.h"
#include "core/random.h"
#include "cpu/dispatch.h"

namespace vidkv {
namespace {

using test::Random;

constexpr double unit = 0x1p-24;
constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr int head_dims[] = {8, 24, 64, 72, 80, 96, 112, 128, 136, 256, 512};
constexpr int group_sizes[] = {32, 64, 96, 128};

std::vector<const Kernels *> supported(bool scalar_too) {
    std::vector<const Kernels *> result;
    for (const KernelChoice & choice : kernel_choices()) {
        if (choice.supported() && (scalar_too || choice.kernels != &scalar_kernels)) result.push_back(choice.kernels);
    }
    return result;
}

vidkv_params params_of(float key_bits, float value_bits, int group_size) {
    return {key_bits, value_bits, group_size, 128, 4};
}

// Any codes; `halves` f16 numbers in front that are finite.
std::vector<uint8_t> random_block(Random & rng, size_t bytes, size_t halves) {
    std::vector<uint8_t> block(bytes);
    for (uint8_t & byte : block) byte = static_cast<uint8_t>(rng.integer(0, 255));
    for (size_t i = 0; i < halves; ++i) store_at(block.data(), i, float_to_half(rng.normal(3.0f)));
    return block;
}

std::vector<uint16_t> random_halves(Random & rng, size_t n) {
    std::vector<uint16_t> halves(n);
    for (uint16_t & h : halves) h = float_to_half(rng.normal(rng.integer(0, 9) ? 2.0f : 1e-6f));
    return halves;
}

// Runs body for each vector instruction set and shape, or skips visibly.
template <typename Body> void for_each_fast(Body body) {
    const std::vector<const Kernels *> fast = supported(false);
    if (fast.empty()) GTEST_SKIP() << "this machine has none of the vector instruction sets in this build";
    for (const Kernels * kernels : fast) {
        for (const int head_dim : head_dims) {
            for (const int group_size : group_sizes) {
                Random rng(static_cast<uint64_t>(head_dim * 1000 + group_size));
                SCOPED_TRACE(std::string(kernels->name) + " head_dim " + std::to_string(head_dim) + " group " +
                             std::to_string(group_size) + " " + rng.trace());
                body(*kernels, head_dim, group_size, rng);
            }
        }
    }
}

TEST(AttentionKernels, KeysDecodeBitForBit) {
    for_each_fast([](const Kernels & kernels, int head_dim, int group_size, Random & rng) {
        for (const float bits : {1.0f, 1.25f, 1.5f, 1.6f, 2.0f}) {
            const KeyLayout layout = make_key_layout(params_of(bits, 2, group_size), head_dim);
            const std::vector<uint8_t> block = random_block(rng, layout.bytes, layout.codes / 2);
            std::vector<float> want(static_cast<size_t>(head_dim) * group_size), got(want.size());
            scalar_kernels.decode_keys(layout, block.data(), want.data());
            kernels.decode_keys(layout, block.data(), got.data());
            EXPECT_EQ(got, want) << bits;
        }
    });
}

TEST(AttentionKernels, ValuesDecodeBitForBit) {
    for_each_fast([](const Kernels & kernels, int head_dim, int group_size, Random & rng) {
        for (const float bits : {1.58f, 2.0f}) {
            const ValueLayout layout = make_value_layout(params_of(2, bits, group_size), head_dim);
            const std::vector<uint8_t> block = random_block(rng, layout.bytes, layout.codes / 2);
            std::vector<float> want(static_cast<size_t>(head_dim) * group_size), got(want.size());
            scalar_kernels.decode_values(layout, block.data(), want.data());
            kernels.decode_values(layout, block.data(), got.data());
            EXPECT_EQ(got, want) << bits;
        }
    });
}

TEST(AttentionKernels, OpenRowsAreExact) {
    for_each_fast([](const Kernels & kernels, int head_dim, int group_size, Random & rng) {
        const int64_t stride = head_dim + 8;
        const std::vector<uint16_t> rows = random_halves(rng, static_cast<size_t>(stride * group_size));
        std::vector<float> want(static_cast<size_t>(head_dim) * group_size), got(want.size());
        for (const int count : {1, 7, 8, 17, group_size - 1, group_size}) {
            scalar_kernels.open_keys(rows.data(), stride, count, head_dim, group_size, want.data());
            kernels.open_keys(rows.data(), stride, count, head_dim, group_size, got.data());
            EXPECT_EQ(got, want) << count;
            EXPECT_TRUE(kernels.open_values(rows.data(), stride, count, head_dim, got.data()));
            scalar_kernels.open_values(rows.data(), stride, count, head_dim, want.data());
            EXPECT_EQ(got, want) << count;
        }
        for (const int tokens : {8, 24}) { // sink cells make narrow tiles
            scalar_kernels.open_keys(rows.data(), stride, tokens - 3, head_dim, tokens, want.data());
            kernels.open_keys(rows.data(), stride, tokens - 3, head_dim, tokens, got.data());
            EXPECT_EQ(got, want) << tokens;
        }
    });
}

TEST(AttentionKernels, OpenValuesReportsWhatIsNotFinite) {
    for (const Kernels * kernels : supported(true)) {
        SCOPED_TRACE(kernels->name);
        std::vector<float> tile(64);
        for (const int bits : {0x7c00, 0xfc00, 0x7e00, 0x7c01}) {
            std::vector<uint16_t> rows(64, 0x7bff); // the largest finite number
            EXPECT_TRUE(kernels->open_values(rows.data(), 16, 4, 16, tile.data()));
            rows[37] = static_cast<uint16_t>(bits);
            EXPECT_FALSE(kernels->open_values(rows.data(), 16, 4, 16, tile.data()));
            EXPECT_TRUE(kernels->open_values(rows.data(), 16, 2, 16, tile.data())) << "row 2 is not asked for";
        }
    }
}

TEST(AttentionKernels, MasksKnowWhetherAnythingIsVisible) {
    for (const Kernels * kernels : supported(true)) {
        SCOPED_TRACE(kernels->name);
        for (int n = 0; n <= 33; ++n) {
            std::vector<uint16_t> mask(static_cast<size_t>(n), 0xfc00);
            std::vector<float> bias(static_cast<size_t>(n));
            EXPECT_FALSE(kernels->load_mask(mask.data(), n, bias.data()));
            for (int i = 0; i < n; ++i) {
                mask[i] = float_to_half(-1.5f);
                EXPECT_TRUE(kernels->load_mask(mask.data(), n, bias.data()));
                EXPECT_EQ(bias[i], -1.5f);
                EXPECT_EQ(std::ranges::count(bias, -infinity), n - 1);
                mask[i] = 0xfc00;
            }
        }
    }
}

TEST(AttentionKernels, ProductsStayInTheirBound) {
    for (const Kernels * kernels : supported(true)) {
        for (int rows = 1; rows <= 15; ++rows) {
            Random rng(static_cast<uint64_t>(rows));
            const int inner = rng.integer(1, 130), width = 8 * rng.integer(1, 17);
            const int64_t a_stride = inner + 3, m_stride = width + 8, out_stride = width + 1;
            SCOPED_TRACE(std::string(kernels->name) + " " + std::to_string(rows) + "x" + std::to_string(inner) + "x" +
                         std::to_string(width) + " " + rng.trace());
            const std::vector<float> a = rng.normals(static_cast<size_t>(rows * a_stride));
            const std::vector<float> m = rng.normals(static_cast<size_t>(inner * m_stride));
            const std::vector<float> before = rng.normals(static_cast<size_t>(rows * out_stride));
            std::vector<float> out = before;
            kernels->multiply_add({a.data(), a_stride, m.data(), m_stride, out.data(), out_stride, rows, inner, width});
            for (int r = 0; r < rows; ++r) {
                double want = 0, magnitude = 0;
                for (int c = 0; c < width; ++c) {
                    want = before[r * out_stride + c];
                    magnitude = std::abs(want);
                    for (int j = 0; j < inner; ++j) {
                        const double term = static_cast<double>(a[r * a_stride + j]) * m[j * m_stride + c];
                        want += term;
                        magnitude += std::abs(term);
                    }
                    EXPECT_NEAR(out[r * out_stride + c], want, (inner + 2) * unit * magnitude);
                }
                EXPECT_EQ(out[r * out_stride + width], before[r * out_stride + width]) << "wrote past the row";
            }
        }
    }
}

TEST(AttentionKernels, ExponentialAndTanhStayInTheirBounds) {
    for (const Kernels * kernels : supported(true)) {
        SCOPED_TRACE(kernels->name);
        for (int step = 0; step < 20000; ++step) {
            const float x = -0.005f * static_cast<float>(step);
            float scores[8] = {0, x, x, x, x, x, x, x};
            SoftmaxState state;
            kernels->softmax_step(scores, 8, {1.0f, 0.0f}, nullptr, 1.0f, state);
            const double want = std::exp(static_cast<double>(x));
            ASSERT_NEAR(scores[1], want, 4 * unit * want + std::exp(-87.0)) << x;
            ASSERT_EQ(scores[0], 1.0f);
            ASSERT_NEAR(state.sum, 1 + 7 * want, 16 * unit * (1 + 7 * want));
        }
        for (int step = -1000; step <= 1000; ++step) { // the maximum comes out as it went in: softcap * tanh
            const float x = 0.01f * static_cast<float>(step);
            float scores[8] = {x, x, x, x, x, x, x, x};
            SoftmaxState state;
            kernels->softmax_step(scores, 8, {1.0f, 30.0f}, nullptr, 1.0f, state);
            ASSERT_NEAR(state.maximum, 30 * std::tanh(static_cast<double>(x)), 12 * unit * 30) << x;
        }
    }
}

TEST(AttentionKernels, SoftmaxStepsAddUp) {
    for (const Kernels * kernels : supported(true)) {
        SCOPED_TRACE(kernels->name);
        SoftmaxState state;
        const float nothing[8] = {-infinity, -infinity, -infinity, -infinity, -infinity, -infinity, -infinity, -infinity};
        float hidden[8] = {1, 2, 3, 4, 5, 6, 7, std::numeric_limits<float>::quiet_NaN()};
        EXPECT_EQ(kernels->softmax_step(hidden, 8, {}, nothing, 1.0f, state), 1.0f);
        EXPECT_EQ(state.sum, 0.0f);
        EXPECT_EQ(std::ranges::count(hidden, 0.0f), 8);
        float low[8] = {}, high[8] = {2, 2, 2, 2, 2, 2, 2, 2};
        kernels->softmax_step(low, 8, {}, nullptr, 1.0f, state);
        EXPECT_EQ(state.maximum, 0.0f);
        EXPECT_EQ(state.sum, 8.0f);
        const float factor = kernels->softmax_step(high, 8, {}, nullptr, 1.0f, state);
        EXPECT_NEAR(factor, std::exp(-2.0), 4 * unit);
        EXPECT_EQ(state.maximum, 2.0f);
        EXPECT_NEAR(state.sum, 8 + 8 * std::exp(-2.0), 1e-6);
        float infinite[8] = {1, infinity, 1, 1, 1, 1, 1, 1};
        EXPECT_EQ(kernels->softmax_step(infinite, 8, {}, nullptr, 1.0f, state), 0.0f);
        EXPECT_EQ(infinite[1], 1.0f);
        EXPECT_EQ(state.sum, 1.0f);
        float lost[8] = {1, std::numeric_limits<float>::quiet_NaN(), 1, 1, 1, 1, 1, 1};
        SoftmaxState fresh;
        kernels->softmax_step(lost, 8, {}, nullptr, 1.0f, fresh);
        EXPECT_EQ(fresh.maximum, 1.0f);
        EXPECT_TRUE(std::isnan(fresh.sum));
    }
}

} // namespace
} // namespace vidkv
