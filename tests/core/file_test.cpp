// Files of pages, through the C interface: sections, one sequence of many, pages of several files in one sequence, mapped memory.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <memory>
#include <numeric>
#include <vector>

#include <unistd.h>

#include "core/forged_file.h"
#include "core/names.h"
#include "core/random.h"
#include "vidkv/file.h"

namespace {

using vidkv::test::Random;

constexpr int channels = 128, head_dim = 64, heads = 4;
constexpr int64_t tokens = 900;

template <typename T, void (*free)(T *)> struct Free {
    void operator()(T * thing) const { free(thing); }
};
using Store = std::unique_ptr<vidkv_store, Free<vidkv_store, vidkv_store_free>>;
using Cache = std::unique_ptr<vidkv_cache, Free<vidkv_cache, vidkv_cache_free>>;
using File = std::unique_ptr<vidkv_file, Free<vidkv_file, vidkv_file_close>>;
using Writer = std::unique_ptr<vidkv_file_writer, Free<vidkv_file_writer, vidkv_file_abandon>>;

vidkv_params preset(const char * name) {
    vidkv_params params;
    EXPECT_EQ(vidkv_params_from_preset(name, &params), VIDKV_OK);
    return params;
}

Store make(vidkv_side side, const char * name, int64_t cells, int sequences, int dim = head_dim) {
    const vidkv_store_shape shape{side, channels, dim, cells, sequences};
    const vidkv_params params = preset(name);
    vidkv_store * store = nullptr;
    EXPECT_EQ(vidkv_store_create(&shape, &params, &store), VIDKV_OK) << vidkv_last_error();
    return Store(store);
}

std::vector<uint16_t> read(const vidkv_store * store, int sequence, int64_t first, int64_t n) {
    std::vector<uint16_t> rows(static_cast<size_t>(n) * channels);
    EXPECT_EQ(vidkv_store_read_f16(store, sequence, first, n, rows.data()), VIDKV_OK) << vidkv_last_error();
    return rows;
}

std::vector<float> attend(const vidkv_store * keys, const vidkv_store * values, int sequence, int64_t cells,
                          const std::vector<float> & q, const uint16_t * mask = nullptr) {
    std::vector<float> out(q.size());
    vidkv_attention_args args{};
    args.q = q.data();
    args.out = out.data();
    args.q_token_stride = args.out_token_stride = heads * head_dim;
    args.q_head_stride = args.out_head_stride = head_dim;
    args.tokens = 1;
    args.heads = heads;
    args.cells = cells;
    args.sequence = args.value_sequence = sequence;
    args.mask = mask;
    args.mask_stride = cells;
    args.scale = 0.125f;
    args.threads = 2;
    EXPECT_EQ(vidkv_attention(keys, values, &args), VIDKV_OK) << vidkv_last_error();
    return out;
}

class FileTest : public testing::TestWithParam<const char *> {
  protected:
    std::filesystem::path folder =
        std::filesystem::path(testing::TempDir()) / ("vidkv-file-test-" + std::to_string(getpid()));
    std::string path = (folder / "a.vidkv").string(), other_path = (folder / "b.vidkv").string();
    Random rng{2026};
    const char * name = GetParam();

    void SetUp() override { std::filesystem::create_directories(folder); }
    void TearDown() override { std::filesystem::remove_all(folder); }

