// Keys of trellis codes: the budget, the distortion, and where bits and errors go.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "core/encoding.h"
#include "core/random.h"

namespace vidkv {
namespace {

using namespace test;

std::vector<KeyRows> gaussian_heads(Random & rng, int heads, int dim) {
    std::vector<KeyRows> rows;
    for (int h = 0; h < heads; ++h) rows.push_back(rng.normals(static_cast<size_t>(dim) * page_tokens));
    return rows;
}

TEST(TrellisKeys, SpendExactlyTheBudget) {
    Random rng(29);
    SCOPED_TRACE(rng.trace());
    for (const char * name : {"t2.2", "t1.65", "t1.15", "t1.0", "kt0.5v2", "kt4v2"}) {
        for (const int dim : dims) {
            for (const int heads : {1, 3}) {
                const KeyLayout layout = make_key_layout(preset(name), dim, heads);
                std::vector<KeyRows> rows = gaussian_heads(rng, heads, dim);
                for (int c = 0; c < dim; ++c) {
                    const float deviation = std::exp2(rng.normal(2.0f));
                    for (int t = 0; t < page_tokens; ++t) rows[0][c * page_tokens + t] *= deviation;
                }
                const EncodedKeys encoded = encode_key_page(layout, rows, all_used());
                size_t bytes = 0;
                for (const QuadCode code : encoded.quads) {
                    ASSERT_LE(code, QuadCode::uniform6);
                    bytes += quad_bytes(code, page_tokens);
                }
                EXPECT_EQ(bytes, layout.head_codes) << name << " " << dim;
                EXPECT_TRUE(is_sound(layout, encoded.page.data(), encoded.page.size())) << name << " " << dim;
                EXPECT_LE(static_cast<double>(layout.head_codes) * 8, preset(name).key_bits * dim * page_tokens * heads);
            }
        }
    }
}

TEST(TrellisKeys, HaveTheDistortionOfTheirRate) {
    Random rng(30);
    SCOPED_TRACE(rng.trace());
    for (const auto & [name, low, high] :
         {std::tuple{"kt1v2", 0.25, 0.34}, {"kt1.5v2", 0.125, 0.24}, {"kt2v2", 0.0625, 0.11}, {"kt3v2", 0.015, 0.04}}) {
        for (const int dim : dims) {
            const KeyLayout layout = make_key_layout(preset(name), dim, 2);
            const std::vector<KeyRows> rows = gaussian_heads(rng, 2, dim);
            const EncodedKeys encoded = encode_key_page(layout, rows, all_used());
            Fidelity fidelity;
            for (int h = 0; h < 2; ++h) fidelity.add(rows[h], encoded.decode(h));
            // Scales that keep dot products unbiased cost error D / (1 - D) in the place of D.
            EXPECT_GT(fidelity.nmse(), low) << name << " " << dim;
            EXPECT_LT(fidelity.nmse(), high / (1 - high)) << name << " " << dim;
        }
    }
}

TEST(TrellisKeys, DotProductsAreUnbiased) {
    Random rng(31);
    SCOPED_TRACE(rng.trace());
    const int dim = 128;
    for (const char * name : {"kt1v2", "kt2v2", "kt3v2"}) {
        const KeyLayout layout = make_key_layout(preset(name), dim, 1);
        Fidelity fidelity;
        for (int repeat = 0; repeat < 8; ++repeat) {
            std::vector<KeyRows> rows = gaussian_heads(rng, 1, dim);
            // Deviations all over one step of the scale, so that rounding them does not lean to one side.
            for (size_t i = 0; i < rows[0].size(); ++i) {
                const size_t channel = i / page_tokens;
                rows[0][i] *= std::exp2(static_cast<float>(channel) / (8.0f * dim));
            }
            fidelity.add(rows[0], encode_key_page(layout, rows, all_used()).decode(0));
        }
        EXPECT_NEAR(fidelity.gain(), 1, 0.01) << name;
    }
}

// What all tokens of a page share does not average out: neither the page's mean nor a channel's size may be off by what rounding the
// scale (steps of 9 %) and the mean (an eighth of the scale) would leave.
TEST(TrellisKeys, RoundingTheScaleAndTheMeanIsMadeGood) {
    Random rng(37);
    SCOPED_TRACE(rng.trace());
    const int dim = 128;
    for (const auto & [name, most] : {std::pair{"kt3v2", 0.025}, {"kt5v2", 0.010}}) {
        const KeyLayout layout = make_key_layout(preset(name), dim, 1);
        const std::vector<KeyRows> rows = gaussian_heads(rng, 1, dim);
        const KeyRows decoded = encode_key_page(layout, rows, all_used()).decode(0);
        double shifts = 0, gains = 0;
        for (size_t c = 0; c < dim; ++c) {
            double shift = 0, xy = 0, xx = 0;
            for (size_t i = c * page_tokens; i < (c + 1) * page_tokens; ++i) {
                shift += (decoded[i] - rows[0][i]) / page_tokens;
                xy += (decoded[i] - rows[0][i]) * rows[0][i];
                xx += rows[0][i] * rows[0][i];
            }
            shifts += shift * shift;
            gains += (xy / xx) * (xy / xx);
        }
        EXPECT_LT(std::sqrt(shifts / dim), most) << name;
        EXPECT_LT(std::sqrt(gains / dim), most) << name;
    }
}

TEST(TrellisKeys, BitsGoWhereTheVarianceIs) {
    Random rng(32);
    SCOPED_TRACE(rng.trace());
    const int dim = 64;
    const KeyLayout layout = make_key_layout(preset("t1.15"), dim, 2);
    std::vector<KeyRows> rows = gaussian_heads(rng, 2, dim);
    for (const int c : {3, 17, 40, 41}) {
        for (int t = 0; t < page_tokens; ++t) rows[1][c * page_tokens + t] *= 30;
    }
    const EncodedKeys encoded = encode_key_page(layout, rows, all_used());
    std::vector<uint16_t> first(encoded.plans[1].order.begin(), encoded.plans[1].order.begin() + 4);
    std::sort(first.begin(), first.end());
    EXPECT_EQ(first, (std::vector<uint16_t>{3, 17, 40, 41}));
    EXPECT_EQ(encoded.quads[16], QuadCode::uniform6) << "the first quad of head 1";
}

// Queries that look along a few directions of a head, and the error of their scores on keys that are white noise.
class Directions {
  public:
    Directions(Random & rng, int dim, int directions, int tokens)
        : dim_(dim), tokens_(tokens), queries_(static_cast<size_t>(tokens * dim)) {
        const std::vector<float> basis = rng.normals(static_cast<size_t>(directions * dim));
        for (int t = 0; t < tokens; ++t) {
            for (int d = 0; d < directions; ++d) {
                const float amount = rng.normal();
                for (int c = 0; c < dim; ++c) queries_[t * dim + c] += amount * basis[d * dim + c];
            }
        }
    }
    QueryStatistics statistics() const {
        QueryStatistics out(1, dim_);
        out.observe(queries_.data(), tokens_, 1, dim_, dim_);
        return out;
    }
    // Of these queries on a page that was coded with what `known` saw.
    double error(const KeyRows & rows, const QueryStatistics * known) const {
        const std::vector<float> back =
            encode_key_page(make_key_layout(preset("t1.15"), dim_, 1), {rows}, all_used(), known).decode(0);
        double sum = 0;
        for (int q = 0; q < tokens_; ++q) {
            for (int t = 0; t < page_tokens; ++t) {
                double dot = 0;
                for (int c = 0; c < dim_; ++c)
                    dot += queries_[q * dim_ + c] * (back[c * page_tokens + t] - rows[c * page_tokens + t]);
                sum += dot * dot;
            }
        }
        return sum;
    }

