#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/half.h"
#include "cache/store.h"
#include "core/names.h"
#include "core/random.h"

namespace vidkv {
namespace {

using test::Random;

vidkv_params params_of(const char * name) {
    vidkv_params params;
    EXPECT_EQ(vidkv_params_from_preset(name, &params), VIDKV_OK);
    return params;
}

class StoreTest : public testing::TestWithParam<const char *> {
  protected:
    static constexpr int channels = 128, head_dim = 64;
    static constexpr int64_t cells = 1000;
    Random rng{11};
    std::vector<float> rows = rng.normals(cells * channels);
    std::vector<float> queries = rng.normals(2 * channels);

    Store make(vidkv_side side, int sequences = 2) {
        return Store({side, channels, head_dim, cells, sequences}, params_of(GetParam()));
    }
    vidkv_status write(Store & store, int64_t first, int64_t n, int sequence = 0) {
        std::vector<int64_t> index(static_cast<size_t>(n));
        std::iota(index.begin(), index.end(), first);
        return store.write(sequence, index.data(), n, &rows[first * channels], channels);
    }
    // Two query tokens of two heads; only key stores that care take them.
    void observe(Store & store, int sequence = 0) {
        if (store.side() != VIDKV_KEYS) return;
        ASSERT_EQ(store.observe_queries(sequence, queries.data(), 2, channels / head_dim, channels, head_dim), VIDKV_OK);
    }
    // Appends in steps as a model would, sealing between them.
    void append(Store & store, int64_t first, int64_t n, int64_t step, int sequence = 0) {
        for (int64_t at = first; at < first + n; at += step) {
            ASSERT_EQ(write(store, at, std::min(step, first + n - at), sequence), VIDKV_OK);
            observe(store, sequence);
            ASSERT_EQ(store.seal(2), VIDKV_OK);
        }
    }
    std::vector<uint16_t> read(const Store & store, int64_t first, int64_t n, int sequence = 0) {
        std::vector<uint16_t> out(static_cast<size_t>(n) * channels);
        EXPECT_EQ(store.read(sequence, first, n, out.data()), VIDKV_OK);
        return out;
    }
    // The bytes of one head in a sealed page; nothing for a page that is not sealed.
    std::vector<uint8_t> sealed(const Store & store, int64_t page, int head, int sequence = 0) {
        const PageView view = store.view(sequence, page, head);
        if (view.state != PageState::sealed) return {};
        if (store.side() == VIDKV_VALUES) {
            const ValueLayout & layout = store.value_layout();
            const ValuePage at = value_page(layout, view.page, head);
            std::vector<uint8_t> out(at.codes, at.codes + layout.head_codes(at.protected_units));
            out.insert(out.end(), at.meta, at.meta + layout.head_meta(at.protected_units));
            return out;
        }
        const KeyLayout & layout = store.key_layout();
        const KeyPage at = key_page(layout, view.page, head);
        size_t codes = 0;
        for (int quad = 0; quad < head_dim / 4; ++quad)
            codes += quad_bytes(key_quad_code(layout, at.meta, quad), page_tokens);
        std::vector<uint8_t> out(at.codes, at.codes + codes);
        out.insert(out.end(), at.meta, at.meta + layout.head_meta);
        return out;
    }
    bool packed(vidkv_side side) { return !is_f16(params_of(GetParam()), side); }
};

constexpr vidkv_side sides[] = {VIDKV_KEYS, VIDKV_VALUES};

TEST_P(StoreTest, WindowAndSinksAreExactTheRestIsSealed) {
    for (const vidkv_side side : sides) {
        Store store = make(side);
        append(store, 0, 500, 1);
        const std::vector<uint16_t> got = read(store, 0, 500);
        for (int64_t cell = 0; cell < 500; ++cell) {
            if (cell >= 4 && cell < 500 - 128) continue; // by then sealed, or soon
            for (int c = 0; c < channels; ++c)
                ASSERT_EQ(got[cell * channels + c], float_to_half(rows[cell * channels + c])) << cell;
        }
        const vidkv_store_stats stats = store.stats();
        EXPECT_EQ(stats.cells_written, 500);
        EXPECT_EQ(stats.cells_sealed, packed(side) ? (500 - 128) / 128 * 128 : 0);
        EXPECT_EQ(stats.pages_reopened, 0);
        EXPECT_EQ(stats.bytes_f16, 500u * channels * 2);
    }
}

TEST_P(StoreTest, SealedPagesNeverChange) {
    for (const vidkv_side side : sides) {
        if (!packed(side)) continue;
        Store store = make(side);
        append(store, 0, 400, 50);
        std::vector<std::vector<uint8_t>> before;
        for (int page = 0; page < 2; ++page) before.push_back(sealed(store, page, 1));
        append(store, 400, 500, 1);
        for (int page = 0; page < 2; ++page) {
            ASSERT_FALSE(before[page].empty());
            EXPECT_EQ(sealed(store, page, 1), before[page]) << page;
        }
    }
}

TEST_P(StoreTest, TrueBitsAreTheBytesOfSealedPages) {
    for (const vidkv_side side : sides) {
        if (!packed(side)) continue;
        Store store = make(side);
        std::vector<int64_t> marked; // the share asked for, in every page
        for (int64_t i = 0; i < 896; ++i) {
            if (i % 128 >= 4 && i % 128 < 4 + std::lround(params_of(GetParam()).protect * 128)) marked.push_back(i);
        }
        const vidkv_status marking = store.protect(0, marked.data(), static_cast<int64_t>(marked.size()));
        ASSERT_EQ(marking, side == VIDKV_VALUES ? VIDKV_OK : VIDKV_E_ARGUMENT);
        append(store, 0, 896, 64);
        const vidkv_store_stats stats = store.stats();
        const vidkv_params params = params_of(GetParam());
        const double bits =
            8.0 * static_cast<double>(stats.sealed_bytes) / static_cast<double>(stats.cells_sealed * channels);
        // The mask of protected tokens is one for all heads, and true bits are stated for one head.
        const double mask = side == VIDKV_VALUES && params.protect > 0 ? 8.0 * 16 / (head_dim * page_tokens) : 0;
        EXPECT_DOUBLE_EQ(bits, vidkv_true_bits(&params, side, head_dim) - mask / 2);
    }
}

TEST_P(StoreTest, PlannedBytesAreWhatAFullStoreHolds) {
    for (const vidkv_side side : sides) {
        Store store = make(side, 1);
        append(store, 0, cells, 1);
        const vidkv_store_stats stats = store.stats();
        // The window can end one page earlier or later, depending on where the last cell falls in its page.
        const double page = 128.0 * channels * 2;
        EXPECT_NEAR(static_cast<double>(stats.bytes), static_cast<double>(stats.bytes_planned), page);
    }
}

TEST_P(StoreTest, RewritingASealedCellReopensItsPageAlone) {
    for (const vidkv_side side : sides) {
        if (!packed(side)) continue;
        Store store = make(side);
        append(store, 0, 600, 40);
        const std::vector<uint16_t> before = read(store, 0, 600);
        const std::vector<uint8_t> neighbour = sealed(store, 2, 0);
        ASSERT_FALSE(neighbour.empty());
        const std::vector<float> fresh = rng.normals(channels);
        const int64_t cell = 200;
        ASSERT_EQ(store.write(0, &cell, 1, fresh.data(), channels), VIDKV_OK);
        EXPECT_EQ(store.view(0, 1, 0).state, PageState::open);
        EXPECT_EQ(store.stats().pages_reopened, 1);
        EXPECT_EQ(sealed(store, 2, 0), neighbour);
        const std::vector<uint16_t> after = read(store, 0, 600);
        for (int64_t i = 0; i < 600 * channels; ++i) {
            const uint16_t want = i / channels == cell ? float_to_half(fresh[i % channels]) : before[i];
            ASSERT_EQ(after[i], want) << i / channels;
        }
    }
}

TEST_P(StoreTest, ReopeningTheFirstPageKeepsTheSinksExact) {
    for (const vidkv_side side : sides) {
        Store store = make(side);
        append(store, 0, 400, 40);
        const int64_t cell = 20;
        ASSERT_EQ(store.write(0, &cell, 1, rows.data(), channels), VIDKV_OK);
        append(store, 400, 300, 30);
        const std::vector<uint16_t> got = read(store, 0, 4);
        for (int i = 0; i < 4 * channels; ++i) ASSERT_EQ(got[i], float_to_half(rows[i]));
    }
}

TEST_P(StoreTest, TruncateForgetsTheTailOnly) {
    for (const vidkv_side side : sides) {
        Store store = make(side);
        append(store, 0, 500, 50);
        const std::vector<uint16_t> before = read(store, 0, 77);
        ASSERT_EQ(store.truncate(0, 77), VIDKV_OK);
        EXPECT_EQ(read(store, 0, 77), before);
        for (const uint16_t x : read(store, 77, 500)) ASSERT_EQ(x, 0);
        EXPECT_EQ(store.stats().cells_written, 77);
        append(store, 77, 400, 1);
        EXPECT_EQ(store.stats().cells_written, 477);
        ASSERT_EQ(store.truncate(0, 0), VIDKV_OK);
        EXPECT_EQ(store.stats().cells_written, 0);
        EXPECT_EQ(store.truncate(0, cells + 1), VIDKV_E_ARGUMENT);
    }
}

TEST_P(StoreTest, SequencesAreIndependentAndCopiesExact) {
    for (const vidkv_side side : sides) {
        Store store = make(side);
        append(store, 0, 400, 40, 0);
        append(store, 200, 400, 40, 1);
        const std::vector<uint16_t> second = read(store, 0, 600, 1);
        append(store, 400, 100, 10, 0);
        EXPECT_EQ(read(store, 0, 600, 1), second);
        ASSERT_EQ(store.copy_sequence(0, 1), VIDKV_OK);
        EXPECT_EQ(read(store, 0, cells, 1), read(store, 0, cells, 0));
        for (int page = 0; page < 4; ++page) EXPECT_EQ(sealed(store, page, 0, 1), sealed(store, page, 0, 0));
        store.clear();
        EXPECT_EQ(store.stats().cells_written, 0);
        EXPECT_EQ(store.copy_sequence(0, 2), VIDKV_E_ARGUMENT);
    }
}

TEST_P(StoreTest, CellsWrittenInAnyOrderWithHoles) {
    for (const vidkv_side side : sides) {
        Store store = make(side);
        // 600 of the first 768 cells in any order, then the next 180 in a row, so that pages with holes are sealed.
        std::vector<int64_t> order(768);
        std::iota(order.begin(), order.end(), 0);
        for (int64_t i = 767; i > 0; --i) std::swap(order[i], order[rng.integer(0, static_cast<int>(i))]);
        order.resize(600);
        for (int64_t i = 0; i < 180; ++i) order.push_back(768 + i);
        std::vector<bool> there(cells);
        for (const int64_t cell : order) {
            ASSERT_EQ(store.write(0, &cell, 1, &rows[cell * channels], channels), VIDKV_OK);
            observe(store);
            ASSERT_EQ(store.seal(1), VIDKV_OK);
            there[cell] = true;
        }
        EXPECT_EQ(store.stats().cells_written, 780);
        EXPECT_EQ(store.stats().cells_sealed, packed(side) ? 600 : 0);
        const std::vector<uint16_t> got = read(store, 0, cells);
        double all_errors = 0, all_energy = 0;
        for (int64_t cell = 0; cell < cells; ++cell) {
            double error = 0, energy = 0;
            for (int c = 0; c < channels; ++c) {
                const float x = there[cell] ? rows[cell * channels + c] : 0.0f, y = half_to_float(got[cell * channels + c]);
                error += (x - y) * (x - y), energy += x * x;
            }
            // A single token at less than one bit can lose more than it holds, by chance; all of them together may not.
            EXPECT_LE(error, 1.3 * energy) << cell;
            all_errors += error, all_energy += energy;
        }
        EXPECT_LT(all_errors, 0.6 * all_energy);
    }
}

TEST_P(StoreTest, KeepOpenSealsNothing) {
    Store store = make(VIDKV_VALUES);
    store.keep_open();
    append(store, 0, 600, 60);
    EXPECT_EQ(store.stats().cells_sealed, 0);
}

TEST_P(StoreTest, HeadDimMayComeLater) {
    Store early = make(VIDKV_KEYS);
    ASSERT_EQ(write(early, 0, 384), VIDKV_OK);
    Store late({VIDKV_KEYS, channels, 0, cells, 2}, params_of(GetParam()));
    append(late, 0, 384, 384);
    EXPECT_EQ(late.stats().cells_sealed, 0);
    EXPECT_EQ(late.set_head_dim(60), VIDKV_E_ARGUMENT);
    EXPECT_EQ(late.set_head_dim(head_dim), VIDKV_OK);
    EXPECT_EQ(late.set_head_dim(head_dim), VIDKV_OK);
    EXPECT_EQ(late.set_head_dim(32), VIDKV_E_ARGUMENT);
    for (Store * store : {&early, &late}) append(*store, 384, 256, 256);
    for (int page = 0; page < 2; ++page) EXPECT_EQ(sealed(late, page, 1), sealed(early, page, 1)) << page;
}

TEST_P(StoreTest, ThreadsDoNotChangeTheCodes) {
    for (const vidkv_side side : sides) {
        Store one = make(side), many = make(side);
        ASSERT_EQ(write(one, 0, 900), VIDKV_OK);
        ASSERT_EQ(write(many, 0, 900), VIDKV_OK);
        for (Store * store : {&one, &many}) observe(*store);
        ASSERT_EQ(one.seal(1), VIDKV_OK);
        ASSERT_EQ(many.seal(5), VIDKV_OK);
        for (int page = 0; page < 6; ++page) {
            for (int head = 0; head < 2; ++head) EXPECT_EQ(sealed(one, page, head), sealed(many, page, head));
            EXPECT_NE(sealed(one, page, 0).empty(), packed(side));
        }
    }
}

INSTANTIATE_TEST_SUITE_P(Presets, StoreTest,
                         testing::Values("f16", "k2v2", "k1.5v2", "k1.5v1.58", "k1v1.58", "k16v2", "t2.2", "t1.65", "t1.15",
                                         "t1.0", "kt1.5v2", "k2vt1.5", "t1.65-stp0.2", "k1.5v1.58-stp0.2", "k1.5v1.58-g128",
                                         "k16vt1-stp0.5"),
                         test::by_preset);

} // namespace
} // namespace vidkv