    // Writes tokens as text `seed`, and packs what is old; its keys have channels of their own.
    void fill(vidkv_store * store, int sequence, uint64_t seed, int64_t n = tokens) {
        Random own{seed};
        std::vector<int64_t> cells(static_cast<size_t>(n));
        std::iota(cells.begin(), cells.end(), 0);
        std::vector<float> rows = own.normals(static_cast<size_t>(n) * channels);
        for (size_t i = 0; i < rows.size(); ++i) rows[i] *= 1.0f + static_cast<float>((i + seed * 37) % channels % 11);
        ASSERT_EQ(vidkv_store_write_f32(store, sequence, cells.data(), n, rows.data(), channels), VIDKV_OK);
        const std::vector<float> q = own.normals(32 * heads * head_dim);
        const vidkv_status observed =
            vidkv_store_observe_queries(store, sequence, q.data(), 32, heads, heads * head_dim, head_dim);
        ASSERT_TRUE(observed == VIDKV_OK || observed == VIDKV_E_ARGUMENT); // values observe nothing
        ASSERT_EQ(vidkv_store_seal(store, 2), VIDKV_OK);
    }
    Writer create(const std::string & to) {
        vidkv_file_writer * writer = nullptr;
        const vidkv_params params = preset(name);
        EXPECT_EQ(vidkv_file_create(to.c_str(), &params, &writer), VIDKV_OK) << vidkv_last_error();
        return Writer(writer);
    }
    void save(const std::string & to, const vidkv_store * keys, const vidkv_store * values, int sequence) {
        const Writer writer = create(to);
        ASSERT_EQ(vidkv_file_add_store(writer.get(), 0, 0, keys, sequence, nullptr, 0), VIDKV_OK) << vidkv_last_error();
        ASSERT_EQ(vidkv_file_add_store(writer.get(), 0, 0, values, sequence, nullptr, 0), VIDKV_OK);
        ASSERT_EQ(vidkv_file_finish(writer.get()), VIDKV_OK) << vidkv_last_error();
    }
    static File open(const std::string & from, bool copies = false) {
        vidkv_file * file = nullptr;
        EXPECT_EQ(vidkv_file_open(from.c_str(), copies, &file), VIDKV_OK) << vidkv_last_error();
        return File(file);
    }
    static void load(const vidkv_file * file, vidkv_store * store, int sequence,
                     const std::vector<int64_t> * places = nullptr) {
        ASSERT_EQ(vidkv_file_load(file, 0, 0, store, sequence, places ? places->data() : nullptr,
                                  places ? static_cast<int64_t>(places->size()) : 0),
                  VIDKV_OK)
            << vidkv_last_error();
    }
};

TEST_P(FileTest, OneSequenceOfManyGoesAnywhere) {
    SCOPED_TRACE(rng.trace());
    const Store keys = make(VIDKV_KEYS, name, 1000, 3), values = make(VIDKV_VALUES, name, 1000, 3);
    for (const int sequence : {0, 1, 2}) {
        fill(keys.get(), sequence, 10 + sequence);
        fill(values.get(), sequence, 20 + sequence);
    }
    save(path, keys.get(), values.get(), 1);
    const std::vector<float> q = rng.normals(heads * head_dim);
    const auto wanted = attend(keys.get(), values.get(), 1, tokens, q);
    for (const bool copies : {false, true}) {
        const File file = open(path, copies);
        EXPECT_EQ(vidkv_file_verify(file.get(), 2), VIDKV_OK) << vidkv_last_error();
        // Another capacity, and one store that does not know its head_dim.
        const Store more_keys = make(VIDKV_KEYS, name, 5000, 4, 0), more_values = make(VIDKV_VALUES, name, 3000, 4);
        fill(more_values.get(), 3, 5);
        load(file.get(), more_keys.get(), 3);
        load(file.get(), more_values.get(), 3);
        EXPECT_EQ(attend(more_keys.get(), more_values.get(), 3, tokens, q), wanted);
        EXPECT_EQ(read(more_keys.get(), 3, 0, tokens), read(keys.get(), 1, 0, tokens));
        EXPECT_EQ(read(more_values.get(), 3, 0, tokens), read(values.get(), 1, 0, tokens));
        // And goes on as the one that was saved.
        const std::vector<float> row = Random(4).normals(200 * channels);
        std::vector<int64_t> cells(100);
        std::iota(cells.begin(), cells.end(), tokens);
        const Store clone = [&] {
            vidkv_store * out = nullptr;
            EXPECT_EQ(vidkv_store_clone(keys.get(), &out), VIDKV_OK);
            return Store(out);
        }();
        for (const auto & [store, sequence] : {std::pair{more_keys.get(), 3}, std::pair{clone.get(), 1}}) {
            ASSERT_EQ(vidkv_store_write_f32(store, sequence, cells.data(), 100, row.data(), channels), VIDKV_OK);
            ASSERT_EQ(vidkv_store_seal(store, 1), VIDKV_OK);
        }
        EXPECT_EQ(read(more_keys.get(), 3, 0, 1000), read(clone.get(), 1, 0, 1000));
    }
}

TEST_P(FileTest, PagesOfSeveralFilesLieInOneSequence) {
    SCOPED_TRACE(rng.trace());
    std::vector<Store> keys, values;
    for (const uint64_t text : {1, 2}) {
        keys.push_back(make(VIDKV_KEYS, name, 1000, 1));
        values.push_back(make(VIDKV_VALUES, name, 1000, 1));
        fill(keys.back().get(), 0, text);
        fill(values.back().get(), 0, 50 + text);
        save(text == 1 ? path : other_path, keys.back().get(), values.back().get(), 0);
    }
    // A third text was there first: its pages stay.
    const Store pool_keys = make(VIDKV_KEYS, name, 40 * VIDKV_PAGE, 1),
                pool_values = make(VIDKV_VALUES, name, 40 * VIDKV_PAGE, 1);
    fill(pool_keys.get(), 0, 3, 600);
    fill(pool_values.get(), 0, 53, 600);
    const auto third = read(pool_keys.get(), 0, 0, 600);
    const std::vector<int64_t> places[] = {{9, 5, 30, 11, 12, 7, 39, 20}, {8, 6, 10, 13, 14, 15, 16, 38}};
    for (const int text : {0, 1}) {
        const File file = open(text == 0 ? path : other_path);
        vidkv_file_store_info info;
        ASSERT_EQ(vidkv_file_get_store(file.get(), 0, &info), VIDKV_OK);
        ASSERT_EQ(info.pages, 8);
        EXPECT_EQ(info.cells, tokens);
        load(file.get(), pool_keys.get(), 0, &places[text]);
        load(file.get(), pool_values.get(), 0, &places[text]);
        // Places that are taken, too few, or outside are refused, and change nothing.
        for (const std::vector<int64_t> & wrong : {places[text], {21, 22, 23}, {21, 22, 23, 24, 25, 26, 27, 40}}) {
            EXPECT_EQ(
                vidkv_file_load(file.get(), 0, 0, pool_keys.get(), 0, wrong.data(), static_cast<int64_t>(wrong.size())),
                VIDKV_E_ARGUMENT);
        }
        EXPECT_TRUE(vidkv_store_sealed_page(pool_keys.get(), 0, 21, nullptr) == nullptr);
    }
    EXPECT_EQ(read(pool_keys.get(), 0, 0, 600), third);
    const std::vector<float> q = rng.normals(heads * head_dim);
    for (const int text : {0, 1}) {
        std::vector<uint16_t> mask(40 * VIDKV_PAGE, 0xfc00);
        for (int64_t cell = 0; cell < tokens; ++cell) {
            const int64_t place = places[text][static_cast<size_t>(cell / VIDKV_PAGE)] * VIDKV_PAGE + cell % VIDKV_PAGE;
            mask[static_cast<size_t>(place)] = 0;
            if (cell % 97 != 0) continue;
            EXPECT_EQ(read(pool_keys.get(), 0, place, 1), read(keys[text].get(), 0, cell, 1)) << cell;
            EXPECT_EQ(read(pool_values.get(), 0, place, 1), read(values[text].get(), 0, cell, 1)) << cell;
        }
        const auto alone = attend(keys[text].get(), values[text].get(), 0, tokens, q);
        const auto pooled = attend(pool_keys.get(), pool_values.get(), 0, 40 * VIDKV_PAGE, q, mask.data());
        for (size_t i = 0; i < alone.size(); ++i) ASSERT_NEAR(alone[i], pooled[i], 1e-4 * (1 + std::abs(alone[i]))) << i;
    }
    // What is packed from now on is packed with the plans of the text that was there.
    std::vector<int64_t> cells(300);
    std::iota(cells.begin(), cells.end(), 17 * VIDKV_PAGE);
    const std::vector<float> rows = rng.normals(300 * channels);
    ASSERT_EQ(vidkv_store_write_f32(pool_keys.get(), 0, cells.data(), 300, rows.data(), channels), VIDKV_OK);
    ASSERT_EQ(vidkv_store_seal(pool_keys.get(), 1), VIDKV_OK);
    // And all of it can be saved, and some of it.
    const Writer writer = create(path);
    ASSERT_EQ(vidkv_file_add_store(writer.get(), 0, 0, pool_keys.get(), 0, nullptr, 0), VIDKV_OK) << vidkv_last_error();
    ASSERT_EQ(vidkv_file_add_store(writer.get(), 1, 0, pool_keys.get(), 0, places[1].data(), 8), VIDKV_OK);
    ASSERT_EQ(vidkv_file_finish(writer.get()), VIDKV_OK);
    const Store all = make(VIDKV_KEYS, name, 40 * VIDKV_PAGE, 1), some = make(VIDKV_KEYS, name, 1024, 1);
    const File file = open(path);
    EXPECT_EQ(vidkv_file_verify(file.get(), 1), VIDKV_OK) << vidkv_last_error();
    load(file.get(), all.get(), 0);
    EXPECT_EQ(read(all.get(), 0, 0, 40 * VIDKV_PAGE), read(pool_keys.get(), 0, 0, 40 * VIDKV_PAGE));
    ASSERT_EQ(vidkv_file_load(file.get(), 1, 0, some.get(), 0, nullptr, 0), VIDKV_OK) << vidkv_last_error();
    for (size_t page = 0; page < 8; ++page) {
        const int64_t first = static_cast<int64_t>(page) * VIDKV_PAGE, place = places[1][page] * VIDKV_PAGE;
        EXPECT_EQ(read(some.get(), 0, first, VIDKV_PAGE), read(pool_keys.get(), 0, place, VIDKV_PAGE));
    }
}

TEST_P(FileTest, MappedPagesAreSharedAndNeverWrittenTo) {
    SCOPED_TRACE(rng.trace());
    const Store keys = make(VIDKV_KEYS, name, 1000, 1), values = make(VIDKV_VALUES, name, 1000, 1);
    fill(keys.get(), 0, 1);
    fill(values.get(), 0, 2);
    save(path, keys.get(), values.get(), 0);
    vidkv_store_stats held;
    vidkv_store_get_stats(keys.get(), &held);
    Store first = make(VIDKV_KEYS, name, 1000, 2), second = make(VIDKV_KEYS, name, 1000, 1);
    File file = open(path);
    load(file.get(), first.get(), 0);
    load(file.get(), second.get(), 0);
    uint64_t bytes = 0;
    const uint8_t * page = vidkv_store_sealed_page(first.get(), 0, 1, &bytes);
    EXPECT_EQ(page, vidkv_store_sealed_page(second.get(), 0, 1, nullptr));
    EXPECT_EQ(reinterpret_cast<uintptr_t>(page) % 64, 0u);
    vidkv_store_stats loaded;
    vidkv_store_get_stats(first.get(), &loaded);
    EXPECT_EQ(loaded.sealed_bytes, held.sealed_bytes);
    EXPECT_GE(loaded.bytes_mapped, loaded.sealed_bytes);
    EXPECT_EQ(loaded.cells_sealed, held.cells_sealed);
    // The file may be closed, deleted, written anew: what was loaded stays.
    const auto before = read(keys.get(), 0, 0, tokens);
    file.reset();
    std::filesystem::remove(path);
    fill(keys.get(), 0, 9);
    save(path, keys.get(), values.get(), 0);
    EXPECT_EQ(read(second.get(), 0, 0, tokens), before);
    const int64_t cell = 200;
    const std::vector<float> row(channels, 3.0f);
    ASSERT_EQ(vidkv_store_write_f32(first.get(), 0, &cell, 1, row.data(), channels), VIDKV_OK);
    ASSERT_EQ(vidkv_store_truncate(first.get(), 0, 300), VIDKV_OK);
    EXPECT_NE(read(first.get(), 0, 200, 1), read(second.get(), 0, 200, 1));
    EXPECT_EQ(read(second.get(), 0, 0, tokens), before);
    first.reset();
    EXPECT_EQ(read(second.get(), 0, 0, tokens), before);
}

TEST_P(FileTest, SectionsComeBackAsTheyWere) {
    const std::vector<uint8_t> blob = [&] {
        std::vector<uint8_t> bytes(100001);
        for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<uint8_t>(i * 31 >> 3);
        return bytes;
    }();
    const std::string manifest = R"({"model": "m"})";
    {
        const Writer writer = create(path);
        ASSERT_EQ(vidkv_file_add_section(writer.get(), "manifest", manifest.data(), manifest.size()), VIDKV_OK);
        ASSERT_EQ(vidkv_file_add_section(writer.get(), "cells", blob.data(), blob.size()), VIDKV_OK);
        ASSERT_EQ(vidkv_file_add_section(writer.get(), "nothing", nullptr, 0), VIDKV_OK) << vidkv_last_error();
        for (const char * wrong : {"cells", "", "Cells", "a b", "0123456789012345678901234567890.", "\xc3\xa4"})
            EXPECT_EQ(vidkv_file_add_section(writer.get(), wrong, blob.data(), 1), VIDKV_E_ARGUMENT) << wrong;
        EXPECT_EQ(vidkv_file_add_section(writer.get(), "x", nullptr, 1), VIDKV_E_ARGUMENT);
        EXPECT_FALSE(std::filesystem::exists(path));
        // Somebody else may not write it meanwhile.
        vidkv_file_writer * second = nullptr;
        const vidkv_params params = preset(name);
        EXPECT_EQ(vidkv_file_create(path.c_str(), &params, &second), VIDKV_E_IO);
        EXPECT_NE(std::strstr(vidkv_last_error(), "somebody else"), nullptr) << vidkv_last_error();
        ASSERT_EQ(vidkv_file_finish(writer.get()), VIDKV_OK) << vidkv_last_error();
        EXPECT_EQ(vidkv_file_finish(writer.get()), VIDKV_E_ARGUMENT);
        EXPECT_EQ(vidkv_file_add_section(writer.get(), "late", blob.data(), 1), VIDKV_E_ARGUMENT);
    }
    { // An unfinished one leaves nothing, and what was there.
        const Writer writer = create(path);
        ASSERT_EQ(vidkv_file_add_section(writer.get(), "cells", blob.data(), blob.size()), VIDKV_OK);
    }
    EXPECT_FALSE(std::filesystem::exists(path + ".part"));
    const File file = open(path);
    EXPECT_EQ(vidkv_file_verify(file.get(), 1), VIDKV_OK) << vidkv_last_error();
    uint64_t bytes = 0;
    const void * at = vidkv_file_section(file.get(), "cells", &bytes);
    ASSERT_EQ(bytes, blob.size());
    EXPECT_EQ(std::memcmp(at, blob.data(), bytes), 0);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(at) % 64, 0u);
    EXPECT_NE(vidkv_file_section(file.get(), "nothing", &bytes), nullptr);
    EXPECT_EQ(bytes, 0u);
    EXPECT_EQ(vidkv_file_section(file.get(), "none", &bytes), nullptr);
    EXPECT_STREQ(vidkv_file_section_name(file.get(), 0), "manifest");
    EXPECT_STREQ(vidkv_file_section_name(file.get(), 2), "nothing");
    EXPECT_EQ(vidkv_file_section_name(file.get(), 3), nullptr);
    EXPECT_EQ(vidkv_file_section_name(file.get(), -1), nullptr);
    vidkv_file_info info;
    vidkv_file_get_info(file.get(), &info);
    EXPECT_EQ(info.stores, 0);
    EXPECT_EQ(info.bytes, std::filesystem::file_size(path));
    vidkv_file_store_info store;
    EXPECT_EQ(vidkv_file_get_store(file.get(), 0, &store), VIDKV_E_ARGUMENT);
}

