// Each kernel by itself: every instruction set must give the bits of the scalar specification.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>

#include "base/softmax_math.h"
#include "base/half.h"
#include "codec/trit.h"
#include "core/random.h"
#include "kernels/dispatch.h"
#include "kernels/quad_order.h"

namespace vidkv {
namespace {

using test::Random;

constexpr double unit = 0x1p-24;
constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr int head_dims[] = {8, 24, 64, 72, 80, 96, 112, 128, 136, 256, 512};
constexpr QuadCode codes[] = {QuadCode::trellis1, QuadCode::trellis1_5, QuadCode::trellis2,
                              QuadCode::trellis3, QuadCode::uniform1,   QuadCode::uniform2,
                              QuadCode::uniform4, QuadCode::uniform5,   QuadCode::uniform6};

// Runs body for each vector instruction set and many seeds, or skips visibly.
template <typename Body> void for_each_fast(int seeds, Body body) {
    int tables = 0;
    for (const KernelChoice & choice : kernel_choices()) {
        if (choice.kernels == &scalar_kernels || !choice.supported()) continue;
        ++tables;
        for (int seed = 0; seed < seeds; ++seed) {
            Random rng(static_cast<uint64_t>(seed));
            SCOPED_TRACE(std::string(choice.kernels->name) + " " + rng.trace());
            body(*choice.kernels, rng);
        }
    }
    if (tables == 0) GTEST_SKIP() << "this machine has none of the vector instruction sets in this build";
}

// Memory aligned as kernels ask for, with room behind.
template <typename T> class Aligned {
  public:
    explicit Aligned(size_t n, T fill = T{}) : storage_(n * sizeof(T) + 128), n_(n) { std::fill_n(data(), n, fill); }
    T * data() {
        void * start = storage_.data();
        size_t room = storage_.size();
        return static_cast<T *>(std::align(64, n_ * sizeof(T), start, room));
    }
    T & operator[](size_t i) { return data()[i]; }
    std::vector<T> copy() { return {data(), data() + n_}; }

  private:
    std::vector<uint8_t> storage_;
    size_t n_;
};

Aligned<uint8_t> random_bytes(Random & rng, size_t n, int largest = 255) {
    Aligned<uint8_t> bytes(n);
    for (size_t i = 0; i < n; ++i) bytes[i] = static_cast<uint8_t>(rng.integer(0, largest));
    return bytes;
}

Aligned<float> random_floats(Random & rng, size_t n, float deviation = 1.0f) {
    Aligned<float> out(n);
    for (size_t i = 0; i < n; ++i) out[i] = rng.normal(rng.integer(0, 20) ? deviation : 10 * deviation);
    return out;
}

Aligned<uint16_t> random_halves(Random & rng, size_t n) {
    Aligned<uint16_t> halves(n);
    for (size_t i = 0; i < n; ++i) halves[i] = float_to_half(rng.normal(rng.integer(0, 9) ? 2.0f : 1e-6f));
    return halves;
}

bool same(float a, float b) {
    return std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b) || (std::isnan(a) && std::isnan(b));
}

void expect_same(const std::vector<float> & got, const std::vector<float> & want) {
    ASSERT_EQ(got.size(), want.size());
    for (size_t i = 0; i < got.size(); ++i) ASSERT_TRUE(same(got[i], want[i])) << i << ": " << got[i] << " " << want[i];
}

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

// Levels of a head, cut into runs of random codes, some of them empty, which the product goes through in any order.
struct RandomLevels {
    Aligned<uint8_t> levels;
    std::vector<KeyQuad> list;
    std::vector<KeyRun> runs;
    RandomLevels(Random & rng, int quads) : levels(static_cast<size_t>(quads) * page_tokens * 4 + level_slack) {
        const bool extreme = rng.integer(0, 1); // sums as large as they can be
        for (int quad = 0; quad < quads;) {
            const int n = rng.integer(1, quads - quad), largest = (1 << rng.integer(0, 6)) - 1;
            if (largest > 0) runs.push_back({static_cast<int>(list.size()), n, largest, QuadCode::none});
            for (int i = quad + n; largest > 0 && i-- > quad;) list.push_back(key_quad(i, 0));
            for (size_t i = 0; i < static_cast<size_t>(n) * page_tokens * 4; ++i) {
                levels[static_cast<size_t>(quad) * page_tokens * 4 + i] =
                    static_cast<uint8_t>(extreme ? largest : rng.integer(0, largest));
            }
            quad += n;
        }
    }
};

std::vector<float> values_of(const float * x, int rows) { return {x, x + rows}; }

TEST(AttentionKernels, KeysScoreTheSameBits) {
    for_each_fast(60, [](const Kernels & kernels, Random & rng) {
        const int head_dim = head_dims[rng.integer(0, 10)], rows = rng.integer(1, row_block),
                  padded = round_up(head_dim, 64);
        const size_t n = static_cast<size_t>(padded);
        Aligned<float> q = random_floats(rng, n * row_block), step = random_floats(rng, n * largest_groups, 0.3f);
        Aligned<float> center = random_floats(rng, n * largest_groups);
        Aligned<uint8_t> offset = random_bytes(rng, n, 63);
        for (size_t i = 0; i < n * largest_groups; ++i) step[i] = rng.integer(0, 4) ? std::fabs(step[i]) : 0.0f;
        for (size_t i = 0; i < n; ++i) {
            if (rng.integer(0, 9) == 0) q[i] = 1e-38f;
        }
        if (rng.integer(0, 9) == 0) std::fill_n(q.data(), n, 0.0f);
        const float base[row_block] = {1, 2, 3, 4, 5, 6, 7, 8};
        const int groups = 1 << rng.integer(0, 2), group = rng.integer(0, groups - 1);
        const KeySteps keys{step.data(), offset.data(), center.data(), padded, rng.integer(0, padded / 64) * 64, groups};
        FoldedQueries wanted[largest_groups]{}, gotten[largest_groups]{};
        scalar_kernels.fold_queries(q.data(), padded, rows, keys, base, wanted);
        kernels.fold_queries(q.data(), padded, rows, keys, base, gotten);
        FoldedQueries &want = wanted[group], &got = gotten[group];
        for (int r = 0; r < rows; ++r) {
            for (int c = 0; c < padded; ++c) {
                const int at = (c / operand_bytes * row_block + r) * operand_bytes + c % operand_bytes;
                ASSERT_EQ(got.q[at], want.q[at]) << r << " " << c;
            }
        }
        expect_same(values_of(got.scale, rows), values_of(want.scale, rows));
        expect_same(values_of(got.offset, rows), values_of(want.offset, rows));
        expect_same(values_of(got.base, rows), values_of(want.base, rows));
        RandomLevels levels(rng, head_dim / 4);
        if (rng.integer(0, 1)) std::fill_n(want.q, sizeof(want.q), static_cast<int8_t>(rng.integer(0, 1) ? 127 : -127));
        Aligned<float> scores(row_block * page_tokens), others(row_block * page_tokens);
        const int first = rng.integer(0, 3) * 32, tokens = rng.integer(1, (page_tokens - first) / 32) * 32;
        KeyProduct product{levels.levels.data(),
                           nullptr,
                           levels.list.data(),
                           levels.runs.data(),
                           static_cast<int>(levels.runs.size()),
                           first,
                           tokens,
                           &want,
                           rows,
                           scores.data()};
        scalar_kernels.score_levels(product);
        product.scores = others.data();
        kernels.score_levels(product);
        expect_same(others.copy(), scores.copy());
    });
}

const std::vector<QuadCode> value_codes = {QuadCode::uniform2, QuadCode::trellis1, QuadCode::trellis1_5,
                                           QuadCode::trellis2, QuadCode::trellis3, QuadCode::uniform4};
const std::vector<QuadCode> key_codes = {QuadCode::uniform1,   QuadCode::uniform2, QuadCode::trellis1,
                                         QuadCode::trellis1_5, QuadCode::trellis2, QuadCode::trellis3,
                                         QuadCode::uniform4,   QuadCode::uniform5, QuadCode::uniform6};

// A head's quads as packed codes of all kinds and as the levels in them. rows: of a quad.
struct RandomCodes {
    Aligned<uint8_t> packed, levels;
    std::vector<LevelRun> runs;
    RandomCodes(Random & rng, int quads, int rows, int most_runs, const std::vector<QuadCode> & kinds)
        : packed(random_bytes(rng, static_cast<size_t>(quads * rows * 3) + level_slack, 255)),
          levels(static_cast<size_t>(quads * rows * 4) + level_slack) {
        const uint8_t * at = packed.data();
        for (int quad = 0; quad < quads;) {
            const bool last = static_cast<int>(runs.size()) + 1 == most_runs;
            const int n = last ? quads - quad : rng.integer(1, quads - quad);
            const QuadCode code = kinds[static_cast<size_t>(rng.integer(0, static_cast<int>(kinds.size()) - 1))];
            runs.push_back({quad, n, largest_level(code), code, at});
            for (const int end = quad + n; quad < end; ++quad, at += quad_bytes(code, rows)) {
                unpack_quad(code, at, rows, &levels[static_cast<size_t>(quad * rows * 4)]);
            }
        }
    }
};

TEST(AttentionKernels, KeysScoreTheSameBitsFromCodes) {
    for_each_fast(200, [](const Kernels & kernels, Random & rng) {
        if (!kernels.score_codes) return;
        const int head_dim = head_dims[rng.integer(0, 10)], rows = rng.integer(1, row_block);
        RandomCodes packed(rng, head_dim / 4, page_tokens, head_dim / 4, key_codes);
        FoldedQueries folded{};
        for (int8_t & q : folded.q) q = static_cast<int8_t>(rng.integer(-127, 127));
        for (int r = 0; r < rows; ++r)
            folded.scale[r] = rng.normal(), folded.offset[r] = rng.normal(), folded.base[r] = rng.normal();
        Aligned<float> want(row_block * page_tokens), got(row_block * page_tokens);
        const int first = rng.integer(0, 3) * 32, tokens = rng.integer(1, (page_tokens - first) / 32) * 32;
        std::vector<KeyQuad> list;
        std::vector<KeyRun> runs;
        for (const LevelRun & run : packed.runs) {
            runs.push_back({static_cast<int>(list.size()), run.quads, run.largest, run.code});
            for (int i = run.quads; i-- > 0;) {
                const size_t at = static_cast<size_t>(run.packed - packed.packed.data()) +
                                  quad_bytes(run.code, page_tokens) * static_cast<size_t>(i);
                list.push_back(key_quad(run.first + i, static_cast<uint32_t>(at)));
            }
        }
        std::ranges::reverse(runs);
        KeyProduct product{packed.levels.data(),
                           packed.packed.data(),
                           list.data(),
                           runs.data(),
                           static_cast<int>(runs.size()),
                           first,
                           tokens,
                           &folded,
                           rows,
                           want.data()};
        scalar_kernels.score_levels(product);
        product.levels = nullptr;
        product.scores = got.data();
        kernels.score_codes(product);
        expect_same(got.copy(), want.copy());
    });
}

TEST(AttentionKernels, ValuesAddUpToTheSameBitsFromCodes) {
    for_each_fast(200, [](const Kernels & kernels, Random & rng) {
        if (!kernels.add_codes) return;
        const int channels = 64 * rng.integer(1, 2), rows = rng.integer(1, row_block), groups = 1 << rng.integer(0, 2);
        const auto kinds = groups == 1 ? value_codes : std::vector{QuadCode::uniform2};
        RandomCodes packed(rng, page_tokens / 4, channels, largest_runs, kinds);
        Aligned<int8_t> weights(row_block * operand_bytes);
        for (size_t i = 0; i < row_block * operand_bytes; ++i) weights[i] = static_cast<int8_t>(rng.integer(0, 127));
        const size_t sums = static_cast<size_t>(channels * row_block);
        Aligned<float> step = random_floats(rng, sums), base = random_floats(rng, sums), want = random_floats(rng, sums),
                       got(sums);
        std::copy_n(want.data(), sums, got.data());
        ValueProduct product{};
        product.levels = packed.levels.data();
        product.stride = channels * 4;
        product.channels = channels;
        product.weights = weights.data();
        product.rows = rows;
        product.groups = groups;
        for (int r = 0; r < rows; ++r) product.scale[r] = rng.normal();
        for (int g = 0; g < groups; ++g) {
            ValueGroup & group = product.group[g];
            std::ranges::copy(packed.runs,
                              group.runs); // every group adds the same quads: what matters is what is done with the sums
            group.run_count = static_cast<int>(packed.runs.size());
            group.step = rng.integer(0, 1) ? &step[g * channels] : nullptr;
            group.center = rng.integer(0, 1) ? &base[g * channels] : nullptr;
            for (int r = 0; r < rows; ++r) group.offset[r] = rng.normal(), group.total[r] = rng.normal();
        }
        product.out_stride = channels;
        product.out = want.data();
        scalar_kernels.add_levels(product);
        product.levels = nullptr;
        product.out = got.data();
        kernels.add_codes(product);
        expect_same(got.copy(), want.copy());
    });
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

void expect_same(int rows, const PackedWeights & got, const PackedWeights & want) {
    EXPECT_EQ(std::memcmp(got.w, want.w, static_cast<size_t>(rows) * operand_bytes), 0);
    expect_same(values_of(got.scale, rows), values_of(want.scale, rows));
    expect_same(values_of(got.sum[0], rows * largest_groups), values_of(want.sum[0], rows * largest_groups));
    expect_same(values_of(got.total[0], rows * largest_groups), values_of(want.total[0], rows * largest_groups));
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
            SoftmaxTile softmax{
                want.data(),   rows,          biases.data(), slopes.data(), !plain && rng.integer(0, 1) ? 30.0f : 0.0f,
                states.data(), factors.data()};
            PackedWeights packed{}, other_packed{};
            packs ? scalar_kernels.weigh(softmax, rule, packed) : scalar_kernels.softmax(softmax);
            softmax.scores = got.data();
            softmax.states = others.data();
            softmax.factors = other_factors.data();
            packs ? kernels.weigh(softmax, rule, other_packed) : kernels.softmax(softmax);
            expect_same(rows, other_packed, packed);
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
        expect_same(rows, got, want);
    });
}

