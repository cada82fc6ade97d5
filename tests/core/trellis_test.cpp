// Quads, trellis codes, rotation, scales, and the keys and values made of them.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <string>

#include "codec/log_scale.h"
#include "codec/page_mean.h"
#include "codec/rotation.h"
#include "codec/encoder_loops.h"
#include "core/encoding.h"
#include "core/random.h"

namespace vidkv {
namespace {

using namespace test;

constexpr QuadCode uniform_codes[] = {QuadCode::uniform1, QuadCode::uniform2, QuadCode::uniform4, QuadCode::uniform5,
                                      QuadCode::uniform6};
constexpr QuadCode trellis_codes[] = {QuadCode::trellis1, QuadCode::trellis1_5, QuadCode::trellis2, QuadCode::trellis3};
constexpr int dims[] = {64, 72, 80, 96, 112, 128, 256};

double bits_of(QuadCode code) {
    switch (code) {
    case QuadCode::trellis1_5: return 1.5;
    case QuadCode::uniform1: return 1;
    case QuadCode::uniform2: return 2;
    default: return static_cast<double>(code);
    }
}

// ---- scales ----

TEST(LogScale, EveryCodeComesBackAndTheyRise) {
    EXPECT_EQ(log_scale_value(0), 0.0f);
    for (int u = 1; u < 256; ++u) {
        const float value = log_scale_value(static_cast<uint8_t>(u));
        EXPECT_NEAR(value / std::exp2((u - 128) / 8.0), 1.0, 1e-7) << u;
        EXPECT_EQ(log_scale_code(value), u);
        EXPECT_GT(value, log_scale_value(static_cast<uint8_t>(u - 1)));
    }
}

TEST(LogScale, TakesTheNearestStepAndAnything) {
    Random rng(21);
    SCOPED_TRACE(rng.trace());
    for (int i = 0; i < 10000; ++i) {
        const float s = std::exp2(rng.normal(6.0f));
        const double off = std::fabs(std::log2(log_scale_value(log_scale_code(s)) / s));
        if (s > 59000.0f || s < 0x1p-15f) continue;
        ASSERT_LE(off, 1.0 / 16 + 1e-6) << s;
    }
    for (const float s : {0.0f, -1.0f, std::numeric_limits<float>::quiet_NaN(), 1e-45f, 1e-20f})
        EXPECT_EQ(log_scale_code(s), 0) << s;
    EXPECT_EQ(log_scale_code(std::numeric_limits<float>::infinity()), 255);
    EXPECT_EQ(log_scale_code(3e38f), 255);
}

// ---- quads ----

TEST(Quads, UniformLevelsSurviveAtEveryHeight) {
    Random rng(22);
    SCOPED_TRACE(rng.trace());
    for (const QuadCode code : uniform_codes) {
        for (int rows = 8; rows <= 512; rows += 8) {
            ASSERT_EQ(quad_bytes(code, rows), static_cast<size_t>(rows * 4 * bits_of(code) / 8));
            std::vector<uint8_t> levels(static_cast<size_t>(rows) * 4), back(levels.size()), packed(quad_bytes(code, rows));
            for (uint8_t & l : levels) l = static_cast<uint8_t>(rng.integer(0, largest_level(code)));
            pack_uniform(code, levels.data(), rows, packed.data());
            unpack_quad(code, packed.data(), rows, back.data());
            ASSERT_EQ(back, levels) << static_cast<int>(code) << " " << rows;
        }
    }
}

TEST(Quads, TrellisLevelsAreWhatTheBytesSayAtEveryHeight) {
    Random rng(23);
    SCOPED_TRACE(rng.trace());
    for (const QuadCode code : trellis_codes) {
        for (int rows = 8; rows <= 512; rows += rows < 160 ? 8 : 88) {
            const size_t bytes = quad_bytes(code, rows);
            const double whole = rows * 4 * bits_of(code) / 8;
            ASSERT_GE(static_cast<double>(bytes), whole);
            ASSERT_LT(static_cast<double>(bytes), whole + 12) << "less than a word a lane is left over";
            if (rows % 16 == 0) {
                ASSERT_EQ(static_cast<double>(bytes), whole) << static_cast<int>(code) << " " << rows;
            }
            std::vector<uint8_t> packed(bytes, 0xa5), levels(static_cast<size_t>(rows) * 4), back(levels.size());
            for (const int lane : {2, 0, 3, 1}) {
                const std::vector<uint8_t> before = packed;
                const std::vector<float> x = rng.normals(rows);
                std::vector<uint8_t> one(static_cast<size_t>(rows));
                encode_trellis_lane(code, x.data(), rows, lane, packed.data(), one.data());
                for (int r = 0; r < rows; ++r) levels[4 * r + lane] = one[r];
                for (size_t i = 0; i < bytes; ++i)
                    ASSERT_TRUE(static_cast<int>(i % 4) == lane || packed[i] == before[i]) << "another lane's byte";
            }
            unpack_quad(code, packed.data(), rows, back.data());
            ASSERT_EQ(back, levels) << static_cast<int>(code) << " " << rows;
        }
    }
}

TEST(Quads, AnyBytesAreATrellisCode) {
    Random rng(24);
    SCOPED_TRACE(rng.trace());
    for (const QuadCode code : trellis_codes) {
        for (const int rows : {8, 72, 128, 512}) {
            std::vector<uint8_t> packed(quad_bytes(code, rows)), levels(static_cast<size_t>(rows) * 4);
            for (uint8_t & byte : packed) byte = static_cast<uint8_t>(rng.integer(0, 255));
            unpack_quad(code, packed.data(), rows, levels.data());
            for (const uint8_t l : levels) ASSERT_LE(l, largest_level(code));
        }
    }
}

// ---- the trellis search ----

struct Rate {
    QuadCode code;
    double low,
        high; // what rate-distortion theory allows at least, and less than a scalar code's error (Lloyd-Max; 1.5: in between)
};
constexpr Rate rates[] = {{QuadCode::trellis1, 0.25, 0.33},
                          {QuadCode::trellis1_5, 0.125, 0.185},
                          {QuadCode::trellis2, 0.0625, 0.1},
                          {QuadCode::trellis3, 0.015625, 0.031}};

TEST(Trellis, BeatsScalarCodesOnGaussians) {
    Random rng(25);
    SCOPED_TRACE(rng.trace());
    for (const Rate & rate : rates) {
        for (const int rows : {64, 72, 128}) {
            Fidelity fidelity;
            const LevelGrid grid = level_grid(rate.code);
            std::vector<uint8_t> packed(quad_bytes(rate.code, rows)), levels(static_cast<size_t>(rows));
            for (int repeat = 0; repeat < 40000 / rows; ++repeat) {
                const std::vector<float> x = rng.normals(rows);
                encode_trellis_lane(rate.code, x.data(), rows, repeat % 4, packed.data(), levels.data());
                for (int r = 0; r < rows; ++r) fidelity.add(x[r], (levels[r] - grid.offset) * grid.step);
            }
            EXPECT_GT(fidelity.nmse(), rate.low) << static_cast<int>(rate.code) << " " << rows;
            EXPECT_LT(fidelity.nmse(), rate.high) << static_cast<int>(rate.code) << " " << rows;
        }
    }
}

// 16 rows at 1 bit are 65536 rings. The search closes the ring with one guess, which costs most in rings as short as this one.
TEST(Trellis, ComesCloseToTheBestRing) {
    Random rng(26);
    SCOPED_TRACE(rng.trace());
    constexpr int rows = 16;
    const QuadCode code = QuadCode::trellis1;
    const LevelGrid grid = level_grid(code);
    const TrellisRing ring(trellis_table(code), rows);
    double found = 0, best = 0;
    for (int repeat = 0; repeat < 30; ++repeat) {
        const std::vector<float> x = rng.normals(rows);
        const auto error = [&](const auto & level_of) {
            double sum = 0;
            for (int r = 0; r < rows; ++r) sum += std::pow(x[r] - (level_of(r) - grid.offset) * grid.step, 2.0);
            return sum;
        };
        std::vector<uint8_t> packed(quad_bytes(code, rows)), levels(rows);
        encode_trellis_lane(code, x.data(), rows, 0, packed.data(), levels.data());
        found += error([&](int r) { return levels[r]; });
        double least = 1e9;
        for (unsigned bits = 0; bits < 65536; ++bits) {
            double sum = 0;
            for (int step = 0; step < rows && sum < least; ++step) {
                const unsigned turned = (bits >> step | bits << (16 - step)) & 255;
                const double d = x[ring.row(step, 0)] -
                                 (trellis_table(code).level(0, static_cast<uint8_t>(turned)) - grid.offset) * grid.step;
                sum += d * d;
            }
            least = std::min(least, sum);
        }
        best += least;
    }
    EXPECT_GE(found, best * 0.999);
    EXPECT_LE(found, best * 1.5);
}

// The loops of packing on every instruction set of this machine, against those for any machine.
class EncoderLoopsOf : public testing::TestWithParam<const char *> {
  protected:
    void SetUp() override {
        for (const EncoderLoops * each : supported_encoder_loops()) {
            if (std::string(each->name) == GetParam()) loops_ = each;
        }
        if (!loops_) GTEST_SKIP() << "this machine has no " << GetParam();
    }
    const EncoderLoops & baseline() const { return *supported_encoder_loops().front(); }
    const EncoderLoops * loops_ = nullptr;
};
INSTANTIATE_TEST_SUITE_P(All, EncoderLoopsOf, testing::Values("avx2", "avx512"),
                         [](const auto & each) { return std::string(each.param); });

TEST_P(EncoderLoopsOf, FindTheSamePath) {
    Random rng(27);
    SCOPED_TRACE(rng.trace());
    for (const QuadCode code : trellis_codes) {
        const TrellisTable & table = trellis_table(code);
        for (const int rows : {8, 64, 72, 128, 512}) {
            const int steps = TrellisRing(table, rows).steps;
            for (const float spread : {0.0f, 0.01f, 1.0f, 4.0f, 100.0f}) {
                const std::vector<float> samples = rng.normals(static_cast<size_t>(steps * table.samples), spread);
                const std::vector<float> weights = rng.normals(samples.size(), spread > 4 ? 4.0f : 0.5f);
                std::vector<float> x; // pairs of a sample and its weight
                for (size_t i = 0; i < samples.size(); ++i)
                    x.insert(x.end(), {std::clamp(samples[i], -6.0f, 6.0f), std::abs(weights[i])});
                x[x.size() - 2] = std::numeric_limits<float>::quiet_NaN();
                x.back() = 0; // a row that does not exist
                const int longest = std::max(steps, 2 * longest_warm_up);
                std::vector<uint8_t> came(search_room(longest)), one(static_cast<size_t>(longest)), other(one.size());
                for (const int seam : {-1, 5}) {
                    baseline().search(table, steps, x.data(), seam, came.data(), one.data());
                    loops_->search(table, steps, x.data(), seam, came.data(), other.data());
                    ASSERT_TRUE(std::equal(one.begin(), one.begin() + steps, other.begin()))
                        << static_cast<int>(code) << " " << rows << " " << spread << " " << seam;
                }
            }
        }
    }
}

TEST_P(EncoderLoopsOf, GiveTheSameBitsForRows) {
    Random rng(28);
    SCOPED_TRACE(rng.trace());
    constexpr size_t n = 40;
    const std::vector<float> rows = rng.normals(n * page_tokens), factors = rng.normals(n);
    std::vector<float> weight = rng.normals(page_tokens);
    std::vector<uint16_t> order(n);
    std::iota(order.rbegin(), order.rend(), uint16_t{0});
    const float *x = rows.data(), *y = x + page_tokens;
    for (const bool none : {false, true}) {
        if (none) std::fill(weight.begin(), weight.end(), 0.0f);
        const Moments one = baseline().moments(x, weight.data()), other = loops_->moments(x, weight.data());
        EXPECT_EQ(one.mean, other.mean);
        EXPECT_EQ(one.variance, other.variance);
        EXPECT_EQ(baseline().dot(x, y, weight.data()), loops_->dot(x, y, weight.data()));
        EXPECT_EQ(baseline().distance(x, y, weight.data()), loops_->distance(x, y, weight.data()));
        EXPECT_EQ(baseline().mean_rest(x, y, 0.3f, weight.data()), loops_->mean_rest(x, y, 0.3f, weight.data()));
        std::vector<float> a(page_tokens), b(page_tokens);
        for (const uint16_t * by : {static_cast<const uint16_t *>(nullptr), static_cast<const uint16_t *>(order.data())}) {
            baseline().aim(x, 0.7f, weight.data(), a.data());
            loops_->aim(x, 0.7f, weight.data(), b.data());
            baseline().pull(a.data(), x, factors.data(), by, n);
            loops_->pull(b.data(), x, factors.data(), by, n);
            ASSERT_EQ(a, b);
        }
        baseline().standardize(x, 0.7f, 3.1f, weight.data(), a.data());
        loops_->standardize(x, 0.7f, 3.1f, weight.data(), b.data());
        ASSERT_EQ(a, b);
    }
}

TEST_P(EncoderLoopsOf, GiveTheSameBitsForMatrices) {
    Random rng(29);
    SCOPED_TRACE(rng.trace());
    for (const int n : {8, 72, 128}) {
        const size_t size = static_cast<size_t>(n), row_count = 77;
        const std::vector<float> rows = rng.normals(row_count * size), weights = rng.normals(row_count);
        std::vector<const float *> row;
        for (size_t r = 0; r < row_count; ++r) row.push_back(&rows[r * size]);
        std::vector<float> one = rng.normals(size * (size + 1) / 2 + 1), mean = rng.normals(size), other = one,
                           other_mean = mean;
        baseline().add_products(one.data(), mean.data(), 4, n, 0.5f, row.data(), weights.data(), row_count);
        loops_->add_products(other.data(), other_mean.data(), 4, n, 0.5f, row.data(), weights.data(), row_count);
        ASSERT_EQ(one, other) << n;
        ASSERT_EQ(mean, other_mean) << n;
        std::vector<double> h(size * size), u(size * size), v(size * size);
        for (size_t i = 0; i < size * size; ++i) {
            for (size_t r = 0; r < row_count; ++r) h[i] += rows[r * size + i / size] * rows[r * size + i % size];
        }
        for (size_t i = 0; i < size; ++i) h[i * size + i] += 1;
        baseline().factor(h.data(), size, u.data());
        loops_->factor(h.data(), size, v.data());
        ASSERT_EQ(u, v) << n;
        for (size_t i = 0; i < size * size; ++i) { // and it is one
            double sum = 0;
            for (size_t c = 0; c < size; ++c) sum += u[c * size + i / size] * u[c * size + i % size];
            ASSERT_NEAR(sum, h[i], 1e-9 * h[0] + 1e-6) << n << " " << i;
        }
    }
}

// ---- rotation ----

TEST(Rotation, IsOrthonormalAtEveryHeadDim) {
    Random rng(28);
    SCOPED_TRACE(rng.trace());
    for (int n = 8; n <= 512; n += 8) {
        const std::vector<float> x = rng.normals(n);
        std::vector<float> y = x;
        rotation(n)->forward(y.data());
        double before = 0, after = 0;
        for (int i = 0; i < n; ++i) before += x[i] * x[i], after += y[i] * y[i];
        EXPECT_NEAR(after / before, 1, 1e-5) << n;
        rotation(n)->inverse(y.data());
        for (int i = 0; i < n; ++i) ASSERT_NEAR(y[i], x[i], 1e-5) << n;
    }
}

TEST(Rotation, SpreadsASpikeOverAllChannels) {
    for (const int n : {64, 80, 112, 128}) {
        for (const int at : {0, 1, n - 1}) {
            std::vector<float> x(n);
            x[at] = 1;
            rotation(n)->forward(x.data());
            for (const float y : x) EXPECT_LE(std::fabs(y), 1.42f / std::sqrt(static_cast<float>(n))) << n;
        }
    }
}

// ---- keys ----

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

TEST(QueryStatistics, BrokenTokensLeaveNoTrace) {
    Random rng(35);
    SCOPED_TRACE(rng.trace());
    const int dim = 16, heads = 4, tokens = 64;
    const size_t token = static_cast<size_t>(heads) * dim;
    std::vector<float> good = rng.normals(tokens * token);
    QueryStatistics clean(2, dim), broken(2, dim), only_broken(2, dim);
    clean.observe(good.data(), tokens, heads, static_cast<int64_t>(token), dim);
    broken.observe(good.data(), tokens, heads, static_cast<int64_t>(token), dim);
    for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), 1e30f}) {
        std::vector<float> q = good;
        for (int t = 0; t < tokens; ++t) q[t * token + token / 2] = bad;
        broken.observe(q.data(), tokens, heads, static_cast<int64_t>(token), dim);
        only_broken.observe(q.data(), tokens, heads, static_cast<int64_t>(token), dim);
    }
    EXPECT_TRUE(only_broken.empty());
    EXPECT_FALSE(clean.empty());
    for (int h = 0; h < 2; ++h) {
        for (int i = 0; i < dim; ++i) {
            EXPECT_EQ(broken.mean(h, i), clean.mean(h, i));
            for (int j = 0; j < dim; ++j) EXPECT_EQ(broken.second(h, i, j), clean.second(h, i, j));
        }
    }
}

