#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <numeric>

#include <unistd.h>

#include "base/half.h"
#include "cache/cache.h"
#include "codec/key_codec.h"
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

    Store make(vidkv_side side, int sequences = 2) {
        return Store({side, channels, head_dim, cells, sequences}, params_of(GetParam()));
    }
    vidkv_status write(Store & store, int64_t first, int64_t n, int sequence = 0) {
        std::vector<int64_t> index(static_cast<size_t>(n));
        std::iota(index.begin(), index.end(), first);
        return store.write(sequence, index.data(), n, &rows[first * channels], channels);
    }
    // Appends in steps as a model would, sealing between them.
    void append(Store & store, int64_t first, int64_t n, int64_t step, int sequence = 0) {
        for (int64_t at = first; at < first + n; at += step) {
            ASSERT_EQ(write(store, at, std::min(step, first + n - at), sequence), VIDKV_OK);
            ASSERT_EQ(store.seal(2), VIDKV_OK);
        }
    }
    std::vector<uint16_t> read(const Store & store, int64_t first, int64_t n, int sequence = 0) {
        std::vector<uint16_t> out(static_cast<size_t>(n) * channels);
        EXPECT_EQ(store.read(sequence, first, n, out.data()), VIDKV_OK);
        return out;
    }
    std::vector<uint8_t> block(const Store & store, int64_t group, int head, int sequence = 0) {
        const GroupView view = store.view(sequence, group, head);
        if (view.state != GroupState::sealed) return {};
        return {view.block, view.block + group_bytes(store.params(), store.side(), head_dim)};
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
            if (cell >= 4 && cell < 500 - 128) continue;
            for (int c = 0; c < channels; ++c) ASSERT_EQ(got[cell * channels + c], float_to_half(rows[cell * channels + c])) << cell;
        }
        const vidkv_store_stats stats = store.stats();
        EXPECT_EQ(stats.cells_written, 500);
        EXPECT_EQ(stats.cells_sealed, packed(side) ? (500 - 128) / 32 * 32 : 0);
        EXPECT_EQ(stats.pages_reopened, 0);
        EXPECT_EQ(stats.bytes_f16, 500u * channels * 2);
    }
}

TEST_P(StoreTest, SealedGroupsNeverChange) {
    for (const vidkv_side side : sides) {
        if (!packed(side)) continue;
        Store store = make(side);
        append(store, 0, 300, 50);
        std::vector<std::vector<uint8_t>> before;
        for (int g = 0; g < 4; ++g) before.push_back(block(store, g, 1));
        append(store, 300, 600, 1);
        for (int g = 0; g < 4; ++g) {
            ASSERT_FALSE(before[g].empty());
            EXPECT_EQ(block(store, g, 1), before[g]) << g;
        }
    }
}

TEST_P(StoreTest, TrueBitsAreTheBytesOfSealedGroups) {
    for (const vidkv_side side : sides) {
        if (!packed(side)) continue;
        Store store = make(side);
        append(store, 0, 900, 100);
        const vidkv_store_stats stats = store.stats();
        const vidkv_params params = params_of(GetParam());
        const double bits = 8.0 * static_cast<double>(stats.sealed_bytes) / static_cast<double>(stats.cells_sealed * channels);
        EXPECT_DOUBLE_EQ(bits, vidkv_true_bits(&params, side, head_dim));
    }
}

TEST_P(StoreTest, PlannedBytesAreWhatAFullStoreHolds) {
    for (const vidkv_side side : sides) {
        Store store = make(side, 1);
        append(store, 0, cells, 1);
        const vidkv_store_stats stats = store.stats();
        // The window can end one group earlier or later, depending on where the last cell falls in its group.
        const double group = 32.0 * channels * 2;
        EXPECT_NEAR(static_cast<double>(stats.bytes), static_cast<double>(stats.bytes_planned), group);
    }
}

