// Copies of sequences and stores share their pages: a fork costs a table, writing to one is not seen by the others, and what is shared
// is counted once. And open pages, which hold little more than was written.
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <numeric>
#include <thread>
#include <vector>

#include "cache/store.h"
#include "core/encoding.h"
#include "core/names.h"
#include "core/random.h"

namespace vidkv {
namespace {

using test::Random;

constexpr int channels = 128, head_dim = 64;
constexpr int64_t cells = 2600;

class SharedPages : public testing::TestWithParam<std::tuple<const char *, vidkv_side>> {
  protected:
    Random rng{77};
    std::vector<float> rows = rng.normals(cells * channels);

    vidkv_side side() const { return std::get<1>(GetParam()); }
    Store make(int sequences) {
        return Store({side(), channels, head_dim, cells, sequences}, test::preset(std::get<0>(GetParam())));
    }
    void append(Store & store, int sequence, int64_t first, int64_t n, int64_t from_row = -1) {
        std::vector<int64_t> places(static_cast<size_t>(n));
        std::iota(places.begin(), places.end(), first);
        const float * from = &rows[static_cast<size_t>((from_row < 0 ? first : from_row) * channels)];
        ASSERT_EQ(store.write(sequence, places.data(), n, from, channels), VIDKV_OK);
    }
    void observe(Store & store, int sequence) {
        if (side() != VIDKV_KEYS) return;
        const std::vector<float> q = rng.normals(64 * 2 * channels);
        ASSERT_EQ(store.observe_queries(sequence, q.data(), 64, 4, 2 * channels, head_dim), VIDKV_OK);
    }
    Store filled(int sequences) {
        Store store = make(sequences);
        observe(store, 0);
        append(store, 0, 0, 2500);
        EXPECT_EQ(store.seal(1), VIDKV_OK);
        return store;
    }
    static std::vector<uint16_t> read(const Store & store, int sequence, int64_t n = 2500) {
        std::vector<uint16_t> out(static_cast<size_t>(n) * channels);
        EXPECT_EQ(store.read(sequence, 0, n, out.data()), VIDKV_OK);
        return out;
    }
};

TEST_P(SharedPages, AForkCostsATableAndIsCountedOnce) {
    SCOPED_TRACE(rng.trace());
    Store store = filled(64);
    const auto before = read(store, 0);
    const vidkv_store_stats alone = store.stats();
    for (int copy = 1; copy < 64; ++copy) ASSERT_EQ(store.copy_sequence(0, copy), VIDKV_OK);
    const vidkv_store_stats all = store.stats();
    EXPECT_LT(static_cast<double>(all.bytes - alone.bytes) / 63, 0.01 * static_cast<double>(alone.bytes));
    EXPECT_EQ(all.sealed_bytes, alone.sealed_bytes);
    EXPECT_EQ(all.cells_written, 64 * alone.cells_written);
    EXPECT_EQ(all.bytes_f16, 64 * alone.bytes_f16);
    for (int64_t page = 0; page < store.pages(); ++page) {
        EXPECT_EQ(store.view(0, page, 0).page, store.view(63, page, 0).page);
        EXPECT_EQ(store.view(0, page, 0).rows, store.view(63, page, 0).rows);
    }
    EXPECT_EQ(read(store, 63), before);
}

TEST_P(SharedPages, WritingToACopyIsNotSeenByTheOthers) {
    SCOPED_TRACE(rng.trace());
    Store store = filled(4);
    const auto before = read(store, 0);
    for (int copy = 1; copy < 4; ++copy) ASSERT_EQ(store.copy_sequence(0, copy), VIDKV_OK);
    append(store, 1, 2500, 60);                  // the open page
    append(store, 2, 300, 2, 1000);              // reopens a sealed one
    ASSERT_EQ(store.truncate(3, 700), VIDKV_OK); // cuts through a sealed one
    EXPECT_EQ(read(store, 0), before);
    EXPECT_EQ(read(store, 1), before);
    EXPECT_NE(read(store, 2), before);
    const auto cut = read(store, 3);
    EXPECT_TRUE(std::equal(cut.begin(), cut.begin() + 640 * channels, before.begin()));
    EXPECT_TRUE(std::all_of(cut.begin() + 700 * channels, cut.end(), [](uint16_t x) { return x == 0; }));
    // What only the copies held is free again, and the first is what it was.
    for (int copy = 1; copy < 4; ++copy) ASSERT_EQ(store.truncate(copy, 0), VIDKV_OK);
    Store alone = filled(4);
    EXPECT_NEAR(static_cast<double>(store.stats().bytes), static_cast<double>(alone.stats().bytes), 512);
    observe(store, 0);
    append(store, 0, 2500, 100);
    EXPECT_EQ(store.seal(1), VIDKV_OK);
    EXPECT_EQ(read(store, 0).size(), before.size());
}

TEST_P(SharedPages, ForksGoOnAsOneThatWasNeverForked) {
    SCOPED_TRACE(rng.trace());
    Store forked = filled(3);
    ASSERT_EQ(forked.copy_sequence(0, 1), VIDKV_OK);
    const std::unique_ptr<Store> copy = forked.clone();
    append(forked, 0, 2500, 90, 17); // what the other ones do is their own affair
    ASSERT_EQ(forked.truncate(1, 300), VIDKV_OK);
    const std::vector<float> q = rng.normals(64 * 2 * channels);
    for (const int sequence : {0, 1}) {
        append(*copy, sequence, 2500, 100);
        if (side() == VIDKV_KEYS) {
            ASSERT_EQ(copy->observe_queries(sequence, q.data(), 64, 4, 2 * channels, head_dim), VIDKV_OK);
        }
    }
    ASSERT_EQ(copy->seal(2), VIDKV_OK);
    const auto went_on = read(*copy, 0, 2600);
    EXPECT_EQ(read(*copy, 1, 2600), went_on);
    EXPECT_TRUE(std::equal(went_on.begin(), went_on.begin() + 2304 * channels, read(*copy, 1).begin()));
}

TEST_P(SharedPages, CopiesLiveAndDieInThreadsOfTheirOwn) {
    SCOPED_TRACE(rng.trace());
    Store store = filled(2);
    const auto before = read(store, 0);
    std::vector<std::unique_ptr<Store>> copies;
    for (int i = 0; i < 4; ++i) copies.push_back(store.clone());
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; ++i) {
        threads.emplace_back([&, i] {
            std::unique_ptr<Store> copy = std::move(copies[static_cast<size_t>(i)]);
            for (int round = 0; round < 8; ++round) {
                const std::unique_ptr<Store> other = copy->clone();
                append(*copy, 0, 200 + 300 * i + round, 70);
                EXPECT_EQ(copy->copy_sequence(0, 1), VIDKV_OK);
                EXPECT_EQ(copy->truncate(0, 1500 - 100 * round), VIDKV_OK);
                EXPECT_EQ(other->copy_sequence(1, 0), VIDKV_OK);
            }
        });
    }
    for (std::thread & thread : threads) thread.join();
    EXPECT_EQ(read(store, 0), before);
}

// Never more than f16 would hold, and a page: at any length.
TEST_P(SharedPages, AnOpenPageGrowsWithWhatIsWritten) {
    Store store = make(1);
    const uint64_t row = channels * 2, page = VIDKV_PAGE * row;
    for (int64_t n = 0; n < 400; ++n) {
        append(store, 0, n, 1);
        ASSERT_EQ(store.seal(1), VIDKV_OK);
        const vidkv_store_stats stats = store.stats();
        ASSERT_LE(stats.bytes, stats.bytes_f16 + page) << n;
        if (n < VIDKV_PAGE) {
            ASSERT_LE(stats.bytes, stats.bytes_f16 + 32 * row + 2048) << n;
        }
    }
    const auto grown = read(store, 0, 400);
    Store at_once = make(1);
    append(at_once, 0, 0, 400);
    if (is_f16(store.params(), side())) {
        EXPECT_EQ(read(at_once, 0, 400), grown);
    }
}

// Pages that are packed before they are full, and cells written from the last to the first.
TEST_P(SharedPages, ShortPagesAreReadAndPackedAsIfTheyWereWhole) {
    SCOPED_TRACE(rng.trace());
    Store growing = make(1), whole = make(1);
    append(whole, 0, 0, VIDKV_PAGE);
    ASSERT_EQ(whole.truncate(0, 40), VIDKV_OK); // an open page of 128 rows
    for (int64_t cell = 39; cell >= 0; --cell) append(growing, 0, cell, 1);
    EXPECT_EQ(read(growing, 0, 200), read(whole, 0, 200));
    for (Store * store : {&growing, &whole}) {
        std::vector<SealOrder> orders{{store, 0, {0}}};
        seal_pages(orders, 1);
    }
    EXPECT_EQ(read(growing, 0, 200), read(whole, 0, 200));
    size_t bytes = 0, others = 0;
    const uint8_t *page = growing.sealed_page(0, 0, bytes), *other = whole.sealed_page(0, 0, others);
    ASSERT_EQ(bytes, others);
    if (page) {
        EXPECT_TRUE(std::equal(page, page + bytes, other));
    }
}

INSTANTIATE_TEST_SUITE_P(Presets, SharedPages,
                         testing::Combine(testing::Values("f16", "k1.5v1.58-stp0.2", "t1.65"),
                                          testing::Values(VIDKV_KEYS, VIDKV_VALUES)),
                         [](const auto & instance) {
                             return test::test_name(std::get<0>(instance.param)) +
                                    (std::get<1>(instance.param) == VIDKV_KEYS ? "_keys" : "_values");
                         });

} // namespace
} // namespace vidkv
