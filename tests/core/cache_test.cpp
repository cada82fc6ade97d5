// A whole cache, its file, and files that somebody damaged or forged. tests/format has a forgery of every field.
#include <gtest/gtest.h>

#include <csignal>
#include <filesystem>
#include <fstream>

#include <sys/resource.h>
#include <unistd.h>

#include "cache/cache.h"
#include "core/contents.h"
#include "core/encoding.h"
#include "core/forged_file.h"
#include "core/random.h"
#include "vidkv/file.h"

namespace vidkv {
namespace {

using test::contents;
using test::ForgedFile;
using test::Random;

vidkv_params params_of(const char * name) { return test::preset(name); }

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
    bool is_whole() {
        vidkv_file * opened = nullptr;
        if (vidkv_file_open(file.c_str(), 0, &opened) != VIDKV_OK) return false;
        const bool whole = vidkv_file_verify(opened, 2) == VIDKV_OK;
        vidkv_file_close(opened);
        return whole;
    }
    // Makes right checksums and uses what can be loaded; false if it is refused, on loading or at the first use.
    bool use_forged(ForgedFile forged, const char * preset) {
        forged.sign();
        forged.write(file);
        vidkv_cache * cache = nullptr;
        const vidkv_params params = params_of(preset);
        EXPECT_EQ(vidkv_cache_create(&shape, &params, &cache), VIDKV_OK);
        vidkv_status status = vidkv_cache_load(cache, file.c_str());
        is_whole(); // whatever it says
        if (status == VIDKV_OK) status = use(cache);
        EXPECT_TRUE(status == VIDKV_OK || status == VIDKV_E_FORMAT || status == VIDKV_E_ARGUMENT) << status;
        vidkv_cache_free(cache);
        return status == VIDKV_OK;
    }
    vidkv_status use(vidkv_cache * cache) {
        std::vector<uint16_t> rows(600 * 128);
        const std::vector<float> some = rng.normals(128 * 128), q = rng.normals(256);
        std::vector<float> out(256);
        vidkv_status first = VIDKV_OK;
        const auto note = [&](vidkv_status status) { first = first == VIDKV_OK ? status : first; };
        for (int layer = 0; layer < shape.layers; ++layer) {
            vidkv_store *k = vidkv_cache_keys(cache, layer), *v = vidkv_cache_values(cache, layer);
            for (int sequence = 0; sequence < shape.sequences; ++sequence) {
                for (const vidkv_store * store : {k, v}) note(vidkv_store_read_f16(store, sequence, 0, 600, rows.data()));
                vidkv_attention_args args{};
                args.q = q.data();
                args.q_token_stride = args.out_token_stride = 256;
                args.q_head_stride = args.out_head_stride = 64;
                args.out = out.data();
                args.tokens = 1;
                args.heads = 4;
                args.cells = 600;
                args.sequence = args.value_sequence = sequence;
                args.scale = 0.125f;
                args.threads = 1;
                note(vidkv_attention(k, v, &args));
                vidkv_cache_observe_queries(cache, layer, sequence, q.data(), 1, 4);
                vidkv_cache_append(cache, layer, sequence, 128, some.data(),
                                   some.data()); // fails where the length says full
            }
        }
        note(vidkv_cache_seal(cache, 1));
        return first;
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
        EXPECT_EQ(contents(loaded), contents(saved)) << preset;
        const std::vector<float> more = rng.normals(150 * 128);
        for (Cache * cache : {&saved, &loaded}) {
            EXPECT_EQ(cache->append(1, 0, 150, more.data(), more.data()), VIDKV_OK);
            EXPECT_EQ(cache->seal(1), VIDKV_OK);
        }
        EXPECT_EQ(contents(loaded), contents(saved)) << preset;
        EXPECT_EQ(loaded.length(1, 0), 550);
        EXPECT_TRUE(is_whole());
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
        EXPECT_NE(std::string(vidkv_last_error()).find(file), std::string::npos) << vidkv_last_error();
        EXPECT_EQ(contents(cache), before) << what;
    };
    refused({}, "empty");
    refused({'G', 'G', 'U', 'F'}, "another format");
    for (const double part : {0.001, 0.3, 0.9999})
        refused({good.begin(), good.begin() + static_cast<long>(part * static_cast<double>(good.size()))}, "cut");
    std::vector<char> longer = good;
    longer.push_back(0);
    refused(longer, "longer");
    // Whatever byte it is: verify sees it, and what is no page's is seen before anything is loaded.
    put(good);
    const ForgedFile whole = ForgedFile::read(file);
    const size_t pages = whole.entry(0).pages.at;
    for (size_t at = 0; at < good.size(); at += at < 300 ? 1 : 4999) {
        std::vector<char> altered = good;
        altered[at] ^= 0x10;
        if (at < sizeof(FileHeader) || at >= whole.header().table_at)
            refused(altered, "altered");
        else
            put(altered);
        EXPECT_FALSE(is_whole()) << at;
    }
    std::vector<char> altered = good;
    altered[pages - 80] ^= 1;
    refused(altered, "state of a store");
}

// A wrong field behind a right checksum must still be refused, or do no harm: whatever loads can be read, written, sealed, attended to.
TEST_F(CacheTest, ForgedFilesDoNoHarm) {
    SCOPED_TRACE(rng.trace());
    int loaded = 0, refused = 0;
    for (const char * preset : presets) {
        Cache cache = filled(preset);
        ASSERT_EQ(cache.save(file.c_str()), VIDKV_OK);
        const ForgedFile good = ForgedFile::read(file);
        for (int repeat = 0; repeat < 60; ++repeat) {
            ForgedFile forged = good;
            // In turn: in the table, in a store's state, anywhere.
            const size_t entry = static_cast<size_t>(rng.integer(0, 7));
            const size_t from[] = {good.header().table_at, good.state_at(entry), sizeof(FileHeader)};
            const size_t span[] = {good.bytes.size() - from[0], 64 * 5, good.bytes.size() - from[2]};
            const size_t kind = static_cast<size_t>(repeat % 3);
            forged.bytes[from[kind] + static_cast<size_t>(rng.integer(0, 1 << 30)) % span[kind]] =
                static_cast<uint8_t>(rng.integer(0, 255));
            (use_forged(forged, preset) ? loaded : refused)++;
        }
    }
    EXPECT_GT(loaded, 0);
    EXPECT_GT(refused, 0);
}

// Fields of a page that lead out of it are seen when the page is first used, and by verify.
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
        ForgedFile forged = ForgedFile::read(file);
        const size_t entry = forgery.keys ? 2 : 3; // of layer 1, sequence 0
        ASSERT_EQ(forged.page_entry(entry, 1).state, PageState::sealed);
        forged.bytes[forged.page_at(entry, 1) + forgery.at] ^= forgery.flip;
        EXPECT_FALSE(use_forged(forged, forgery.preset)) << forgery.what;
        EXPECT_FALSE(is_whole()) << forgery.what;
    }
}

