// Packed pages as bytes, from one store to another.
#include <gtest/gtest.h>

#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "codec/value_page.h"
#include "vidkv/vidkv.h"

namespace {

constexpr int32_t channels = 128, head_dim = 64;
constexpr int64_t cells = 1024;

struct StoreFree {
    void operator()(vidkv_store * store) const { vidkv_store_free(store); }
};
using StorePtr = std::unique_ptr<vidkv_store, StoreFree>;

StorePtr make(const char * preset, vidkv_side side) {
    vidkv_params params;
    EXPECT_EQ(vidkv_params_from_preset(preset, &params), VIDKV_OK);
    const vidkv_store_shape shape = {side, channels, head_dim, cells, 1};
    vidkv_store * store = nullptr;
    EXPECT_EQ(vidkv_store_create(&shape, &params, &store), VIDKV_OK) << vidkv_last_error();
    return StorePtr(store);
}

// moving: a picture that goes one way.
void fill(vidkv_store * store, int64_t first, int64_t n, uint32_t seed, bool moving = false) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    std::vector<float> rows(static_cast<size_t>(n * channels)), way(channels);
    for (float & x : way) x = normal(random);
    for (float & x : rows) x = normal(random);
    for (size_t i = 0; i < rows.size() && moving; ++i) {
        const auto token = static_cast<float>(i / channels % VIDKV_PAGE);
        rows[i] = way[(i + 3) % channels] + token / 32 * way[i % channels] + 0.1f * rows[i];
    }
    std::vector<int64_t> places(static_cast<size_t>(n));
    std::iota(places.begin(), places.end(), first);
    ASSERT_EQ(vidkv_store_write_f32(store, 0, places.data(), n, rows.data(), channels), VIDKV_OK);
}

std::vector<uint16_t> read(const vidkv_store * store, int64_t page) {
    std::vector<uint16_t> rows(static_cast<size_t>(VIDKV_PAGE * channels));
    EXPECT_EQ(vidkv_store_read_f16(store, 0, page * VIDKV_PAGE, VIDKV_PAGE, rows.data()), VIDKV_OK);
    return rows;
}

// The page as numbers: open, and with all its rows.
void copy_rows(const vidkv_store * from, int64_t page, vidkv_store * to, int64_t to_page) {
    const std::vector<uint16_t> rows = read(from, page);
    std::vector<int64_t> places(VIDKV_PAGE);
    std::iota(places.begin(), places.end(), to_page * VIDKV_PAGE);
    ASSERT_EQ(vidkv_store_write_f16(to, 0, places.data(), VIDKV_PAGE, rows.data(), channels), VIDKV_OK);
}

std::vector<uint8_t> exported(const vidkv_store * store, int64_t page, int32_t & sinks) {
    uint64_t bytes = 0;
    EXPECT_EQ(vidkv_store_export_page(store, 0, page, nullptr, &bytes, &sinks), VIDKV_OK) << vidkv_last_error();
    std::vector<uint8_t> out(bytes);
    EXPECT_EQ(vidkv_store_export_page(store, 0, page, out.data(), &bytes, &sinks), VIDKV_OK);
    return out;
}

vidkv_status import(vidkv_store * store, int64_t page, const std::vector<uint8_t> & bytes) {
    return vidkv_store_import_page(store, 0, page, bytes.data(), bytes.size());
}

StorePtr packed(const char * preset, vidkv_side side, uint32_t seed) {
    StorePtr store = make(preset, side);
    fill(store.get(), 0, 600, seed);
    EXPECT_EQ(vidkv_store_seal(store.get(), 1), VIDKV_OK);
    return store;
}

const std::vector<std::pair<const char *, vidkv_side>> kinds = {{"t1.65", VIDKV_KEYS},
                                                                {"t1.65", VIDKV_VALUES},
                                                                {"t2.2", VIDKV_KEYS},
                                                                {"k1.5v1.58", VIDKV_KEYS},
                                                                {"k1.5v1.58-stp0.2", VIDKV_VALUES}};

TEST(PageExport, TheSameCodesElsewhere) {
    for (const auto & [preset, side] : kinds) {
        SCOPED_TRACE(preset);
        const StorePtr from = packed(preset, side, 1), to = make(preset, side);
        for (const int64_t page : {int64_t(0), int64_t(2)}) {
            int32_t sinks = -1;
            const std::vector<uint8_t> bytes = exported(from.get(), page, sinks);
            EXPECT_EQ(sinks, page == 0 ? 4 : 0);
            copy_rows(from.get(), page, to.get(), page);
            ASSERT_EQ(import(to.get(), page, bytes), VIDKV_OK) << vidkv_last_error();
            int32_t again = 0;
            EXPECT_EQ(exported(to.get(), page, again), bytes);
            EXPECT_EQ(again, sinks);
            EXPECT_EQ(read(to.get(), page), read(from.get(), page));
        }
    }
}