  private:
    int dim_, tokens_;
    std::vector<float> queries_;
};

TEST(TrellisKeys, ErrorsGoWhereQueriesDoNotLook) {
    Random rng(33);
    SCOPED_TRACE(rng.trace());
    const Directions queries(rng, 64, 6, 400);
    const KeyRows rows = gaussian_heads(rng, 1, 64)[0];
    const QueryStatistics seen = queries.statistics();
    EXPECT_LT(queries.error(rows, &seen), 0.5 * queries.error(rows, nullptr));
}

// A question asks for what the tokens before it did not look at.
TEST(TrellisKeys, QueriesOfAnotherKindStillFindTheirKeys) {
    Random rng(35);
    SCOPED_TRACE(rng.trace());
    const Directions queries(rng, 64, 6, 400), later(rng, 64, 6, 400);
    const KeyRows rows = gaussian_heads(rng, 1, 64)[0];
    const QueryStatistics seen = queries.statistics();
    EXPECT_LT(later.error(rows, &seen), 1.5 * later.error(rows, nullptr));
}

TEST(TrellisKeys, AMeanFarFromThePlansIsKept) {
    Random rng(34);
    SCOPED_TRACE(rng.trace());
    const int dim = 64;
    const KeyLayout layout = make_key_layout(preset("t2.2"), dim, 1);
    std::vector<KeyRows> rows = gaussian_heads(rng, 1, dim);
    for (int t = 0; t < page_tokens; ++t)
        rows[0][5 * page_tokens + t] += 500.0f; // one channel with a large mean and a small spread
    const std::vector<float> back = encode_key_page(layout, rows, all_used()).decode(0);
    Fidelity fidelity;
    for (int t = 0; t < page_tokens; ++t) fidelity.add(rows[0][5 * page_tokens + t] - 500, back[5 * page_tokens + t] - 500);
    EXPECT_LT(fidelity.nmse(), 0.2);
}

} // namespace
} // namespace vidkv