TEST_F(CacheTest, AnotherShapeOrPresetIsRefused) {
    Cache cache = filled();
    ASSERT_EQ(cache.save(file.c_str()), VIDKV_OK);
    Cache other_preset(shape, params_of("k2v2"));
    EXPECT_EQ(other_preset.load(file.c_str()), VIDKV_E_FORMAT);
    EXPECT_NE(std::string(vidkv_last_error()).find("key bits 1.5, not 2"), std::string::npos) << vidkv_last_error();
    vidkv_cache_shape other = shape;
    other.kv_heads = 3;
    Cache wider(other, params_of("k1.5v1.58"));
    EXPECT_EQ(wider.load(file.c_str()), VIDKV_E_FORMAT);
    other = shape;
    other.layers = 3;
    Cache deeper(other, params_of("k1.5v1.58"));
    EXPECT_EQ(deeper.load(file.c_str()), VIDKV_E_FORMAT);
    EXPECT_NE(std::string(vidkv_last_error()).find("2 layers, not 3"), std::string::npos) << vidkv_last_error();
    other = shape;
    other.cells = 300;
    Cache smaller(other, params_of("k1.5v1.58"));
    EXPECT_EQ(smaller.load(file.c_str()), VIDKV_E_ARGUMENT);
    EXPECT_NE(std::string(vidkv_last_error()).find("300 cells"), std::string::npos) << vidkv_last_error();
    other.cells = 5000;
    other.sequences = 1;
    Cache fewer(other, params_of("k1.5v1.58"));
    EXPECT_EQ(fewer.load(file.c_str()), VIDKV_E_ARGUMENT);
    EXPECT_EQ(fewer.stats().cells_written, 0);
    EXPECT_EQ(wider.load((folder / "nothing").string().c_str()), VIDKV_E_IO);
    EXPECT_EQ(wider.load(folder.string().c_str()), VIDKV_E_IO);
}

TEST_F(CacheTest, FailingToSaveLeavesTheOldFileAndNothingElse) {
    Cache cache = filled();
    ASSERT_EQ(cache.save(file.c_str()), VIDKV_OK);
    const std::vector<char> good = bytes();
    EXPECT_EQ(cache.save((folder / "no" / "folder").string().c_str()), VIDKV_E_IO);
    EXPECT_EQ(cache.save(folder.string().c_str()), VIDKV_E_IO);
    // As on a full disk: no file may grow beyond half of it.
    rlimit before{};
    getrlimit(RLIMIT_FSIZE, &before);
    const auto ignored = std::signal(SIGXFSZ, SIG_IGN);
    const rlimit half{good.size() / 2, before.rlim_max};
    setrlimit(RLIMIT_FSIZE, &half);
    EXPECT_EQ(cache.save(file.c_str()), VIDKV_E_IO);
    setrlimit(RLIMIT_FSIZE, &before);
    std::signal(SIGXFSZ, ignored);
    EXPECT_NE(std::string(vidkv_last_error()).find("File too large"), std::string::npos) << vidkv_last_error();
    EXPECT_EQ(bytes(), good);
    EXPECT_FALSE(std::filesystem::exists(file + ".part"));
    // A link that somebody put beside it is not followed.
    std::filesystem::create_symlink(folder / "elsewhere", file + ".part");
    EXPECT_EQ(cache.save(file.c_str()), VIDKV_E_IO);
    EXPECT_FALSE(std::filesystem::exists(folder / "elsewhere"));
    EXPECT_EQ(bytes(), good);
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