TEST_P(FileTest, CachesOfOneSequenceAndTheFilesSize) {
    SCOPED_TRACE(rng.trace());
    const vidkv_cache_shape shape{2, 2, head_dim, 4000, 2};
    const vidkv_params params = preset(name);
    const auto make_cache = [&](int sequences) {
        vidkv_cache_shape wanted = shape;
        wanted.sequences = sequences;
        vidkv_cache * cache = nullptr;
        EXPECT_EQ(vidkv_cache_create(&wanted, &params, &cache), VIDKV_OK);
        return Cache(cache);
    };
    const Cache cache = make_cache(1), other = make_cache(3);
    const std::vector<float> rows = rng.normals(4000 * channels);
    for (int layer = 0; layer < 2; ++layer)
        ASSERT_EQ(vidkv_cache_append(cache.get(), layer, 0, 4000, rows.data(), rows.data()), VIDKV_OK);
    ASSERT_EQ(vidkv_cache_seal(cache.get(), 2), VIDKV_OK);
    vidkv_store_stats stats;
    vidkv_cache_get_stats(cache.get(), &stats);
    {
        const Writer writer = create(path);
        ASSERT_EQ(vidkv_file_add_cache(writer.get(), 0, cache.get(), 0), VIDKV_OK);
        ASSERT_EQ(vidkv_file_finish(writer.get()), VIDKV_OK);
    }
    EXPECT_LE(static_cast<double>(std::filesystem::file_size(path)), 1.03 * static_cast<double>(stats.bytes));
    ASSERT_EQ(vidkv_cache_append(other.get(), 0, 0, 50, rows.data(), rows.data()), VIDKV_OK);
    ASSERT_EQ(vidkv_cache_append(other.get(), 1, 0, 50, rows.data(), rows.data()), VIDKV_OK);
    vidkv_store * keys = vidkv_cache_keys(other.get(), 1);
    const File file = open(path);
    ASSERT_EQ(vidkv_file_load_cache(file.get(), 0, other.get(), 2), VIDKV_OK) << vidkv_last_error();
    EXPECT_EQ(vidkv_cache_keys(other.get(), 1), keys);
    EXPECT_EQ(vidkv_cache_length(other.get(), 1, 0), 50);
    EXPECT_EQ(vidkv_cache_length(other.get(), 1, 2), 4000);
    EXPECT_EQ(read(keys, 2, 0, 4000), read(vidkv_cache_keys(cache.get(), 1), 0, 0, 4000));
    EXPECT_EQ(vidkv_file_load_cache(file.get(), 1, other.get(), 2), VIDKV_E_ARGUMENT); // the file has one
    EXPECT_EQ(vidkv_file_load_cache(file.get(), 0, other.get(), 3), VIDKV_E_ARGUMENT);
    EXPECT_EQ(vidkv_cache_length(other.get(), 1, 2), 4000);
}