TEST(QueryStatistics, ThreadsAndBatchesDoNotMatter) {
    constexpr int heads = 6, kv_heads = 2, dim = 64;
    constexpr int64_t tokens = 75;
    Random rng(77);
    const std::vector<float> q = rng.normals(tokens * heads * dim);
    QueryStatistics one(kv_heads, dim), many(kv_heads, dim), parts(kv_heads, dim);
    one.observe(q.data(), tokens, heads, heads * dim, dim);
    many.observe(q.data(), tokens, heads, heads * dim, dim, 5);
    parts.observe(q.data(), 40, heads, heads * dim, dim, 2);
    parts.observe(&q[40 * heads * dim], tokens - 40, heads, heads * dim, dim, 2);
    double weight = 0;
    std::vector<double> second(kv_heads * dim * dim, 0.0);
    for (int64_t t = 0; t < tokens; ++t) {
        const double decay = std::exp(-1 / 300.0);
        const int readers = heads / kv_heads;
        weight = weight * decay + readers;
        for (double & x : second) x *= decay;
        for (int head = 0; head < heads; ++head) {
            const float * row = &q[static_cast<size_t>((t * heads + head) * dim)];
            for (int i = 0; i < dim * dim; ++i) second[(head / 3) * dim * dim + i] += double{row[i / dim]} * row[i % dim];
        }
    }
    for (int head = 0; head < kv_heads; ++head) {
        for (int i = 0; i < dim * dim; ++i) {
            const double got = one.second(head, i / dim, i % dim);
            ASSERT_EQ(got, many.second(head, i / dim, i % dim));
            ASSERT_NEAR(got, second[head * dim * dim + i] / weight, 1e-5);
            ASSERT_NEAR(got, parts.second(head, i / dim, i % dim), 1e-5);
        }
    }
}

