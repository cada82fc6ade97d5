// Every allocation of the library fails once, and from some point on for good: calls then say so, nothing is thrown through
// the C API, and a call that is made again gives what it would have given. A binary of its own, because it replaces
// operator new.
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <new>
#include <numeric>
#include <vector>

#include "core/names.h"
#include "core/random.h"
#include "vidkv/file.h"

namespace {

std::atomic<int64_t> left{-1};        // allocations until one fails; negative: none does
std::atomic<bool> stays_empty{false}; // all that follow fail too
std::atomic<int64_t> failed{0};

bool fails() {
    if (left.load() < 0) return false;
    const int64_t before = left.fetch_sub(1);
    if (before > 0) return false;
    if (stays_empty) left = 0;
    ++failed;
    return true;
}

void * allocate(size_t size, size_t alignment) {
    if (fails()) throw std::bad_alloc();
    const size_t rounded = (size + alignment - 1) / alignment * alignment;
    void * memory = alignment > alignof(std::max_align_t) ? std::aligned_alloc(alignment, rounded ? rounded : alignment)
                                                          : std::malloc(size ? size : 1);
    if (!memory) throw std::bad_alloc();
    return memory;
}

} // namespace

void * operator new(size_t size) { return allocate(size, 1); }
void * operator new[](size_t size) { return allocate(size, 1); }
void * operator new(size_t size, std::align_val_t a) { return allocate(size, static_cast<size_t>(a)); }
void * operator new[](size_t size, std::align_val_t a) { return allocate(size, static_cast<size_t>(a)); }
void * operator new(size_t size, const std::nothrow_t &) noexcept {
    return fails() ? nullptr : std::malloc(size ? size : 1);
}
void * operator new[](size_t size, const std::nothrow_t &) noexcept {
    return fails() ? nullptr : std::malloc(size ? size : 1);
}
void operator delete(void * memory) noexcept { std::free(memory); }
void operator delete(void * memory, const std::nothrow_t &) noexcept { std::free(memory); }
void operator delete[](void * memory, const std::nothrow_t &) noexcept { std::free(memory); }
void operator delete[](void * memory) noexcept { std::free(memory); }
void operator delete(void * memory, size_t) noexcept { std::free(memory); }
void operator delete[](void * memory, size_t) noexcept { std::free(memory); }
void operator delete(void * memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete[](void * memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void * memory, size_t, std::align_val_t) noexcept { std::free(memory); }
void operator delete[](void * memory, size_t, std::align_val_t) noexcept { std::free(memory); }

namespace {

constexpr int head_dim = 24, kv_heads = 2, channels = head_dim * kv_heads; // 24: the rotation has an odd factor
constexpr int64_t cells = 450;

// Makes the calls of a host, each with the failing allocator; a call that found no memory is made again with a good one.
class Host {
  public:
    Host(const char * preset, int64_t first_failure, bool for_good)
        : preset_(preset), budget_(first_failure), for_good_(for_good) {}
    ~Host() { vidkv_cache_free(cache_); }

    // True if an allocation failed on the way.
    bool run() {
        const int64_t before = failed;
        vidkv_params params;
        call([&] { return vidkv_params_from_preset(preset_, &params); });
        const vidkv_cache_shape shape{1, kv_heads, head_dim, cells, 2};
        call([&] { return vidkv_cache_create(&shape, &params, &cache_); });
        vidkv::test::Random rng(3);
        for (int step = 0; step < 3; ++step) {
            const std::vector<float> k = rng.normals(140 * channels), v = rng.normals(140 * channels),
                                     q = rng.normals(3 * 2 * channels);
            call([&] { return vidkv_cache_append(cache_, 0, 0, 140, k.data(), v.data()); });
            call([&] { return vidkv_cache_observe_queries(cache_, 0, 0, q.data(), 3, 2 * kv_heads); });
            call([&] { return vidkv_cache_seal(cache_, 2); });
        }
        vidkv_store * keys = vidkv_cache_keys(cache_, 0);
        vidkv_store * values = vidkv_cache_values(cache_, 0);
        call([&] { return vidkv_cache_copy_sequence(cache_, 0, 1); });
        call([&] { return vidkv_store_resize(keys, 600, 3); });
        call([&] { return vidkv_store_resize(values, 600, 3); });
        call([&] { return vidkv_store_truncate(keys, 1, 100); });
        call([&] { return vidkv_store_truncate(values, 1, 100); });
        vidkv_store * copy = nullptr;
        call([&] { return vidkv_store_clone(keys, &copy); });
        vidkv_store_free(copy);
        read(keys, 0, 420);
        read(values, 1, 100);
        attend(keys, values, 0, 420);
        attend(keys, values, 1, 100);
        vidkv_store_stats stats;
        armed([&] {
            return vidkv_store_get_stats(keys, &stats), vidkv_cache_get_stats(cache_, &stats), vidkv_last_error(), VIDKV_OK;
        });
        call([&] { return vidkv_store_resize(keys, cells, 2); });
        call([&] { return vidkv_store_resize(values, cells, 2); });
        save_and_load();
        EXPECT_NE(vidkv_store_set_head_dim(vidkv_cache_keys(cache_, 0), 16), VIDKV_OK); // the loaded one
        return failed != before;
    }
    const std::vector<float> & seen() const { return seen_; }

  private:
    template <typename Call> vidkv_status armed(Call body) {
        stays_empty = for_good_;
        left = budget_;
        const vidkv_status status = body();
        budget_ = left;
        left = -1;
        return status;
    }
    template <typename Call> void call(Call body) {
        const int64_t before = failed;
        const vidkv_status status = armed(body);
        if (status == VIDKV_OK) return;
        ASSERT_EQ(status, VIDKV_E_MEMORY) << vidkv_last_error();
        ASSERT_GT(failed, before);
        ASSERT_NE(vidkv_last_error()[0], '\0');
        ASSERT_EQ(body(), VIDKV_OK) << vidkv_last_error();
    }
    void read(const vidkv_store * store, int sequence, int64_t n) {
        std::vector<uint16_t> rows(static_cast<size_t>(n) * channels);
        call([&] { return vidkv_store_read_f16(store, sequence, 0, n, rows.data()); });
        seen_.insert(seen_.end(), rows.begin(), rows.end());
    }
    void attend(const vidkv_store * keys, const vidkv_store * values, int sequence, int64_t n) {
        vidkv::test::Random rng(9);
        const std::vector<float> q = rng.normals(2 * 2 * channels);
        std::vector<float> out(q.size());
        vidkv_attention_args args{};
        args.q = q.data();
        args.out = out.data();
        args.q_token_stride = args.out_token_stride = 2 * channels;
        args.q_head_stride = args.out_head_stride = head_dim;
        args.tokens = 2;
        args.heads = 2 * kv_heads;
        args.cells = n;
        args.sequence = args.value_sequence = sequence;
        args.scale = 0.2f;
        args.threads = 2;
        call([&] { return vidkv_attention(keys, values, &args); });
        seen_.insert(seen_.end(), out.begin(), out.end());
    }
    static std::filesystem::path folder() { // in memory, where waiting for the disk costs nothing
        return std::filesystem::is_directory("/dev/shm") ? "/dev/shm" : std::filesystem::temp_directory_path();
    }
    void save_and_load() {
        const std::string path = (folder() / ("vidkv_no_memory_" + std::to_string(::getpid()))).string();
        call([&] { return vidkv_cache_save(cache_, path.c_str()); });
        EXPECT_FALSE(std::filesystem::exists(path + ".part"));
        call([&] { return vidkv_cache_load(cache_, path.c_str()); });
        pages_of_a_file(path);
        std::filesystem::remove(path);
    }

    void pages_of_a_file(const std::string & path) {
        vidkv_params params;
        ASSERT_EQ(vidkv_params_from_preset(preset_, &params), VIDKV_OK);
        const int64_t pages[] = {0, 1, 2, 3}, places[] = {5, 4, 6, 7};
        vidkv_file_writer * writer = nullptr;
        vidkv_store *keys = vidkv_cache_keys(cache_, 0), *copy = nullptr;
        call([&] { return vidkv_file_create(path.c_str(), &params, &writer); });
        call([&] { return vidkv_file_add_section(writer, "manifest", "{}", 2); });
        call([&] { return vidkv_file_add_store(writer, 0, 0, keys, 0, pages, 4); });
        call([&] { return vidkv_file_add_cache(writer, 1, cache_, 0); });
        call([&] { return vidkv_file_finish(writer); });
        vidkv_file_abandon(writer);
        vidkv_file * file = nullptr;
        call([&] { return vidkv_file_open(path.c_str(), budget_ % 2 == 0, &file); });
        call([&] { return vidkv_file_verify(file, 2); });
        call([&] { return vidkv_file_load_cache(file, 1, cache_, 1); });
        const vidkv_store_shape shape{VIDKV_KEYS, channels, 0, 1024, 1};
        call([&] { return vidkv_store_create(&shape, &params, &copy); });
        call([&] { return vidkv_file_load(file, 0, 0, copy, 0, nullptr, 0); });
        vidkv_store_clear(copy);
        call([&] { return vidkv_file_load(file, 0, 0, copy, 0, places, 4); });
        vidkv_file_close(file);
        read(copy, 0, 1024);
        read(vidkv_cache_values(cache_, 0), 1, 420);
        vidkv_store_free(copy);
    }

    const char * preset_;
    int64_t budget_;
    bool for_good_;
    vidkv_cache * cache_ = nullptr;
    std::vector<float> seen_;
};

class NoMemory : public testing::TestWithParam<const char *> {};

TEST_P(NoMemory, EveryFailureIsAStatus) {
    Host reference(GetParam(), -1, false);
    ASSERT_FALSE(reference.run());
    for (const bool for_good : {false, true}) {
        bool some = true;
        for (int64_t n = 0; some; n += n < 200 ? 1 : 1 + n / 40) {
            Host host(GetParam(), n, for_good);
            some = host.run();
            ASSERT_FALSE(HasFailure()) << "allocation " << n << (for_good ? " and all after it" : "");
            ASSERT_EQ(host.seen(), reference.seen()) << "allocation " << n;
        }
    }
    RecordProperty("failures", std::to_string(failed.load()));
    std::printf("%s: %lld allocations failed\n", GetParam(), static_cast<long long>(failed.exchange(0)));
}

INSTANTIATE_TEST_SUITE_P(Presets, NoMemory, testing::Values("f16", "k1.5v1.58-stp0.2", "k2v2", "t1.65-stp0.2", "t1.15"),
                         vidkv::test::by_preset);

} // namespace