TEST(AttentionKernels, ValuesAddUpToTheSameBits) {
    for_each_fast(60, [](const Kernels & kernels, Random & rng) {
        const int rows = rng.integer(1, row_block), channels = round_up(head_dims[rng.integer(0, 10)], 16);
        const int groups = 1 << rng.integer(0, 2), stride = channels * 4;
        Aligned<uint8_t> levels(static_cast<size_t>(32 * stride + level_slack));
        Aligned<int8_t> weights(row_block * operand_bytes);
        for (size_t i = 0; i < row_block * operand_bytes; ++i)
            weights[i] = static_cast<int8_t>(rng.integer(0, 2) ? 127 : rng.integer(0, 127));
        const size_t sums = static_cast<size_t>(channels) * row_block;
        Aligned<float> step = random_floats(rng, sums), base = random_floats(rng, sums), want = random_floats(rng, sums),
                       got(sums);
        std::copy_n(want.data(), sums, got.data());
        ValueProduct product{};
        product.levels = levels.data();
        product.stride = stride;
        product.channels = channels;
        product.weights = weights.data();
        product.rows = rows;
        product.groups = groups;
        for (int r = 0; r < rows; ++r) product.scale[r] = rng.normal();
        for (int g = 0; g < groups; ++g) {
            const int quads = 32 / groups, largest = (1 << rng.integer(1, 6)) - 1;
            for (int i = g * quads * stride; i < (g + 1) * quads * stride; ++i)
                levels[i] = static_cast<uint8_t>(rng.integer(0, 2) ? largest : rng.integer(0, largest));
            ValueGroup & group = product.group[g];
            group = {{{g * quads, quads, largest, QuadCode::none, nullptr}},
                     1,
                     rng.integer(0, 1) ? &step[g * channels] : nullptr,
                     rng.integer(0, 1) ? &base[g * channels] : nullptr,
                     {},
                     {}};
            for (int r = 0; r < rows; ++r) group.offset[r] = rng.normal(), group.total[r] = rng.normal();
        }
        product.out_stride = channels;
        product.out = want.data();
        scalar_kernels.add_levels(product);
        product.out = got.data();
        kernels.add_levels(product);
        expect_same(got.copy(), want.copy());
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