TEST(QueryStatistics, CountedTokensAreEqualHoweverTheyCome) {
    constexpr int heads = 6, kv_heads = 2, dim = 16;
    constexpr int64_t tokens = 75;
    Random rng(78);
    const std::vector<float> q = rng.normals(tokens * heads * dim);
    QueryStatistics one(kv_heads, dim), parts(kv_heads, dim), later(kv_heads, dim);
    one.count(q.data(), tokens, heads, heads * dim, dim);
    for (int64_t t = 0; t < tokens; ++t) parts.count(&q[static_cast<size_t>(t * heads * dim)], 1, heads, heads * dim, dim);
    later.begin_with(one, 25); // a third of what is counted behind it
    later.count(q.data(), tokens, heads, heads * dim, dim);
    EXPECT_FALSE(later.empty());
    for (int head = 0; head < kv_heads; ++head) {
        for (int i = 0; i < dim * dim; ++i) {
            double sum = 0;
            for (size_t row = 0; row < q.size() / dim; ++row) {
                if (static_cast<int>(row % heads) / 3 == head)
                    sum += double{q[row * dim + i / dim]} * q[row * dim + i % dim];
            }
            ASSERT_NEAR(one.second(head, i / dim, i % dim), sum / (tokens * 3), 1e-5);
            ASSERT_EQ(one.second(head, i / dim, i % dim), parts.second(head, i / dim, i % dim));
            ASSERT_NEAR(later.second(head, i / dim, i % dim), sum / (tokens * 3), 1e-5);
        }
        ASSERT_EQ(one.mean(head, 3), parts.mean(head, 3));
    }
}