TEST_P(StoreTest, RewritingASealedCellReopensItsGroupAlone) {
    for (const vidkv_side side : sides) {
        if (!packed(side)) continue;
        Store store = make(side);
        append(store, 0, 400, 40);
        const std::vector<uint16_t> before = read(store, 0, 400);
        const std::vector<uint8_t> neighbour = block(store, 3, 0);
        const std::vector<float> fresh = rng.normals(channels);
        const int64_t cell = 70;
        ASSERT_EQ(store.write(0, &cell, 1, fresh.data(), channels), VIDKV_OK);
        EXPECT_EQ(store.view(0, 2, 0).state, GroupState::open);
        EXPECT_EQ(store.stats().pages_reopened, 1);
        EXPECT_EQ(block(store, 3, 0), neighbour);
        const std::vector<uint16_t> after = read(store, 0, 400);
        for (int64_t i = 0; i < 400 * channels; ++i) {
            const uint16_t want = i / channels == cell ? float_to_half(fresh[i % channels]) : before[i];
            ASSERT_EQ(after[i], want) << i / channels;
        }
    }
}

TEST_P(StoreTest, ReopeningTheFirstGroupKeepsTheSinksExact) {
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
        append(store, 200, 300, 30, 1);
        const std::vector<uint16_t> second = read(store, 0, 600, 1);
        append(store, 400, 100, 10, 0);
        EXPECT_EQ(read(store, 0, 600, 1), second);
        ASSERT_EQ(store.copy_sequence(0, 1), VIDKV_OK);
        EXPECT_EQ(read(store, 0, cells, 1), read(store, 0, cells, 0));
        for (int g = 0; g < 10; ++g) EXPECT_EQ(block(store, g, 0, 1), block(store, g, 0, 0));
        store.clear();
        EXPECT_EQ(store.stats().cells_written, 0);
        EXPECT_EQ(store.copy_sequence(0, 2), VIDKV_E_ARGUMENT);
    }
}