// Texts that begin anywhere (vidkv_store_begin) keep their sink tokens wherever they are loaded to.
TEST_P(FileTest, TextsBeginWhereTheyDid) {
    SCOPED_TRACE(rng.trace());
    const Store pool = make(VIDKV_KEYS, name, 20 * VIDKV_PAGE, 1);
    const std::vector<float> rows = rng.normals(3 * VIDKV_PAGE * channels);
    for (const int64_t page : {2, 6}) {
        ASSERT_EQ(vidkv_store_begin(pool.get(), 0, page), VIDKV_OK);
        std::vector<int64_t> cells(3 * VIDKV_PAGE);
        std::iota(cells.begin(), cells.end(), page * VIDKV_PAGE);
        ASSERT_EQ(vidkv_store_write_f32(pool.get(), 0, cells.data(), 3 * VIDKV_PAGE, rows.data(), channels), VIDKV_OK);
    }
    const std::vector<int64_t> all{2, 3, 6, 7}, text{6, 7, 8};
    const vidkv_seal_request request{pool.get(), 0, all.data(), 4, nullptr, 0};
    ASSERT_EQ(vidkv_seal_pages(&request, 1, 1), VIDKV_OK);
    const Writer writer = create(path);
    ASSERT_EQ(vidkv_file_add_store(writer.get(), 0, 0, pool.get(), 0, text.data(), 3), VIDKV_OK) << vidkv_last_error();
    ASSERT_EQ(vidkv_file_finish(writer.get()), VIDKV_OK);
    const File file = open(path);
    const auto wanted = read(pool.get(), 0, 6 * VIDKV_PAGE, 3 * VIDKV_PAGE);
    const Store plain = make(VIDKV_KEYS, name, 400, 1), busy = make(VIDKV_KEYS, name, 20 * VIDKV_PAGE, 1);
    load(file.get(), plain.get(), 0); // as a text of its own
    EXPECT_EQ(read(plain.get(), 0, 0, 3 * VIDKV_PAGE), wanted);
    fill(busy.get(), 0, 4, 300);
    const auto before = read(busy.get(), 0, 0, 300);
    const std::vector<int64_t> places{11, 4, 9};
    load(file.get(), busy.get(), 0, &places);
    EXPECT_EQ(read(busy.get(), 0, 0, 300), before);
    for (size_t page = 0; page < 3; ++page) {
        const auto part = read(busy.get(), 0, places[page] * VIDKV_PAGE, VIDKV_PAGE);
        EXPECT_TRUE(std::equal(part.begin(), part.end(), wanted.begin() + static_cast<long>(page * VIDKV_PAGE * channels)));
    }
}

