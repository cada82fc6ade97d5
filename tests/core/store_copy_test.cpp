// Copies, changes of capacity and packed pages, through the C interface.
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "core/random.h"
#include "vidkv/vidkv.h"

namespace vidkv {
namespace {

struct Free {
    void operator()(vidkv_store * store) const { vidkv_store_free(store); }
};
using StorePtr = std::unique_ptr<vidkv_store, Free>;

class StoreCopy : public testing::TestWithParam<std::tuple<const char *, vidkv_side>> {
  protected:
    static constexpr int channels = 128, head_dim = 64;
    static constexpr int64_t cells = 700, pages = (cells + VIDKV_PAGE - 1) / VIDKV_PAGE;
    test::Random rng{29};
    std::vector<float> rows = rng.normals(cells * channels);

    StorePtr make() {
        vidkv_params params;
        EXPECT_EQ(vidkv_params_from_preset(std::get<0>(GetParam()), &params), VIDKV_OK);
        const vidkv_store_shape shape{std::get<1>(GetParam()), channels, head_dim, cells, 2};
        vidkv_store * store = nullptr;
        EXPECT_EQ(vidkv_store_create(&shape, &params, &store), VIDKV_OK);
        return StorePtr(store);
    }
    void append(vidkv_store * store, int sequence, int64_t first, int64_t n) {
        std::vector<int64_t> index(static_cast<size_t>(n));
        std::iota(index.begin(), index.end(), first);
        ASSERT_EQ(vidkv_store_write_f32(store, sequence, index.data(), n, &rows[first * channels], channels), VIDKV_OK);
        ASSERT_EQ(vidkv_store_seal(store, 1), VIDKV_OK);
    }
    StorePtr filled() {
        StorePtr store = make();
        append(store.get(), 0, 0, 600);
        append(store.get(), 1, 0, 300);
        return store;
    }
    static std::vector<uint8_t> page(const vidkv_store * store, int sequence, int64_t index) {
        uint64_t bytes = 0;
        const uint8_t * data = vidkv_store_sealed_page(store, sequence, index, &bytes);
        return data ? std::vector<uint8_t>(data, data + bytes) : std::vector<uint8_t>();
    }
    static std::vector<std::vector<uint8_t>> codes(const vidkv_store * store) {
        std::vector<std::vector<uint8_t>> out;
        for (int sequence = 0; sequence < 2; ++sequence) {
            for (int64_t i = 0; i < pages; ++i) out.push_back(page(store, sequence, i));
        }
        return out;
    }
    static std::vector<uint16_t> levels(const vidkv_store * store, int sequence, int64_t n) {
        std::vector<uint16_t> out(static_cast<size_t>(n) * channels);
        EXPECT_EQ(vidkv_store_read_f16(store, sequence, 0, n, out.data()), VIDKV_OK);
        return out;
    }
};

TEST_P(StoreCopy, CloneSharesTheCodesAndOutlivesTheOriginal) {
    SCOPED_TRACE(rng.trace());
    StorePtr store = filled();
    vidkv_store * out = nullptr;
    ASSERT_EQ(vidkv_store_clone(store.get(), &out), VIDKV_OK);
    StorePtr copy(out);
    const auto before = codes(store.get());
    ASSERT_FALSE(before[0].empty());
    EXPECT_EQ(codes(copy.get()), before);
    EXPECT_EQ(vidkv_store_sealed_page(copy.get(), 0, 0, nullptr), vidkv_store_sealed_page(store.get(), 0, 0, nullptr));
    const auto seen = levels(store.get(), 0, 600);
    EXPECT_EQ(levels(copy.get(), 0, 600), seen);

    vidkv_store_clear(store.get());
    EXPECT_TRUE(page(store.get(), 0, 0).empty());
    store.reset();
    EXPECT_EQ(codes(copy.get()), before);
    EXPECT_EQ(levels(copy.get(), 0, 600), seen);
}

TEST_P(StoreCopy, CloneGoesOnAsTheOriginalDoes) {
    SCOPED_TRACE(rng.trace());
    StorePtr store = filled();
    vidkv_store * out = nullptr;
    ASSERT_EQ(vidkv_store_clone(store.get(), &out), VIDKV_OK);
    StorePtr copy(out);
    append(store.get(), 0, 600, 100);
    EXPECT_NE(codes(copy.get()), codes(store.get()));
    append(copy.get(), 0, 600, 100);
    EXPECT_EQ(codes(copy.get()), codes(store.get()));
    EXPECT_EQ(levels(copy.get(), 0, 700), levels(store.get(), 0, 700));
}

TEST_P(StoreCopy, ResizeKeepsTheCodes) {
    SCOPED_TRACE(rng.trace());
    StorePtr store = filled();
    const auto before = codes(store.get());
    const auto seen = levels(store.get(), 0, 600);
    ASSERT_EQ(vidkv_store_resize(store.get(), 5000, 3), VIDKV_OK);
    EXPECT_EQ(codes(store.get()), before);
    const int64_t last = 4999;
    EXPECT_EQ(vidkv_store_write_f32(store.get(), 2, &last, 1, rows.data(), channels), VIDKV_OK);
    EXPECT_EQ(vidkv_store_truncate(store.get(), 2, 0), VIDKV_OK);
    ASSERT_EQ(vidkv_store_resize(store.get(), 600, 2), VIDKV_OK);
    EXPECT_EQ(levels(store.get(), 0, 600), seen);
    const int64_t beyond = 600;
    EXPECT_EQ(vidkv_store_write_f32(store.get(), 0, &beyond, 1, rows.data(), channels), VIDKV_E_ARGUMENT);
}

TEST_P(StoreCopy, ResizeRefusesToLoseWrittenCells) {
    StorePtr store = filled();
    const auto before = codes(store.get());
    EXPECT_EQ(vidkv_store_resize(store.get(), 599, 2), VIDKV_E_ARGUMENT);
    EXPECT_NE(std::string(vidkv_last_error()).find("cell 599 is written"), std::string::npos) << vidkv_last_error();
    EXPECT_EQ(codes(store.get()), before);
}

TEST_P(StoreCopy, ReleasedPagesLeaveTheirPlan) {
    SCOPED_TRACE(rng.trace());
    StorePtr store = filled(), other = filled();
    const auto before = codes(store.get());
    vidkv_store_stats stats;
    vidkv_store_get_stats(store.get(), &stats);
    const uint64_t held = stats.bytes;
    for (int64_t index = 0; !page(store.get(), 0, index).empty(); ++index) {
        ASSERT_EQ(vidkv_store_release_page(store.get(), 0, index), VIDKV_OK);
        EXPECT_TRUE(page(store.get(), 0, index).empty());
    }
    vidkv_store_get_stats(store.get(), &stats);
    EXPECT_LT(stats.bytes, held);
    EXPECT_EQ(page(store.get(), 1, 0), page(other.get(), 1, 0));
    std::vector<uint16_t> zeros(static_cast<size_t>(128) * channels);
    EXPECT_EQ(std::vector<uint16_t>(levels(store.get(), 0, 128)), zeros);
    // The pages that follow are packed by the same plan as if nothing had been released.
    append(store.get(), 0, 600, 100);
    append(other.get(), 0, 600, 100);
    EXPECT_FALSE(page(store.get(), 0, 3).empty());
    EXPECT_EQ(page(store.get(), 0, 3), page(other.get(), 0, 3));
    // Writing to a released page begins it anew.
    append(store.get(), 0, 0, 1);
    EXPECT_EQ(levels(store.get(), 0, 1), levels(other.get(), 0, 1));
}

TEST_P(StoreCopy, ChannelPlans) {
    StorePtr store = filled();
    std::vector<uint16_t> order(head_dim, 0xffff), means(head_dim);
    const bool keys = std::get<1>(GetParam()) == VIDKV_KEYS;
    ASSERT_EQ(vidkv_store_channel_plan(store.get(), 0, 0, order.data(), means.data()), keys ? VIDKV_OK : VIDKV_E_ARGUMENT);
    if (keys) {
        std::sort(order.begin(), order.end());
        for (int c = 0; c < head_dim; ++c) EXPECT_EQ(order[c], c);
    }
    EXPECT_EQ(vidkv_store_channel_plan(store.get(), 0, -1, order.data(), means.data()), VIDKV_E_ARGUMENT);
    EXPECT_EQ(vidkv_store_channel_plan(store.get(), 2, 0, order.data(), means.data()), VIDKV_E_ARGUMENT);
    EXPECT_EQ(vidkv_store_channel_plan(store.get(), 0, 0, nullptr, means.data()), VIDKV_E_ARGUMENT);
    EXPECT_EQ(vidkv_store_channel_plan(make().get(), 0, 0, order.data(), means.data()), VIDKV_E_ARGUMENT);
}

TEST_P(StoreCopy, APageThatIsCutThroughAgesAnew) {
    SCOPED_TRACE(rng.trace());
    StorePtr store = filled();
    ASSERT_EQ(vidkv_store_truncate(store.get(), 0, 200), VIDKV_OK);
    append(store.get(), 0, 200, 100); // the cut page is full again, and not old
    EXPECT_FALSE(page(store.get(), 0, 0).empty());
    EXPECT_TRUE(page(store.get(), 0, 1).empty());
    append(store.get(), 0, 300, 100);
    EXPECT_FALSE(page(store.get(), 0, 1).empty());
}

TEST_P(StoreCopy, BadArguments) {
    StorePtr store = filled();
    for (const int64_t n : {int64_t{0}, int64_t{-1}, int64_t{INT32_MAX} + 1}) {
        EXPECT_EQ(vidkv_store_resize(store.get(), n, 2), VIDKV_E_ARGUMENT) << n;
    }
    EXPECT_EQ(vidkv_store_resize(store.get(), 700, 0), VIDKV_E_ARGUMENT);
    EXPECT_EQ(vidkv_store_resize(nullptr, 700, 2), VIDKV_E_ARGUMENT);
    vidkv_store * out = nullptr;
    EXPECT_EQ(vidkv_store_clone(nullptr, &out), VIDKV_E_ARGUMENT);
    EXPECT_EQ(vidkv_store_clone(store.get(), nullptr), VIDKV_E_ARGUMENT);

    const std::pair<int, int64_t> not_sealed[] = {{-1, 0}, {2, 0}, {0, -1}, {0, pages}, {0, 4}};
    for (const auto & [sequence, index] : not_sealed) {
        uint64_t bytes = 1;
        EXPECT_EQ(vidkv_store_sealed_page(store.get(), sequence, index, &bytes), nullptr) << sequence << " " << index;
        EXPECT_EQ(bytes, 0u);
    }
    for (const auto & [sequence, index] : {std::pair{-1, int64_t{0}}, {2, 0}, {0, -1}, {0, pages}, {1, 4}}) {
        EXPECT_EQ(vidkv_store_release_page(store.get(), sequence, index), VIDKV_E_ARGUMENT) << sequence << " " << index;
    }
    uint64_t bytes = 1;
    EXPECT_EQ(vidkv_store_sealed_page(nullptr, 0, 0, &bytes), nullptr);
    EXPECT_EQ(bytes, 0u);
}

INSTANTIATE_TEST_SUITE_P(Presets, StoreCopy,
                         testing::Combine(testing::Values("k2v2", "k1.5v1.58", "t1.65", "t1.65-stp0.2"),
                                          testing::Values(VIDKV_KEYS, VIDKV_VALUES)));

} // namespace
} // namespace vidkv