TEST_P(StoreTest, CellsWrittenInAnyOrderWithHoles) {
    for (const vidkv_side side : sides) {
        Store store = make(side);
        std::vector<int64_t> order(cells);
        std::iota(order.begin(), order.end(), 0);
        for (int64_t i = cells - 1; i > 0; --i) std::swap(order[i], order[rng.integer(0, static_cast<int>(i))]);
        for (int64_t i = 0; i < 700; ++i) {
            ASSERT_EQ(store.write(0, &order[i], 1, &rows[order[i] * channels], channels), VIDKV_OK);
            ASSERT_EQ(store.seal(1), VIDKV_OK);
        }
        EXPECT_EQ(store.stats().cells_written, 700);
        std::vector<bool> there(cells);
        for (int64_t i = 0; i < 700; ++i) there[order[i]] = true;
        const std::vector<uint16_t> got = read(store, 0, cells);
        for (int64_t cell = 0; cell < cells; ++cell) {
            double error = 0, energy = 0;
            for (int c = 0; c < channels; ++c) {
                const float x = there[cell] ? rows[cell * channels + c] : 0.0f, y = half_to_float(got[cell * channels + c]);
                error += (x - y) * (x - y), energy += x * x;
            }
            if (there[cell]) EXPECT_LT(error, energy) << cell;
            else EXPECT_EQ(error, 0) << cell;
        }
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
    Store late({VIDKV_KEYS, channels, 0, cells, 2}, params_of(GetParam()));
    append(late, 0, 300, 300);
    EXPECT_EQ(late.stats().cells_sealed, 0);
    EXPECT_EQ(late.set_head_dim(60), VIDKV_E_ARGUMENT);
    EXPECT_EQ(late.set_head_dim(head_dim), VIDKV_OK);
    EXPECT_EQ(late.set_head_dim(head_dim), VIDKV_OK);
    EXPECT_EQ(late.set_head_dim(32), VIDKV_E_ARGUMENT);
    ASSERT_EQ(late.seal(1), VIDKV_OK);
    append(early, 0, 300, 300);
    for (int g = 0; g < 5; ++g) EXPECT_EQ(block(late, g, 1), block(early, g, 1)) << g;
}

TEST_P(StoreTest, ThreadsDoNotChangeTheCodes) {
    for (const vidkv_side side : sides) {
        Store one = make(side), many = make(side);
        ASSERT_EQ(write(one, 0, 900), VIDKV_OK);
        ASSERT_EQ(write(many, 0, 900), VIDKV_OK);
        ASSERT_EQ(one.seal(1), VIDKV_OK);
        ASSERT_EQ(many.seal(5), VIDKV_OK);
        for (int g = 0; g < 20; ++g) EXPECT_EQ(block(one, g, 0), block(many, g, 0));
    }
}

INSTANTIATE_TEST_SUITE_P(Presets, StoreTest, testing::Values("f16", "k2v2", "k1.5v2", "k1.5v1.58", "k1v1.58", "k16v2"),
                         [](const auto & instance) {
                             std::string name = instance.param;
                             std::replace(name.begin(), name.end(), '.', '_');
                             return name;
                         });

class CacheTest : public testing::Test {
  protected:
    // One folder a process: ctest runs tests side by side.
    std::filesystem::path folder = std::filesystem::path(testing::TempDir()) / ("vidkv-cache-test-" + std::to_string(getpid()));
    std::string file = (folder / "saved.vidkv").string();
    Random rng{12};
    vidkv_cache_shape shape{2, 2, 64, 600, 2};

    void SetUp() override { std::filesystem::create_directories(folder); }
    void TearDown() override { std::filesystem::remove_all(folder); }
    Cache filled(const char * preset = "k1.5v1.58") {
        Cache cache(shape, params_of(preset));
        for (int layer = 0; layer < shape.layers; ++layer) {
            for (int sequence = 0; sequence < shape.sequences; ++sequence) {
                const std::vector<float> k = rng.normals(400 * 128), v = rng.normals(400 * 128);
                EXPECT_EQ(cache.append(layer, sequence, 400, k.data(), v.data()), VIDKV_OK);
            }
        }
        EXPECT_EQ(cache.seal(2), VIDKV_OK);
        return cache;
    }
    static std::vector<uint8_t> contents(Cache & cache) {
        std::vector<uint8_t> out;
        for (int layer = 0; layer < cache.shape().layers; ++layer) {
            cache.keys(layer).save(out);
            cache.values(layer).save(out);
        }
        return out;
    }
    std::vector<char> bytes() {
        std::ifstream in(file, std::ios::binary);
        return {std::istreambuf_iterator<char>(in), {}};
    }
    void put(const std::vector<char> & data) {
        std::ofstream(file, std::ios::binary).write(data.data(), static_cast<std::streamsize>(data.size()));
    }
};

TEST_F(CacheTest, RestoreIsBitExactAndContinuesAlike) {
    for (const char * preset : {"f16", "k2v2", "k1.5v1.58"}) {
        Cache saved = filled(preset);
        ASSERT_EQ(saved.save(file.c_str()), VIDKV_OK) << vidkv_last_error();
        Cache loaded(shape, params_of(preset));
        ASSERT_EQ(loaded.load(file.c_str()), VIDKV_OK) << vidkv_last_error();
        EXPECT_EQ(contents(loaded), contents(saved));
        const std::vector<float> more = rng.normals(150 * 128);
        for (Cache * cache : {&saved, &loaded}) {
            EXPECT_EQ(cache->append(1, 0, 150, more.data(), more.data()), VIDKV_OK);
            EXPECT_EQ(cache->seal(1), VIDKV_OK);
        }
        EXPECT_EQ(contents(loaded), contents(saved));
        EXPECT_EQ(loaded.length(1, 0), 550);
    }
}

TEST_F(CacheTest, DamagedFilesAreRefusedAndTheCacheStays) {
    Cache cache = filled();
    ASSERT_EQ(cache.save(file.c_str()), VIDKV_OK);
    const std::vector<char> good = bytes();
    const std::vector<uint8_t> before = contents(cache);
    const auto refused = [&](const std::vector<char> & data, const char * what) {
        put(data);
        EXPECT_EQ(cache.load(file.c_str()), VIDKV_E_FORMAT) << what;
        EXPECT_EQ(std::string(vidkv_last_error()).find('\n'), std::string::npos);
        EXPECT_EQ(contents(cache), before) << what;
    };
    refused({}, "empty");
    refused({'G', 'G', 'U', 'F'}, "another format");
    for (const double part : {0.001, 0.3, 0.9999}) refused({good.begin(), good.begin() + static_cast<long>(part * static_cast<double>(good.size()))}, "cut");
    for (size_t at = 0; at < good.size(); at += at < 300 ? 1 : 4999) {
        std::vector<char> altered = good;
        altered[at] ^= 0x10;
        refused(altered, "altered");
    }
    std::vector<char> longer = good;
    longer.push_back(0);
    refused(longer, "longer");
}

// A wrong field behind a right checksum must still be refused, never crash.
TEST_F(CacheTest, ForgedFilesDoNoHarm) {
    Cache cache = filled();
    ASSERT_EQ(cache.save(file.c_str()), VIDKV_OK);
    const std::vector<char> good = bytes();
    SCOPED_TRACE(rng.trace());
    for (int repeat = 0; repeat < 300; ++repeat) {
        std::vector<char> forged = good;
        const size_t payload = 60, end = forged.size() - 8;
        // Mostly near the front, where plans and states are.
        const size_t span = repeat % 2 ? 600 : end - payload;
        forged[payload + static_cast<size_t>(rng.integer(0, 1 << 30)) % span] = static_cast<char>(rng.integer(-128, 127));
        uint64_t hash = 0xcbf29ce484222325u;
        for (size_t i = 0; i < end; ++i) hash = (hash ^ static_cast<uint8_t>(forged[i])) * 0x100000001b3u;
        std::memcpy(&forged[end], &hash, 8);
        put(forged);
        Cache other(shape, params_of("k1.5v1.58"));
        if (other.load(file.c_str()) != VIDKV_OK) continue;
        std::vector<uint16_t> row(128);
        for (int64_t cell = 0; cell < 400; cell += 7) EXPECT_EQ(other.keys(0).read(0, cell, 1, row.data()), VIDKV_OK);
    }
}

TEST_F(CacheTest, AnotherShapeOrPresetIsRefused) {
    Cache cache = filled();
    ASSERT_EQ(cache.save(file.c_str()), VIDKV_OK);
    Cache other_preset(shape, params_of("k2v2"));
    EXPECT_EQ(other_preset.load(file.c_str()), VIDKV_E_FORMAT);
    vidkv_cache_shape wider = shape;
    wider.kv_heads = 3;
    Cache other_shape(wider, params_of("k1.5v1.58"));
    EXPECT_EQ(other_shape.load(file.c_str()), VIDKV_E_FORMAT);
    EXPECT_EQ(other_shape.load((folder / "nothing").string().c_str()), VIDKV_E_IO);
}

TEST_F(CacheTest, FailingToSaveLeavesTheOldFileAndNothingElse) {
    Cache cache = filled();
    ASSERT_EQ(cache.save(file.c_str()), VIDKV_OK);
    const std::vector<char> good = bytes();
    EXPECT_EQ(cache.save((folder / "no" / "folder").string().c_str()), VIDKV_E_IO);
    // The file beside it leads to a full device, so every write fails.
    std::filesystem::create_symlink("/dev/full", file + ".part");
    EXPECT_EQ(cache.save(file.c_str()), VIDKV_E_IO);
    EXPECT_NE(std::string(vidkv_last_error()).find("No space left"), std::string::npos) << vidkv_last_error();
    EXPECT_EQ(bytes(), good);
    EXPECT_FALSE(std::filesystem::exists(std::filesystem::symlink_status(file + ".part")));
}

TEST_F(CacheTest, FullCachesAndBadArgumentsSaySo) {
    Cache cache = filled();
    const std::vector<float> rows(201 * 128);
    EXPECT_EQ(cache.append(0, 0, 201, rows.data(), rows.data()), VIDKV_E_ARGUMENT);
    EXPECT_NE(std::string(vidkv_last_error()).find("400 of 600"), std::string::npos) << vidkv_last_error();
    EXPECT_EQ(cache.append(2, 0, 1, rows.data(), rows.data()), VIDKV_E_ARGUMENT);
    vidkv_cache * out = nullptr;
    const vidkv_params params = params_of("k2v2");
    vidkv_cache_shape bad = shape;
    bad.head_dim = 60;
    EXPECT_EQ(vidkv_cache_create(&bad, &params, &out), VIDKV_E_ARGUMENT);
    bad = shape;
    bad.cells = int64_t{1} << 60;
    EXPECT_EQ(vidkv_cache_create(&bad, &params, &out), VIDKV_E_ARGUMENT);
    EXPECT_EQ(vidkv_cache_create(nullptr, &params, &out), VIDKV_E_ARGUMENT);
    EXPECT_EQ(out, nullptr);
}

} // namespace
} // namespace vidkv