TEST(QueryStatistics, AreTheMomentsOfTheQueriesOfEachHead) {
    Random rng(36);
    SCOPED_TRACE(rng.trace());
    const int dim = 8, heads = 4, tokens = 4000;
    std::vector<float> q = rng.normals(static_cast<size_t>(tokens) * heads * dim);
    for (size_t i = 0; i < q.size(); ++i) {
        if (i % dim == 3)
            q[i] = q[i] * 3 + (static_cast<int>(i / dim) % heads < 2 ? 1.0f : -2.0f); // KV head 0: mean 1, KV head 1: -2
    }
    QueryStatistics statistics(2, dim);
    statistics.observe(q.data(), tokens, heads, heads * dim, dim);
    EXPECT_NEAR(statistics.mean(0, 3), 1, 0.7);
    EXPECT_NEAR(statistics.mean(1, 3), -2, 0.7);
    EXPECT_NEAR(statistics.second(0, 3, 3), 10, 3);
    EXPECT_NEAR(statistics.second(1, 3, 3), 13, 3);
    EXPECT_NEAR(statistics.second(0, 2, 2), 1, 0.4);
    EXPECT_NEAR(statistics.second(0, 2, 3), 0, 0.8);
    EXPECT_EQ(statistics.second(0, 2, 3), statistics.second(0, 3, 2));
}