// Values that are still, or move one way, in a file whose header does not say that there are such pages.
TEST(UnannouncedPages, AreRefused) {
    const std::string path = testing::TempDir() + "vidkv-unannounced-" + std::to_string(getpid()) + ".vidkv";
    Random rng{2027};
    for (const bool moving : {false, true}) {
        SCOPED_TRACE(moving);
        const Store from = make(VIDKV_VALUES, "t1.65", tokens, 1), to = make(VIDKV_VALUES, "t1.65", tokens, 1);
        const std::vector<float> picture = rng.normals(channels), way = rng.normals(channels);
        std::vector<float> rows = rng.normals(tokens * channels, 0.1f);
        for (size_t i = 0; i < rows.size(); ++i) {
            const size_t c = i % channels;
            rows[i] += picture[c] + (moving ? static_cast<float>(i / channels % VIDKV_PAGE) / 32 * way[c] : 0.0f);
        }
        std::vector<int64_t> cells(tokens);
        std::iota(cells.begin(), cells.end(), 0);
        ASSERT_EQ(vidkv_store_write_f32(from.get(), 0, cells.data(), tokens, rows.data(), channels), VIDKV_OK);
        ASSERT_EQ(vidkv_store_seal(from.get(), 1), VIDKV_OK);
        vidkv_file_writer * made = nullptr;
        const vidkv_params params = preset("t1.65");
        ASSERT_EQ(vidkv_file_create(path.c_str(), &params, &made), VIDKV_OK) << vidkv_last_error();
        const Writer writer(made);
        ASSERT_EQ(vidkv_file_add_store(writer.get(), 0, 0, from.get(), 0, nullptr, 0), VIDKV_OK);
        ASSERT_EQ(vidkv_file_finish(writer.get()), VIDKV_OK);
        auto forged = vidkv::test::ForgedFile::read(path);
        auto header = forged.header();
        ASSERT_EQ(header.needs, moving ? 5u : 1u);
        header.needs &= moving ? ~4u : ~1u;
        forged.put(0, header);
        forged.sign();
        forged.write(path);
        vidkv_file * opened = nullptr;
        ASSERT_EQ(vidkv_file_open(path.c_str(), 0, &opened), VIDKV_OK) << vidkv_last_error();
        const File file(opened);
        EXPECT_EQ(vidkv_file_verify(file.get(), 1), VIDKV_E_FORMAT);
        ASSERT_EQ(vidkv_file_load(file.get(), 0, 0, to.get(), 0, nullptr, 0), VIDKV_OK) << vidkv_last_error();
        std::vector<uint16_t> out(tokens * channels);
        EXPECT_EQ(vidkv_store_read_f16(to.get(), 0, 0, tokens, out.data()), VIDKV_E_FORMAT);
        EXPECT_EQ(vidkv_last_error(), std::string("page 0 of a file that was loaded ") +
                                          (moving ? "has a direction" : "is still") +
                                          ", which the file's header does not announce: save the file again");
    }
    std::filesystem::remove(path);
}

