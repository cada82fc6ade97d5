// Quads, trellis codes, rotation and scales.
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

} // namespace
} // namespace vidkv
