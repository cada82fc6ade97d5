// A whole cache, its file, and files that somebody damaged or forged.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>

#include <unistd.h>

#include "base/half.h"
#include "cache/cache.h"
#include "core/encoding.h"
#include "core/random.h"

namespace vidkv {
namespace {

using test::Random;

vidkv_params params_of(const char * name) { return test::preset(name); }

constexpr size_t header_bytes = 64;
const char * const presets[] = {"f16",  "k2v2", "k1.5v1.58",    "k1.5v1.58-stp0.2",
                                "t2.2", "t1.0", "t1.65-stp0.2", "k16vt1.5-stp0.2"};

class CacheTest : public testing::Test {
  protected:
    // One folder a process: ctest runs tests side by side.
    std::filesystem::path folder =
        std::filesystem::path(testing::TempDir()) / ("vidkv-cache-test-" + std::to_string(getpid()));
    std::string file = (folder / "saved.vidkv").string();
    Random rng{12};
    vidkv_cache_shape shape{2, 2, 64, 600, 2};

    void SetUp() override { std::filesystem::create_directories(folder); }
    void TearDown() override { std::filesystem::remove_all(folder); }
    Cache filled(const char * preset = "k1.5v1.58") {
        Cache cache(shape, params_of(preset));
        for (int layer = 0; layer < shape.layers; ++layer) {
            for (int sequence = 0; sequence < shape.sequences; ++sequence) {
                const std::vector<float> k = rng.normals(400 * 128), v = rng.normals(400 * 128), q = rng.normals(40 * 256);
                EXPECT_EQ(cache.append(layer, sequence, 400, k.data(), v.data()), VIDKV_OK);
                EXPECT_EQ(cache.observe_queries(layer, sequence, q.data(), 40, 4), VIDKV_OK);
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
    // Puts a right checksum on a file and uses what can be loaded of it; false if it is refused.
    bool use_forged(std::vector<char> forged, const char * preset) {
        const size_t end = forged.size() - 8;
        uint64_t hash = 0xcbf29ce484222325u;
        for (size_t i = 0; i < end; ++i) hash = (hash ^ static_cast<uint8_t>(forged[i])) * 0x100000001b3u;
        std::memcpy(&forged[end], &hash, 8);
        put(forged);
        vidkv_cache * cache = nullptr;
        const vidkv_params params = params_of(preset);
        EXPECT_EQ(vidkv_cache_create(&shape, &params, &cache), VIDKV_OK);
        const vidkv_status status = vidkv_cache_load(cache, file.c_str());
        EXPECT_TRUE(status == VIDKV_OK || status == VIDKV_E_FORMAT) << status;
        if (status == VIDKV_OK) use(cache);
        vidkv_cache_free(cache);
        return status == VIDKV_OK;
    }
    void use(vidkv_cache * cache) {
        std::vector<uint16_t> rows(600 * 128);
        const std::vector<float> some = rng.normals(128 * 128), q = rng.normals(256);
        std::vector<float> out(256);
        for (int layer = 0; layer < shape.layers; ++layer) {
            vidkv_store *k = vidkv_cache_keys(cache, layer), *v = vidkv_cache_values(cache, layer);
            for (int sequence = 0; sequence < shape.sequences; ++sequence) {
                for (const vidkv_store * store : {k, v})
                    EXPECT_EQ(vidkv_store_read_f16(store, sequence, 0, 600, rows.data()), VIDKV_OK);
                const vidkv_attention_args args{.q = q.data(),
                                                .q_token_stride = 256,
                                                .q_head_stride = 64,
                                                .out = out.data(),
                                                .out_token_stride = 256,
                                                .out_head_stride = 64,
                                                .tokens = 1,
                                                .heads = 4,
                                                .cells = 600,
                                                .sequence = sequence,
                                                .value_sequence = sequence,
                                                .mask = nullptr,
                                                .mask_stride = 0,
                                                .causal = 0,
                                                .scale = 0.125f,
                                                .softcap = 0,
                                                .max_bias = 0,
                                                .sinks = nullptr,
                                                .threads = 1};
                EXPECT_EQ(vidkv_attention(k, v, &args), VIDKV_OK);
                vidkv_cache_observe_queries(cache, layer, sequence, q.data(), 1, 4);
                vidkv_cache_append(cache, layer, sequence, 128, some.data(),
                                   some.data()); // fails where the length says full
            }
        }
        EXPECT_EQ(vidkv_cache_seal(cache, 1), VIDKV_OK);
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
    for (const char * preset : presets) {
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
    for (const double part : {0.001, 0.3, 0.9999})
        refused({good.begin(), good.begin() + static_cast<long>(part * static_cast<double>(good.size()))}, "cut");
    for (size_t at = 0; at < good.size(); at += at < 300 ? 1 : 4999) {
        std::vector<char> altered = good;
        altered[at] ^= 0x10;
        refused(altered, "altered");
    }
    std::vector<char> longer = good;
    longer.push_back(0);
    refused(longer, "longer");
}

// A wrong field behind a right checksum must still be refused, or do no harm: whatever loads can be read, written, sealed,
// attended to.
TEST_F(CacheTest, ForgedFilesDoNoHarm) {
    SCOPED_TRACE(rng.trace());
    int loaded = 0, refused = 0;
    for (const char * preset : presets) {
        Cache cache = filled(preset);
        ASSERT_EQ(cache.save(file.c_str()), VIDKV_OK);
        const std::vector<char> good = bytes();
        for (int repeat = 0; repeat < 60; ++repeat) {
            std::vector<char> forged = good;
            const size_t end = forged.size() - 8;
            // Mostly near the front, where plans and counters are.
            const size_t span = repeat % 2 ? 600 : end - header_bytes;
            forged[header_bytes + static_cast<size_t>(rng.integer(0, 1 << 30)) % span] =
                static_cast<char>(rng.integer(-128, 127));
            (use_forged(forged, preset) ? loaded : refused)++;
        }
    }
    EXPECT_GT(loaded, 0);
    EXPECT_GT(refused, 0);
}

// Fields that lead elsewhere, one by one. They are found in the file by the bytes of the page they stand in.
TEST_F(CacheTest, FieldsThatPointElsewhereAreRefused) {
    struct Forgery {
        const char *preset, *what;
        bool keys;
        size_t at; // byte of the sealed page
        uint8_t flip;
    };
    const KeyLayout keys = make_key_layout(params_of("t1.65"), 64, 2);
    const size_t meta = keys.head_codes, starts = meta + 2 * keys.head_meta;
    const Forgery forgeries[] = {{"t1.65", "a quad's code that does not exist", true, meta + 2 * 64, 0x08},
                                 {"t1.65", "a quad's code of other bits", true, meta + 2 * 64 + 7, 0x10},
                                 {"t1.65", "code start of head 0", true, starts, 0x01},
                                 {"t1.65", "code start of head 1", true, starts + 2, 0x01},
                                 {"t1.65", "code start of head 1, far off", true, starts + 3, 0x80},
                                 {"t1.65-stp0.2", "a token more in the mask", false, 5, 0x01},
                                 {"k1.5v1.58-stp0.2", "a token more in the mask", false, 15, 0x80}};
    for (const Forgery & forgery : forgeries) {
        Cache cache = filled(forgery.preset);
        ASSERT_EQ(cache.save(file.c_str()), VIDKV_OK);
        std::vector<char> forged = bytes();
        const Store & store = forgery.keys ? cache.keys(1) : cache.values(1);
        const uint8_t * page = store.view(1, 1, 0).page;
        ASSERT_NE(page, nullptr) << forgery.preset;
        const size_t bytes_a_page = forgery.keys ? store.key_layout().page_bytes : 64;
        const auto found = std::search(forged.begin(), forged.end(), reinterpret_cast<const char *>(page),
                                       reinterpret_cast<const char *>(page) + bytes_a_page);
        ASSERT_NE(found, forged.end());
        found[static_cast<ptrdiff_t>(forgery.at)] =
            static_cast<char>(found[static_cast<ptrdiff_t>(forgery.at)] ^ forgery.flip);
        EXPECT_FALSE(use_forged(forged, forgery.preset)) << forgery.what;
    }
}

TEST_F(CacheTest, CountersOutOfOrderAreRefused) {
    Cache cache = filled("t1.65");
    ASSERT_EQ(cache.save(file.c_str()), VIDKV_OK);
    const std::vector<char> good = bytes();
    // Layer 0: two lengths, then the key store: head_dim, keep open, and sequence 0: rows written, marks, plans.
    const size_t lengths = header_bytes, head_dim = lengths + 16, writes = head_dim + 5, plans = writes + 9,
                 order = plans + 4;
    const auto refused_with = [&](size_t at, const std::vector<uint8_t> & value, const char * what) {
        std::vector<char> forged = good;
        std::copy(value.begin(), value.end(), forged.begin() + static_cast<ptrdiff_t>(at));
        EXPECT_FALSE(use_forged(forged, "t1.65")) << what;
    };
    refused_with(lengths, {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, "negative length");
    refused_with(lengths, {0x59, 0x02}, "length past the capacity");
    refused_with(head_dim, {32}, "another head_dim");
    refused_with(writes, {0, 0, 0, 0, 0, 0, 0, 0x80}, "negative count of rows");
    refused_with(writes, {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f}, "the last count there is");
    refused_with(writes, {0, 0, 0, 0, 0, 0, 0, 0}, "pages written after the last row");
    refused_with(plans, {1}, "a plan too few");
    refused_with(plans, {0}, "no plans for sealed pages");
    refused_with(order, {63, 0, 63, 0}, "a channel twice");
    refused_with(order, {64, 0}, "a channel that does not exist");
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