// A layer with other bits than its file: it comes back as it was, and goes into a store of the same bits alone.
TEST_P(FileTest, AStoreMayHaveBitsOfItsOwn) {
    const vidkv_params usual = preset(name);
    vidkv_params own = usual;
    own.key_bits = usual.key_codec == VIDKV_CODEC_TRELLIS ? 2.5f : usual.key_bits == 2 ? 1.5f : 2;
    const vidkv_store_shape shape{VIDKV_KEYS, channels, head_dim, 1024, 1};
    const auto make_own = [&] {
        vidkv_store * store = nullptr;
        EXPECT_EQ(vidkv_store_create(&shape, &own, &store), VIDKV_OK) << vidkv_last_error();
        return Store(store);
    };
    const Store first = make(VIDKV_KEYS, name, 1024, 1), second = make_own(), restored = make_own();
    fill(first.get(), 0, 1);
    fill(second.get(), 0, 2);
    const Writer writer = create(path);
    ASSERT_EQ(vidkv_file_add_store(writer.get(), 0, 0, first.get(), 0, nullptr, 0), VIDKV_OK) << vidkv_last_error();
    ASSERT_EQ(vidkv_file_add_store(writer.get(), 1, 0, second.get(), 0, nullptr, 0), VIDKV_OK) << vidkv_last_error();
    ASSERT_EQ(vidkv_file_finish(writer.get()), VIDKV_OK);
    const File file = open(path);
    EXPECT_EQ(vidkv_file_verify(file.get(), 1), VIDKV_OK) << vidkv_last_error();
    vidkv_file_store_info info{};
    ASSERT_EQ(vidkv_file_get_store(file.get(), 0, &info), VIDKV_OK);
    EXPECT_EQ(info.bits, usual.key_bits);
    ASSERT_EQ(vidkv_file_get_store(file.get(), 1, &info), VIDKV_OK);
    EXPECT_EQ(info.bits, own.key_bits);
    ASSERT_EQ(vidkv_file_load(file.get(), 1, 0, restored.get(), 0, nullptr, 0), VIDKV_OK) << vidkv_last_error();
    EXPECT_EQ(read(restored.get(), 0, 0, tokens), read(second.get(), 0, 0, tokens));
    const Store other = make(VIDKV_KEYS, name, 1024, 1), again = make_own();
    EXPECT_EQ(vidkv_file_load(file.get(), 1, 0, other.get(), 0, nullptr, 0), VIDKV_E_FORMAT);
    EXPECT_NE(std::string(vidkv_last_error()).find("is of another preset: key bits "), std::string::npos)
        << vidkv_last_error();
    EXPECT_EQ(vidkv_file_load(file.get(), 0, 0, again.get(), 0, nullptr, 0), VIDKV_E_FORMAT);
    auto forged = vidkv::test::ForgedFile::read(path);
    auto header = forged.header();
    ASSERT_EQ(header.needs & 8u, 8u);
    header.needs &= ~8u; // a reader that does not know of such bits would take the pages for others
    forged.put(0, header);
    forged.sign();
    forged.write(path);
    const File silent = open(path);
    EXPECT_EQ(vidkv_file_verify(silent.get(), 1), VIDKV_E_FORMAT);
    EXPECT_EQ(vidkv_file_load(silent.get(), 1, 0, again.get(), 0, nullptr, 0), VIDKV_E_FORMAT);
}

INSTANTIATE_TEST_SUITE_P(Presets, FileTest, testing::Values("f16", "k2v2", "k1.5v1.58-stp0.2", "t1.65", "t1.65-stp0.2"),
                         vidkv::test::by_preset);

} // namespace