// Pages of two stores, whose channel plans differ, in one sequence; what is packed later goes beside them.
TEST(PageExport, PagesOfSeveralPlans) {
    const StorePtr first = packed("t1.65", VIDKV_KEYS, 1), second = packed("t1.65", VIDKV_KEYS, 2),
                   to = make("t1.65", VIDKV_KEYS);
    int32_t sinks = 0;
    copy_rows(first.get(), 0, to.get(), 0);
    copy_rows(second.get(), 1, to.get(), 1);
    ASSERT_EQ(import(to.get(), 0, exported(first.get(), 0, sinks)), VIDKV_OK);
    ASSERT_EQ(import(to.get(), 1, exported(second.get(), 1, sinks)), VIDKV_OK);
    fill(to.get(), 2 * VIDKV_PAGE, 400, 3);
    ASSERT_EQ(vidkv_store_seal(to.get(), 1), VIDKV_OK);
    EXPECT_EQ(read(to.get(), 0), read(first.get(), 0));
    EXPECT_EQ(read(to.get(), 1), read(second.get(), 1));
    uint64_t bytes = 0;
    EXPECT_NE(vidkv_store_sealed_page(to.get(), 0, 2, &bytes), nullptr);
}

TEST(PageExport, ValuesWithADirection) {
    for (const char * preset : {"t1.15", "t1.65", "t2.2", "t4.2"}) {
        SCOPED_TRACE(preset);
        const StorePtr from = make(preset, VIDKV_VALUES), to = make(preset, VIDKV_VALUES);
        fill(from.get(), 0, 600, 4, true);
        ASSERT_EQ(vidkv_store_seal(from.get(), 1), VIDKV_OK);
        vidkv_params params;
        ASSERT_EQ(vidkv_params_from_preset(preset, &params), VIDKV_OK);
        const vidkv::ValueLayout layout = vidkv::make_value_layout(params, head_dim, channels / head_dim);
        uint64_t size = 0;
        const auto * page = static_cast<const uint8_t *>(vidkv_store_sealed_page(from.get(), 0, 1, &size));
        ASSERT_TRUE(page);
        ASSERT_EQ(vidkv::most_shared(layout, page), vidkv::Sharing::direction);
        int32_t sinks = 0;
        const std::vector<uint8_t> bytes = exported(from.get(), 1, sinks);
        copy_rows(from.get(), 1, to.get(), 1);
        ASSERT_EQ(import(to.get(), 1, bytes), VIDKV_OK) << vidkv_last_error();
        EXPECT_EQ(exported(to.get(), 1, sinks), bytes);
        EXPECT_EQ(read(to.get(), 1), read(from.get(), 1));
    }
}

TEST(PageExport, WhatIsRefused) {
    const StorePtr from = packed("t1.65", VIDKV_KEYS, 1), to = make("t1.65", VIDKV_KEYS);
    int32_t sinks = 0;
    uint64_t bytes = 0;
    EXPECT_EQ(vidkv_store_export_page(from.get(), 0, 4, nullptr, &bytes, &sinks), VIDKV_E_ARGUMENT); // open
    EXPECT_EQ(vidkv_store_export_page(from.get(), 0, 99, nullptr, &bytes, &sinks), VIDKV_E_ARGUMENT);
    const std::vector<uint8_t> page = exported(from.get(), 1, sinks);
    std::vector<uint8_t> room(page.size());
    bytes = page.size() - 1;
    EXPECT_EQ(vidkv_store_export_page(from.get(), 0, 1, room.data(), &bytes, &sinks), VIDKV_E_ARGUMENT);
    EXPECT_EQ(import(to.get(), 1, page), VIDKV_E_ARGUMENT); // it holds nothing
    copy_rows(from.get(), 1, to.get(), 1);
    EXPECT_EQ(import(to.get(), 99, page), VIDKV_E_ARGUMENT);
    const std::vector<uint16_t> before = read(to.get(), 1);
    EXPECT_EQ(import(to.get(), 1, std::vector<uint8_t>(page.begin(), page.end() - 1)), VIDKV_E_FORMAT);
    EXPECT_EQ(import(to.get(), 1, {0}), VIDKV_E_FORMAT);
    std::vector<uint8_t> forged = page;
    forged[32] = 0xff; // a channel that does not exist
    forged[33] = 0xff;
    EXPECT_EQ(import(to.get(), 1, forged), VIDKV_E_FORMAT);
    const StorePtr other = make("t2.2", VIDKV_KEYS), values = make("t1.65", VIDKV_VALUES);
    for (vidkv_store * store : {other.get(), values.get()}) {
        copy_rows(from.get(), 1, store, 1);
        EXPECT_EQ(import(store, 1, page), VIDKV_E_FORMAT);
    }
    EXPECT_EQ(read(to.get(), 1), before);
    EXPECT_EQ(import(to.get(), 1, page), VIDKV_OK);
    EXPECT_EQ(import(to.get(), 1, page), VIDKV_E_ARGUMENT); // it is packed now
}

} // namespace
