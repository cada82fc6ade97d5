// Programs and libraries of different versions: structs that are shorter or longer than the library's.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <numeric>
#include <vector>

#include "vidkv/vidkv.h"

namespace {

constexpr int channels = 32, head_dim = 16;
constexpr int64_t cells = 256;

// A struct of a version to come: one more field, which means what it meant before if it is 0.
template <typename T> struct Longer {
    T known;
    uint64_t later;
};

vidkv_params preset(const char * name) {
    vidkv_params params;
    EXPECT_EQ(vidkv_params_from_preset(name, &params), VIDKV_OK);
    return params;
}

using StorePointer = std::unique_ptr<vidkv_store, decltype(&vidkv_store_free)>;

StorePointer filled(int32_t side) {
    const vidkv_store_shape shape{side, channels, head_dim, cells, 1};
    const vidkv_params params = preset("t1.65");
    vidkv_store * store = nullptr;
    EXPECT_EQ(vidkv_store_create(&shape, &params, &store), VIDKV_OK);
    std::vector<int64_t> places(cells);
    std::iota(places.begin(), places.end(), 0);
    std::vector<float> rows(cells * channels);
    for (size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<float>(i % 17) - 8.0f;
    EXPECT_EQ(vidkv_store_write_f32(store, 0, places.data(), cells, rows.data(), channels), VIDKV_OK);
    return {store, vidkv_store_free};
}

// What a call says to a longer struct with nothing in the later field, and with something.
template <typename T, typename Call> void takes(const T & known, Call call) {
    EXPECT_EQ(call(reinterpret_cast<const T *>(&known), sizeof known), VIDKV_OK) << vidkv_last_error();
    Longer<T> longer{known, 0};
    EXPECT_EQ(call(&longer.known, sizeof longer), VIDKV_OK) << vidkv_last_error();
    longer.later = 1;
    EXPECT_EQ(call(&longer.known, sizeof longer), VIDKV_E_ARGUMENT);
    EXPECT_NE(std::strstr(vidkv_last_error(), "newer library"), nullptr) << vidkv_last_error();
    EXPECT_EQ(call(&known, 8), VIDKV_E_ARGUMENT);
}

TEST(Sized, LongerStructsAreTakenIfTheirNewFieldsAreNotSet) {
    const vidkv_params params = preset("t1.65");
    const vidkv_store_shape shape{VIDKV_KEYS, channels, head_dim, cells, 1};
    const vidkv_cache_shape cache_shape{1, 2, head_dim, cells, 1};
    takes(params, [](const vidkv_params * p, size_t size) { return vidkv_params_check_sized(p, size, 64); });
    const auto create = [&](const vidkv_store_shape * s, size_t size, const vidkv_params * p, size_t params_size) {
        vidkv_store * store = nullptr;
        const vidkv_status status = vidkv_store_create_sized(s, size, p, params_size, &store);
        vidkv_store_free(store);
        return status;
    };
    takes(shape, [&](const vidkv_store_shape * s, size_t size) { return create(s, size, &params, sizeof params); });
    takes(params, [&](const vidkv_params * p, size_t size) { return create(&shape, sizeof shape, p, size); });
    takes(cache_shape, [&](const vidkv_cache_shape * s, size_t size) {
        vidkv_cache * cache = nullptr;
        const vidkv_status status = vidkv_cache_create_sized(s, size, &params, sizeof params, &cache);
        vidkv_cache_free(cache);
        return status;
    });
    EXPECT_EQ(vidkv_planned_bytes_sized(&shape, sizeof shape, &params, 8), 0u);
    EXPECT_EQ(vidkv_true_bits_sized(&params, 8, VIDKV_KEYS, 64), 0.0);
    EXPECT_GT(vidkv_planned_bytes(&shape, &params), 0u);
}

TEST(Sized, AttentionAndRequestsOfLongerStructs) {
    const StorePointer keys = filled(VIDKV_KEYS), values = filled(VIDKV_VALUES);
    const std::vector<float> q(channels, 0.5f);
    std::vector<float> out(channels), again(channels);
    vidkv_attention_args args{};
    args.q = q.data();
    args.out = out.data();
    args.q_token_stride = args.out_token_stride = channels;
    args.q_head_stride = args.out_head_stride = head_dim;
    args.tokens = 1;
    args.heads = 2;
    args.cells = cells;
    args.scale = 0.25f;
    args.threads = 1;
    takes(args, [&](const vidkv_attention_args * a, size_t size) {
        return vidkv_attention_sized(keys.get(), values.get(), a, size);
    });
    const int64_t first[] = {0}, second[] = {1};
    const Longer<vidkv_seal_request> requests[] = {{{keys.get(), 0, first, 1, nullptr, 0}, 0},
                                                   {{values.get(), 0, second, 1, nullptr, 0}, 0}};
    EXPECT_EQ(vidkv_seal_pages_sized(&requests[0].known, sizeof requests[0], 2, 1), VIDKV_OK) << vidkv_last_error();
    EXPECT_NE(vidkv_store_sealed_page(keys.get(), 0, 0, nullptr), nullptr);
    EXPECT_NE(vidkv_store_sealed_page(values.get(), 0, 1, nullptr), nullptr);
    const Longer<vidkv_seal_request> set{{keys.get(), 0, second, 1, nullptr, 0}, 7};
    EXPECT_EQ(vidkv_seal_pages_sized(&set.known, sizeof set, 1, 1), VIDKV_E_ARGUMENT);
    EXPECT_EQ(vidkv_seal_pages_sized(&set.known, 4, 1, 1), VIDKV_E_ARGUMENT);
}

TEST(Sized, WhatIsFilledIsNeverOverrun) {
    const StorePointer keys = filled(VIDKV_KEYS);
    unsigned char bytes[2 * sizeof(vidkv_store_stats)];
    vidkv_store_stats stats;
    vidkv_store_get_stats(keys.get(), &stats);
    EXPECT_EQ(stats.cells_written, cells);
    for (const size_t size : {size_t{8}, sizeof stats - 8, sizeof stats, sizeof stats + 16}) {
        std::memset(bytes, 0xab, sizeof bytes);
        vidkv_store_get_stats_sized(keys.get(), reinterpret_cast<vidkv_store_stats *>(bytes), size);
        EXPECT_EQ(std::memcmp(bytes, &stats, std::min(size, sizeof stats)), 0);
        for (size_t i = sizeof stats; i < size; ++i) EXPECT_EQ(bytes[i], 0);
        EXPECT_EQ(bytes[size], 0xab);
    }
    std::memset(bytes, 0xab, sizeof bytes);
    EXPECT_EQ(vidkv_params_from_preset_sized("t1.65", reinterpret_cast<vidkv_params *>(bytes), 12), VIDKV_OK);
    EXPECT_EQ(bytes[12], 0xab);
}

} // namespace
