// Products of levels or packed codes with int8 factors: every instruction set must give the bits of the scalar specification.
#include <gtest/gtest.h>

#include <algorithm>

#include "core/kernel_tables.h"

namespace vidkv {
namespace {

using namespace test;

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

// A product of values but for its levels: weights, what groups add, and sums, once for each of two kernels to go on with.
struct RandomValues {
    Aligned<int8_t> weights{row_block * operand_bytes};
    Aligned<float> step, base, want, got;
    ValueProduct product{};

    // often_largest: two weights of three are 127.
    RandomValues(Random & rng, int channels, int rows, int groups, bool often_largest)
        : RandomValues(rng, static_cast<size_t>(channels) * row_block) {
        for (size_t i = 0; i < row_block * operand_bytes; ++i)
            weights[i] = static_cast<int8_t>(often_largest && rng.integer(0, 2) ? 127 : rng.integer(0, 127));
        product.stride = channels * 4;
        product.channels = product.out_stride = channels;
        product.weights = weights.data();
        product.rows = rows;
        product.groups = groups;
        for (int r = 0; r < rows; ++r) product.scale[r] = rng.normal();
        for (int g = 0; g < groups; ++g) {
            ValueGroup & group = product.group[g];
            group.step = rng.integer(0, 1) ? &step[g * channels] : nullptr;
            group.center = rng.integer(0, 1) ? &base[g * channels] : nullptr;
            for (int r = 0; r < rows; ++r) group.offset[r] = rng.normal(), group.total[r] = rng.normal();
        }
    }
    RandomValues(const RandomValues &) = delete;

  private:
    RandomValues(Random & rng, size_t sums)
        : step(random_floats(rng, sums)), base(random_floats(rng, sums)), want(random_floats(rng, sums)), got(sums) {
        std::copy_n(want.data(), sums, got.data());
    }
};

TEST(AttentionProducts, KeysScoreTheSameBits) {
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

TEST(AttentionProducts, KeysScoreTheSameBitsFromCodes) {
    for_each_fast(200, [](const Kernels & kernels, Random & rng) {
        if (!kernels.score_codes) return;
        const int head_dim = head_dims[rng.integer(0, 10)], rows = rng.integer(1, row_block);
        const bool whole = rng.integer(0, 1) == 1; // parts of a page are of the paper's codes
        RandomCodes packed(rng, head_dim / 4, page_tokens, head_dim / 4,
                           whole ? key_codes : std::vector{QuadCode::uniform1, QuadCode::uniform2});
        FoldedQueries folded{};
        for (int8_t & q : folded.q) q = static_cast<int8_t>(rng.integer(-127, 127));
        for (int r = 0; r < rows; ++r)
            folded.scale[r] = rng.normal(), folded.offset[r] = rng.normal(), folded.base[r] = rng.normal();
        Aligned<float> want(row_block * page_tokens), got(row_block * page_tokens);
        const int first = whole ? 0 : rng.integer(0, 3) * 32,
                  tokens = whole ? page_tokens : rng.integer(1, (page_tokens - first) / 32) * 32;
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

TEST(AttentionProducts, ValuesAddUpToTheSameBitsFromCodes) {
    for_each_fast(200, [](const Kernels & kernels, Random & rng) {
        if (!kernels.add_codes) return;
        const int channels = 64 << rng.integer(0, 2), rows = rng.integer(1, row_block), groups = 1 << rng.integer(0, 2);
        const auto kinds = groups == 1 ? value_codes : std::vector{QuadCode::uniform2};
        RandomCodes packed(rng, page_tokens / 4, channels, largest_runs, kinds);
        RandomValues values(rng, channels, rows, groups, false);
        ValueProduct & product = values.product;
        product.levels = packed.levels.data();
        for (int g = 0; g < groups; ++g) {
            ValueGroup & group = product.group[g];
            std::ranges::copy(packed.runs,
                              group.runs); // every group adds the same quads: what matters is what is done with the sums
            group.run_count = static_cast<int>(packed.runs.size());
        }
        product.out = values.want.data();
        scalar_kernels.add_levels(product);
        product.levels = nullptr;
        product.out = values.got.data();
        kernels.add_codes(product);
        expect_same(values.got.copy(), values.want.copy());
    });
}

TEST(AttentionProducts, ValuesAddUpToTheSameBits) {
    for_each_fast(60, [](const Kernels & kernels, Random & rng) {
        const int rows = rng.integer(1, row_block), channels = round_up(head_dims[rng.integer(0, 10)], 16);
        const int groups = 1 << rng.integer(0, 2), stride = channels * 4;
        Aligned<uint8_t> levels(static_cast<size_t>(32 * stride + level_slack));
        RandomValues values(rng, channels, rows, groups, true);
        ValueProduct & product = values.product;
        product.levels = levels.data();
        for (int g = 0; g < groups; ++g) {
            const int quads = 32 / groups, largest = (1 << rng.integer(1, 6)) - 1;
            for (int i = g * quads * stride; i < (g + 1) * quads * stride; ++i)
                levels[i] = static_cast<uint8_t>(rng.integer(0, 2) ? largest : rng.integer(0, largest));
            product.group[g].runs[0] = {g * quads, quads, largest, QuadCode::none, nullptr};
            product.group[g].run_count = 1;
        }
        product.out = values.want.data();
        scalar_kernels.add_levels(product);
        product.out = values.got.data();
        kernels.add_levels(product);
        expect_same(values.got.copy(), values.want.copy());
    });
}

} // namespace
} // namespace vidkv
