// The host's OpenMP team: this program exports a GOMP_parallel of its own, which counts what it is asked for.
#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <numeric>
#include <thread>
#include <vector>

#include "base/thread_pool.h"
#include "core/random.h"
#include "vidkv/vidkv.h"

namespace {

std::vector<unsigned> asked; // threads of each parallel region

} // namespace

extern "C" __attribute__((visibility("default"))) void GOMP_parallel(void (*work)(void *), void * data, unsigned threads,
                                                                     unsigned) {
    asked.push_back(threads);
    std::vector<std::thread> team;
    for (unsigned i = 1; i < threads; ++i) team.emplace_back(work, data);
    work(data);
    for (std::thread & thread : team) thread.join();
}

namespace vidkv {
namespace {

constexpr int32_t kv_heads = 2, head_dim = 64, channels = kv_heads * head_dim, threads = 8;
constexpr int64_t cells = 1024;

struct FreeStore {
    void operator()(vidkv_store * store) const { vidkv_store_free(store); }
};
using StorePointer = std::unique_ptr<vidkv_store, FreeStore>;

StorePointer filled(vidkv_side side, const char * preset) {
    vidkv_params params;
    EXPECT_EQ(vidkv_params_from_preset(preset, &params), VIDKV_OK);
    const vidkv_store_shape shape{side, channels, head_dim, cells, 1};
    vidkv_store * store = nullptr;
    EXPECT_EQ(vidkv_store_create(&shape, &params, &store), VIDKV_OK);
    test::Random rng(5);
    const std::vector<float> rows = rng.normals(static_cast<size_t>(cells) * channels);
    std::vector<int64_t> ids(static_cast<size_t>(cells));
    std::iota(ids.begin(), ids.end(), 0);
    EXPECT_EQ(vidkv_store_write_f32(store, 0, ids.data(), cells, rows.data(), channels), VIDKV_OK);
    return StorePointer(store);
}

TEST(Team, IsFound) {
    asked.clear();
    std::atomic<int> sum{0};
    parallel_for(100, threads, [&](int64_t i) { sum += static_cast<int>(i); });
    EXPECT_EQ(sum, 4950);
    EXPECT_EQ(asked, std::vector<unsigned>{threads});
}

TEST(Team, AttentionTakesOneThreadOrAll) {
    const StorePointer keys = filled(VIDKV_KEYS, "t1.65"), values = filled(VIDKV_VALUES, "t1.65");
    ASSERT_EQ(vidkv_store_seal(keys.get(), 1), VIDKV_OK);
    ASSERT_EQ(vidkv_store_seal(values.get(), 1), VIDKV_OK);
    bool alone = false, together = false;
    for (const int64_t tokens : {1, 2, 7, 64, 200}) {
        for (const int64_t seen : {int64_t{1}, int64_t{130}, int64_t{400}, cells}) {
            std::vector<float> q(static_cast<size_t>(tokens) * 4 * head_dim, 0.1f), out(q.size());
            vidkv_attention_args args{};
            args.q = q.data();
            args.out = out.data();
            args.q_token_stride = args.out_token_stride = 4 * head_dim;
            args.q_head_stride = args.out_head_stride = head_dim;
            args.tokens = tokens;
            args.heads = 4;
            args.cells = seen;
            args.scale = 0.125f;
            args.threads = threads;
            asked.clear();
            ASSERT_EQ(vidkv_attention(keys.get(), values.get(), &args), VIDKV_OK) << vidkv_last_error();
            for (const unsigned n : asked)
                EXPECT_EQ(n, static_cast<unsigned>(threads)) << tokens << " tokens, " << seen << " cells";
            alone |= asked.empty();
            together |= !asked.empty();
        }
    }
    EXPECT_TRUE(alone && together);
}

// However many layers have pages to pack, the team is called as often as for one.
TEST(Team, PagesOfAllLayersArePackedInOneLoop) {
    size_t regions[2];
    for (const int layers : {1, 12}) {
        std::vector<StorePointer> stores;
        std::vector<vidkv_seal_request> requests;
        const std::vector<int64_t> pages = {0, 1};
        for (int layer = 0; layer < layers; ++layer) {
            for (const vidkv_side side : {VIDKV_KEYS, VIDKV_VALUES}) {
                stores.push_back(filled(side, "t1.65"));
                requests.push_back({stores.back().get(), 0, pages.data(), 2, nullptr, 0});
            }
        }
        asked.clear();
        ASSERT_EQ(vidkv_seal_pages(requests.data(), static_cast<int64_t>(requests.size()), threads), VIDKV_OK)
            << vidkv_last_error();
        for (const unsigned n : asked) EXPECT_EQ(n, static_cast<unsigned>(threads));
        regions[layers == 12] = asked.size();
        vidkv_store_stats stats;
        vidkv_store_get_stats(stores.back().get(), &stats);
        EXPECT_EQ(stats.cells_sealed, 256);
    }
    EXPECT_EQ(regions[0], regions[1]);
    EXPECT_LE(regions[0], 5u);
}

} // namespace
} // namespace vidkv
