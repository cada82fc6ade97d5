// "Bytes held" against the allocations of the process, counted in operator new and in mmap.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <new>
#include <numeric>
#include <string>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <vector>

#include "core/names.h"
#include "vidkv/vidkv.h"

namespace {

std::atomic<long> live_bytes{0}, taken_bytes{0}; // taken: whether they were given back or not
constexpr size_t header = 16;                    // keeps the size of the block, and malloc's alignment

} // namespace

void * operator new(size_t size) {
    auto * block = static_cast<size_t *>(std::malloc(size + header));
    if (!block) throw std::bad_alloc();
    *block = size;
    live_bytes += static_cast<long>(size);
    taken_bytes += static_cast<long>(size);
    return reinterpret_cast<char *>(block) + header;
}
void operator delete(void * pointer) noexcept {
    if (!pointer) return;
    void * block = static_cast<char *>(pointer) - header;
    live_bytes -= static_cast<long>(*static_cast<size_t *>(block));
    std::free(block);
}
void operator delete(void * pointer, size_t) noexcept { operator delete(pointer); }

// Pages stand on cache lines' boundaries: the size stands one alignment before them.
void * operator new(size_t size, std::align_val_t alignment) {
    const size_t align = static_cast<size_t>(alignment);
    auto * block = static_cast<char *>(std::aligned_alloc(align, (size + 2 * align - 1) / align * align));
    if (!block) throw std::bad_alloc();
    *reinterpret_cast<size_t *>(block) = size;
    live_bytes += static_cast<long>(size);
    taken_bytes += static_cast<long>(size);
    return block + align;
}
void operator delete(void * pointer, std::align_val_t alignment) noexcept {
    if (!pointer) return;
    void * block = static_cast<char *>(pointer) - static_cast<size_t>(alignment);
    live_bytes -= static_cast<long>(*static_cast<size_t *>(block));
    std::free(block);
}

// The system's pages, which open pages are made of. (glibc's own calls do not come here.)
extern "C" void * mmap(void * at, size_t size, int protection, int flags, int file, off_t offset) noexcept {
    const long mapped = syscall(SYS_mmap, at, size, protection, flags, file, offset);
    if (mapped != -1) live_bytes += static_cast<long>(size);
    return reinterpret_cast<void *>(mapped); // NOLINT(performance-no-int-to-ptr): an address, as the call returns it
}
extern "C" int munmap(void * at, size_t size) noexcept {
    const long done = syscall(SYS_munmap, at, size);
    if (done == 0) live_bytes -= static_cast<long>(size);
    return static_cast<int>(done);
}

namespace {

class Allocation : public testing::TestWithParam<std::tuple<std::string, int>> {};

TEST_P(Allocation, StatsAreTheBytesAllocated) {
    const auto [name, head_dim] = GetParam();
    vidkv_params params;
    ASSERT_EQ(vidkv_params_from_preset(name.c_str(), &params), VIDKV_OK);
    const int channels = 4 * head_dim;
    const int64_t cells = 4096;
    std::vector<float> rows(static_cast<size_t>(channels) * 64);
    for (size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<float>(i * 7919 % 1009) / 500.0f - 1.0f;
    std::vector<int64_t> index(64);
    for (const vidkv_side side : {VIDKV_KEYS, VIDKV_VALUES}) {
        // Once before counting: transforms and worker threads are shared by all stores.
        for (const bool counted : {false, true}) {
            const long before = live_bytes;
            const vidkv_store_shape shape{side, channels, head_dim, cells, 1};
            vidkv_store * store = nullptr;
            ASSERT_EQ(vidkv_store_create(&shape, &params, &store), VIDKV_OK);
            for (int64_t cell = 0; cell < cells; cell += 64) {
                std::iota(index.begin(), index.end(), cell);
                ASSERT_EQ(vidkv_store_write_f32(store, 0, index.data(), 64, rows.data(), channels), VIDKV_OK);
                if (side == VIDKV_KEYS) {
                    ASSERT_EQ(vidkv_store_observe_queries(store, 0, rows.data(), 64, 4, channels, head_dim), VIDKV_OK);
                }
                ASSERT_EQ(vidkv_store_seal(store, 1), VIDKV_OK);
            }
            vidkv_store_stats stats;
            vidkv_store_get_stats(store, &stats);
            const long held = live_bytes - before;
            // Beside what is counted: the store object, one sequence object, its statistics object and a plan object a KV head.
            if (counted) {
                EXPECT_NEAR(static_cast<double>(held), static_cast<double>(stats.bytes), 1024) << name << " " << side;
            }
            const double bits = 8.0 * static_cast<double>(stats.bytes) / static_cast<double>(cells * channels);
            RecordProperty(side == VIDKV_KEYS ? "key_bits_held" : "value_bits_held", std::to_string(bits));
            vidkv_store_free(store);
            EXPECT_EQ(live_bytes, counted ? before : live_bytes.load());
        }
    }
}

INSTANTIATE_TEST_SUITE_P(Presets, Allocation,
                         testing::Combine(testing::Values("f16", "k2v2", "k1.5v2", "k1.5v1.58", "k1.5v1.58-g128", "t2.2",
                                                          "t1.65", "t1.0", "t1.65-stp0.2"),
                                          testing::Values(64, 72, 128)),
                         [](const auto & instance) {
                             return vidkv::test::test_name(std::get<0>(instance.param) + "_" +
                                                           std::to_string(std::get<1>(instance.param)));
                         });

// Layers of different lengths take turns in a model: KV heads go through the longer ones' pages together, and one by one through the others'.
TEST(Allocation, AttentionKeepsItsWorkingMemory) {
    constexpr int kv_heads = 4, heads = 24, head_dim = 64, channels = kv_heads * head_dim, threads = 3;
    constexpr int64_t most_cells = 4096;
    vidkv_params params;
    ASSERT_EQ(vidkv_params_from_preset("t1.65", &params), VIDKV_OK);
    const vidkv_cache_shape shape{
        .layers = 1, .kv_heads = kv_heads, .head_dim = head_dim, .cells = most_cells, .sequences = 1};
    vidkv_cache * cache = nullptr;
    ASSERT_EQ(vidkv_cache_create(&shape, &params, &cache), VIDKV_OK);
    std::vector<float> rows(static_cast<size_t>(most_cells) * channels);
    for (size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<float>(i * 7919 % 1009) / 500.0f - 1.0f;
    ASSERT_EQ(vidkv_cache_append(cache, 0, 0, most_cells, rows.data(), rows.data()), VIDKV_OK);
    ASSERT_EQ(vidkv_cache_seal(cache, 2), VIDKV_OK);
    std::vector<float> out(heads * head_dim);
    vidkv_attention_args args{};
    args.q = rows.data();
    args.out = out.data();
    args.tokens = 1;
    args.heads = heads;
    args.q_head_stride = args.out_head_stride = head_dim;
    args.q_token_stride = args.out_token_stride = heads * head_dim;
    args.scale = 0.125f;
    args.threads = threads;
    for (const bool counted : {false, true}) {
        for (const int64_t cells : {most_cells, most_cells / 4}) {
            const long before = taken_bytes;
            args.cells = cells;
            ASSERT_EQ(vidkv_attention(vidkv_cache_keys(cache, 0), vidkv_cache_values(cache, 0), &args), VIDKV_OK);
            if (counted) {
                EXPECT_LT(taken_bytes - before, 4096) << cells;
            }
        }
    }
    vidkv_cache_free(cache);
}

} // namespace