// ---- values ----

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
            EXPECT_LT(of_mean.nmse(), 0.2 * of_tokens.nmse()) << name << " " << kinds << " " << noise;
            EXPECT_LT(of_tokens.nmse(), 0.6) << name << " " << kinds << " " << noise;
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

TEST(PageMean, EveryNumberComesBack) {
    const int dim = 72;
    std::vector<uint8_t> bytes(page_mean_bytes(dim));
    for (int first = -2048; first + dim <= 2048; first += 61) {
        std::vector<float> mean(dim);
        for (int c = 0; c < dim; ++c) mean[c] = static_cast<float>(first + c) / 2048.0f;
        mean[first & 63] = -1.0f; // the scale is 1 throughout
        const std::vector<float> want = mean;
        store_page_mean(mean.data(), dim, bytes.data());
        for (int c = 0; c < dim; ++c)
            ASSERT_NEAR(mean[c], want[c], 0.5f * log_scale_value(bytes[1]) / 2048.0f * 1.01f) << c;
        std::vector<float> again = mean;
        std::vector<uint8_t> same(bytes.size());
        store_page_mean(again.data(), dim, same.data());
        for (int c = 0; c < dim; ++c)
            ASSERT_NEAR(again[c], mean[c], 0.5f * log_scale_value(same[1]) / 2048.0f * 1.01f) << c;
    }
    std::vector<float> nothing(dim);
    store_page_mean(nothing.data(), dim, bytes.data());
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
