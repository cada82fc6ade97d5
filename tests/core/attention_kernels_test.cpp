// Each kernel by itself: every instruction set must give the bits of the scalar specification.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "base/softmax_math.h"
#include "codec/trit.h"
#include "core/kernel_tables.h"
#include "kernels/quad_order.h"

namespace vidkv {
namespace {

using namespace test;

constexpr QuadCode codes[] = {QuadCode::trellis1, QuadCode::trellis1_5, QuadCode::trellis2,
                              QuadCode::trellis3, QuadCode::uniform1,   QuadCode::uniform2,
                              QuadCode::uniform4, QuadCode::uniform5,   QuadCode::uniform6};

TEST(AttentionKernels, QuadsUnpackExactly) {
    for_each_fast(4, [](const Kernels & kernels, Random & rng) {
        for (const int rows : head_dims) {
            for (const QuadCode code : codes) {
                const int quads = rng.integer(1, 9), stride = round_up(rows, 16) * 4;
                SCOPED_TRACE("code " + std::to_string(static_cast<int>(code)) + " rows " + std::to_string(rows));
                const size_t bytes = quad_bytes(code, rows) * static_cast<size_t>(quads),
                             size = static_cast<size_t>(stride * quads);
                std::vector<uint8_t> packed(bytes); // exactly: a sanitizer sees what is read past the end
                for (uint8_t & byte : packed) byte = static_cast<uint8_t>(rng.integer(0, 255));
                Aligned<uint8_t> want(size + level_slack), got(size + level_slack);
                scalar_kernels.unpack_quads(code, packed.data(), rows, quads, stride, want.data());
                kernels.unpack_quads(code, packed.data(), rows, quads, stride, got.data());
                for (int q = 0; q < quads; ++q) {
                    for (int i = 0; i < 4 * rows; ++i) {
                        const size_t at = static_cast<size_t>(q * stride + i);
                        ASSERT_EQ(got[at], want[at]) << "quad " << q << " row " << i / 4 << " lane " << i % 4;
                    }
                }
            }
        }
    });
}

TEST(AttentionKernels, TernaryDigitsUnpackExactly) {
    for_each_fast(1, [](const Kernels & kernels, Random & rng) {
        for (const int bytes : {1, 15, 16, 33, 63, 64, 100, 256, 410, 820}) {
            Aligned<uint8_t> packed = random_bytes(rng, static_cast<size_t>(bytes)), want(5 * 820 + level_slack),
                             got(5 * 820 + level_slack);
            if (bytes == 256) std::iota(packed.data(), packed.data() + 256, uint8_t{0});
            scalar_kernels.unpack_ternary(packed.data(), bytes, want.data());
            kernels.unpack_ternary(packed.data(), bytes, got.data());
            for (size_t i = 0; i < static_cast<size_t>(5 * bytes); ++i) ASSERT_EQ(got[i], want[i]) << bytes << " " << i;
        }
    });
}

TEST(AttentionKernels, NumbersWidenExactly) {
    for_each_fast(1, [](const Kernels & kernels, Random &) {
        std::vector<uint16_t> halves(65536);
        std::iota(halves.begin(), halves.end(), uint16_t{0});
        std::vector<float> want(65536), got(65536);
        for (const int n : {65536, 65528, 65522, 65517, 7}) {
            std::ranges::fill(want, 7.0f), std::ranges::fill(got, 7.0f);
            scalar_kernels.load_halves(reinterpret_cast<const uint8_t *>(halves.data()), n, want.data());
            kernels.load_halves(reinterpret_cast<const uint8_t *>(halves.data()), n, got.data());
            expect_same(got, want);
        }
        std::vector<uint8_t> scales(256);
        std::iota(scales.begin(), scales.end(), uint8_t{0});
        std::vector<float> center(65536), other(65536);
        scalar_kernels.load_grid(reinterpret_cast<const uint8_t *>(halves.data()),
                                 reinterpret_cast<const uint8_t *>(halves.data() + 20), 65500, 1.5f, want.data(),
                                 center.data());
        kernels.load_grid(reinterpret_cast<const uint8_t *>(halves.data()),
                          reinterpret_cast<const uint8_t *>(halves.data() + 20), 65500, 1.5f, got.data(), other.data());
        expect_same(got, want);
        expect_same(other, center);
        scalar_kernels.load_log_scales(scales.data(), 256, 1.7f, want.data());
        kernels.load_log_scales(scales.data(), 256, 1.7f, got.data());
        expect_same(got, want);
    });
}

TEST(AttentionKernels, KeyScalesAndMeansWidenExactly) {
    for_each_fast(20, [](const Kernels & kernels, Random & rng) {
        const int n = 8 * rng.integer(1, 32);
        std::vector<uint8_t> meta(static_cast<size_t>(2 * n));
        for (uint8_t & byte : meta) byte = static_cast<uint8_t>(rng.integer(0, 255));
        Aligned<float> units = random_floats(rng, static_cast<size_t>(n));
        std::vector<float> want(static_cast<size_t>(n)), got(want), want_center(want), got_center(want);
        scalar_kernels.load_key_scales(meta.data(), n, units.data(), want.data(), want_center.data());
        kernels.load_key_scales(meta.data(), n, units.data(), got.data(), got_center.data());
        expect_same(got, want);
        expect_same(got_center, want_center);
    });
}

TEST(AttentionKernels, QuadsAreSortedAlike) {
    for_each_fast(100, [](const Kernels & kernels, Random & rng) {
        const int first = 16 * rng.integer(0, 2), quads = 2 * rng.integer(1, most_sorted / 2), end = first + quads;
        const int kinds = rng.integer(1, 10);                     // codes: the more, the more of them are in use
        std::vector<uint8_t> bytes(static_cast<size_t>(end / 2)); // exactly: a sanitizer sees what is read past the end
        for (uint8_t & byte : bytes)
            byte = static_cast<uint8_t>(rng.integer(0, kinds - 1) | rng.integer(0, kinds - 1) << 4);
        struct Sorted {
            std::vector<KeyQuad> quads = std::vector<KeyQuad>(2 * most_sorted);
            uint8_t counts[code_count] = {};
            Aligned<float> step = Aligned<float>(4 * 3 * most_sorted);
            Aligned<uint8_t> offset = Aligned<uint8_t>(4 * 3 * most_sorted);
            uint32_t end;
            Sorted(const Kernels & by, const std::vector<uint8_t> & packed, int from, int to)
                : end(by.sort_quads(packed.data(), from, to, 320, {quads.data(), counts, step.data(), offset.data()})) {}
        } want(scalar_kernels, bytes, first, end), got(kernels, bytes, first, end);
        ASSERT_EQ(got.end, want.end);
        const int n = std::accumulate(want.counts, want.counts + code_count, 0);
        for (int i = 0; i < code_count; ++i) ASSERT_EQ(got.counts[i], want.counts[i]) << i;
        for (size_t i = 0; i < static_cast<size_t>(n); ++i) {
            ASSERT_EQ(got.quads[i].packed, want.quads[i].packed) << i;
            ASSERT_EQ(got.quads[i].factors, want.quads[i].factors) << i;
            ASSERT_EQ(got.quads[i].quad, want.quads[i].quad) << i;
        }
        expect_same(got.step.copy(), want.step.copy());
        EXPECT_EQ(got.offset.copy(), want.offset.copy());
    });
}

TEST(AttentionKernels, MasksKnowWhatIsVisible) {
    for (const KernelChoice & choice : kernel_choices()) {
        if (!choice.supported()) continue;
        SCOPED_TRACE(choice.kernels->name);
        for (int n = 1; n <= 65; ++n) {
            std::vector<uint16_t> mask(static_cast<size_t>(n), 0xfc00);
            std::vector<float> bias(static_cast<size_t>(n));
            EXPECT_EQ(choice.kernels->load_mask(mask.data(), n, bias.data()), MaskKind::hidden);
            for (int i = 0; i < n; ++i) {
                mask[i] = float_to_half(-1.5f);
                EXPECT_EQ(choice.kernels->load_mask(mask.data(), n, bias.data()), MaskKind::mixed);
                EXPECT_EQ(bias[i], -1.5f);
                mask[i] = 0xfc00;
            }
            std::ranges::fill(mask, uint16_t{0});
            EXPECT_EQ(choice.kernels->load_mask(mask.data(), n, bias.data()), MaskKind::zero);
            mask[n / 2] = 0xfc00;
            EXPECT_EQ(choice.kernels->load_mask(mask.data(), n, bias.data()), n == 1 ? MaskKind::hidden : MaskKind::mixed);
            if (n == 1) continue;
            EXPECT_EQ(std::ranges::count(bias, 0.0f), n - 1);
            EXPECT_EQ(std::ranges::count(bias, -infinity), 1);
        }
    }
}

TEST(AttentionKernels, HalfRowsScoreAndAddUpTheSameBits) {
    for_each_fast(60, [](const Kernels & kernels, Random & rng) {
        const int head_dim = head_dims[rng.integer(0, 10)], rows = rng.integer(1, row_block),
                  padded = round_up(head_dim, 64);
        const int count = rng.integer(1, page_tokens);
        const int64_t stride = head_dim + 8 * rng.integer(0, 2);
        Aligned<float> q = random_floats(rng, static_cast<size_t>(padded) * row_block);
        std::vector<uint16_t> halves = random_halves(rng, static_cast<size_t>(stride * (count - 1) + head_dim)).copy();
        Aligned<float> want(row_block * page_tokens), got(row_block * page_tokens);
        const HalfRows half_rows{halves.data(), stride, count, head_dim};
        scalar_kernels.score_halves(q.data(), padded, rows, half_rows, want.data());
        kernels.score_halves(q.data(), padded, rows, half_rows, got.data());
        for (int r = 0; r < rows; ++r) {
            for (int t = 0; t < count; ++t) {
                const size_t at = static_cast<size_t>(r * page_tokens + t);
                ASSERT_TRUE(same(got[at], want[at])) << r << " " << t << ": " << got[at] << " " << want[at];
            }
        }
        Aligned<float> weights = random_floats(rng, row_block * page_tokens);
        for (size_t i = 0; i < row_block * page_tokens; ++i) weights[i] = rng.integer(0, 3) ? std::fabs(weights[i]) : 0.0f;
        if (rng.integer(0, 1))
            halves[static_cast<size_t>(rng.integer(0, static_cast<int>(halves.size()) - 1))] =
                rng.integer(0, 1) ? 0x7c00 : 0x7e00;
        Aligned<float> sums = random_floats(rng, static_cast<size_t>(padded) * row_block),
                       others(static_cast<size_t>(padded) * row_block);
        std::copy_n(sums.data(), padded * row_block, others.data());
        scalar_kernels.add_halves(weights.data(), rows, half_rows, sums.data(), padded);
        kernels.add_halves(weights.data(), rows, half_rows, others.data(), padded);
        for (int r = 0; r < rows; ++r) {
            expect_same(values_of(&others[static_cast<size_t>(r * padded)], head_dim),
                        values_of(&sums[static_cast<size_t>(r * padded)], head_dim));
        }
    });
}

void expect_same_weights(int rows, const PackedWeights & got, const PackedWeights & want) {
    EXPECT_EQ(std::memcmp(got.w, want.w, static_cast<size_t>(rows) * operand_bytes), 0);
    expect_same(values_of(got.scale, rows), values_of(want.scale, rows));
    for (int g = 0; g < largest_groups; ++g) {
        expect_same(values_of(got.sum[g], rows), values_of(want.sum[g], rows));
        expect_same(values_of(got.total[g], rows), values_of(want.total[g], rows));
    }
    expect_same(values_of(got.along, rows), values_of(want.along, rows));
}

TEST(AttentionKernels, HadamardTransformsToTheSameBits) {
    for_each_fast(5, [](const Kernels & kernels, Random & rng) {
        for (int n = 1; n <= largest_head_dim; n *= 2) {
            Aligned<float> want = random_floats(rng, static_cast<size_t>(n)), got(static_cast<size_t>(n));
            std::copy_n(want.data(), n, got.data());
            scalar_kernels.hadamard(want.data(), n);
            kernels.hadamard(got.data(), n);
            expect_same(got.copy(), want.copy());
        }
    });
}

// packs: weights become int8 in the same call.
void expect_same_softmax(bool packs) {
    for_each_fast(60, [packs](const Kernels & kernels, Random & rng) {
        const int rows = rng.integer(1, row_block);
        Aligned<float> slot_scale = random_floats(rng, page_tokens);
        Aligned<float> along = random_floats(rng, page_tokens);
        for (size_t s = 0; s < page_tokens; ++s) slot_scale[s] = std::fabs(slot_scale[s]);
        const bool scaled = rng.integer(0, 1) == 1;
        const WeightRule rule{nullptr, scaled ? slot_scale.data() : nullptr, scaled ? 1 : 1 << rng.integer(0, 2),
                              rng.integer(0, 1) == 1, scaled && rng.integer(0, 1) ? along.data() : nullptr};
        Aligned<float> bias = random_floats(rng, page_tokens), want(row_block * page_tokens), got(row_block * page_tokens);
        for (size_t t = 0; t < page_tokens; ++t) {
            if (rng.integer(0, 2) == 0) bias[t] = -infinity;
        }
        std::vector<const float *> biases(row_block);
        std::vector<float> slopes(row_block), factors(row_block), other_factors(row_block);
        std::vector<SoftmaxState> states(row_block), others(row_block);
        const bool plain = rng.integer(0, 1) == 1; // no bias and no softcap in any row
        for (int tile = 0; tile < 6; ++tile) {
            const float level = rng.normal(rng.integer(0, 3) ? 4.0f : rng.integer(0, 1) ? 20.0f : 300.0f);
            for (size_t i = 0; i < row_block * page_tokens; ++i) {
                want[i] = level + rng.normal(8.0f);
                if (rng.integer(0, 5000) == 0) want[i] = rng.integer(0, 1) ? infinity : -infinity;
                if (!packs && rng.integer(0, 5000) == 0) want[i] = std::numeric_limits<float>::quiet_NaN();
            }
            for (int r = 0; r < rows; ++r) {
                biases[r] = !plain && rng.integer(0, 1) ? bias.data() : nullptr;
                slopes[r] = rng.normal();
            }
            std::copy_n(want.data(), row_block * page_tokens, got.data());
            const bool none = std::all_of(biases.begin(), biases.begin() + rows, [](const float * b) { return !b; });
            SoftmaxTile softmax{want.data(),
                                rows,
                                none && rng.integer(0, 3) ? nullptr : biases.data(),
                                slopes.data(),
                                !plain && rng.integer(0, 1) ? 30.0f : 0.0f,
                                states.data(),
                                factors.data()};
            PackedWeights packed{}, other_packed{};
            std::fill(factors.begin(), factors.end(), 1.0f); // stays where nothing is rescaled
            std::fill(other_factors.begin(), other_factors.end(), 1.0f);
            const bool rescales = packs ? scalar_kernels.weigh(softmax, rule, packed) : scalar_kernels.softmax(softmax);
            softmax.scores = got.data();
            softmax.states = others.data();
            softmax.factors = other_factors.data();
            ASSERT_EQ(packs ? kernels.weigh(softmax, rule, other_packed) : kernels.softmax(softmax), rescales);
            expect_same_weights(rows, other_packed, packed);
            for (int r = 0; r < rows; ++r) {
                ASSERT_TRUE(same(others[r].sum, states[r].sum)) << others[r].sum << " " << states[r].sum;
                ASSERT_EQ(others[r].reference, states[r].reference);
                ASSERT_TRUE(same(other_factors[r], factors[r]));
                if (packs) continue;
                expect_same(values_of(&got[static_cast<size_t>(r * page_tokens)], page_tokens),
                            values_of(&want[static_cast<size_t>(r * page_tokens)], page_tokens));
            }
        }
    });
}
TEST(AttentionKernels, SoftmaxGivesTheSameBits) { expect_same_softmax(false); }
TEST(AttentionKernels, WeighingGivesTheSameBits) { expect_same_softmax(true); }

TEST(AttentionKernels, WeightsPackToTheSameBits) {
    for_each_fast(60, [](const Kernels & kernels, Random & rng) {
        const int rows = rng.integer(1, row_block);
        Aligned<float> weights(row_block * page_tokens), slot_scale = random_floats(rng, page_tokens);
        for (size_t i = 0; i < row_block * page_tokens; ++i)
            weights[i] = rng.integer(0, 3) ? std::exp(rng.normal(4.0f)) : 0.0f;
        if (rng.integer(0, 4) == 0) std::fill_n(weights.data(), page_tokens, 0.0f);
        for (size_t s = 0; s < page_tokens; ++s) slot_scale[s] = std::fabs(slot_scale[s]);
        std::vector<uint8_t> token(page_tokens);
        std::iota(token.begin(), token.end(), uint8_t{0});
        for (int i = page_tokens - 1; i > 0; --i) std::swap(token[i], token[rng.integer(0, i)]);
        PackedWeights want{}, got{};
        Aligned<float> along = random_floats(rng, page_tokens);
        const bool scaled = rng.integer(0, 1) == 1;
        const WeightRule rule{rng.integer(0, 1) ? token.data() : nullptr, scaled ? slot_scale.data() : nullptr,
                              scaled ? 1 : 1 << rng.integer(0, 2), rng.integer(0, 1) == 1,
                              scaled && rng.integer(0, 1) ? along.data() : nullptr};
        scalar_kernels.pack_weights(weights.data(), rows, rule, want);
        kernels.pack_weights(weights.data(), rows, rule, got);
        expect_same_weights(rows, got, want);
    });
}

TEST(AttentionKernels, WeightsAreExponentials) {
    double worst = 0;
    for (int i = 0; i <= 100000; ++i) {
        const float x = 8.0f - 94.0f * static_cast<float>(i) / 100000;
        const double want = std::exp(static_cast<double>(x));
        worst = std::max(worst, std::abs(exp_weight(x) - want) / want / (1 + std::abs(static_cast<double>(x))));
        const double t = std::tanh(static_cast<double>(x)); // of both signs
        ASSERT_NEAR(tanh_score(x), t, 12 * unit) << x;
    }
    EXPECT_LE(worst, 4 * unit) << "in units of 1 + |x|";
    double worst_power = 0, worst_coarse = 0;
    for (int i = 0; i <= 100000; ++i) {
        const float x = 12.0f - 136.0f * static_cast<float>(i) / 100000;
        const double want = std::exp2(static_cast<double>(x));
        worst_power = std::max(worst_power, std::abs(power_of_two(x) - want) / want);
        worst_coarse = std::max(worst_coarse, std::abs(coarse_power_of_two(x) - want) / want);
    }
    EXPECT_LE(worst_power, 4 * unit);
    EXPECT_LE(worst_coarse, 52 * unit);
    for (const auto power : {power_of_two, coarse_power_of_two}) {
        EXPECT_EQ(power(0.0f), 1.0f);
        EXPECT_EQ(power(-124.5f), 0.0f);
        EXPECT_EQ(power(-infinity), 0.0f);
        EXPECT_TRUE(std::isnan(power(std::numeric_limits<float>::quiet_NaN())));
    }
    EXPECT_EQ(exp_weight(0.0f), 1.0f);
    EXPECT_EQ(exp_weight(-87.0f), 0.0f);
    EXPECT_EQ(exp_weight(-infinity), 0.0f);
    EXPECT_TRUE(std::isnan(exp_weight(std::numeric_limits<float>::quiet_NaN())));
}

} // namespace
} // namespace vidkv
