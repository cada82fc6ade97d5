// The plug-in inside an unmodified llama.cpp against llama.cpp alone: whatever a host does to its KV cache, the f16 preset
// must give the same logits, and the packed preset must go through the same motions.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <functional>
#include <map>
#include <string>

#include "bench/random_model.h"
#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "session.h"

namespace vidkv_test {

namespace {

constexpr uint32_t seed = 20240607;

// llama.cpp's own attention without flash attention works in f32 on f16 keys and values, as the f16 store does; what is
// left is the order of sums, and f16 roundings of rotated keys.
constexpr double same = 2e-3;

// The models written so far; removed when the tests end.
struct Models {
    std::map<std::string, std::string> paths;
    ~Models() {
        for (const auto & [name, path] : paths) std::remove(path.c_str());
    }
};

std::string model(const std::string & architecture) {
    static Models models;
    std::string & path = models.paths[architecture];
    if (!path.empty()) return path;
    ModelShape shape;
    shape.architecture = architecture;
    if (architecture == "mpt") shape.kv_heads = 4, shape.head_dim = 32;
    return path = write_random_model(shape, seed);
}

using Scenario = std::function<void(Session &)>;

void expect_same(const std::vector<Logits> & got, const std::vector<Logits> & want) {
    ASSERT_EQ(got.size(), want.size());
    for (size_t i = 0; i < got.size(); ++i) {
        const double error = relative_error(got[i], want[i]);
        std::printf("  step %zu: relative error %.2e\n", i, error);
        EXPECT_LT(error, same) << "step " << i;
    }
}

// Runs the scenario on llama.cpp alone, with the f16 preset and packed. Packed keys and values change the logits of a
// random model a good deal; they must stay finite and must be packed.
void compare(const std::string & architecture, const Scenario & scenario, const SessionOptions & options = {}) {
    std::printf("seed %u, model %s\n", seed, architecture.c_str());
    SessionOptions alone = options, exact = options, packed = options;
    alone.flash_attention = false;
    exact.preset = "f16";
    packed.preset = "k1.5v1.58";
    Session stock(model(architecture), alone);
    scenario(stock);
    {
        Session device(model(architecture), exact);
        scenario(device);
        expect_same(device.trace(), stock.trace());
        EXPECT_EQ(stats().cells_sealed, 0);
    }
    Session device(model(architecture), packed);
    scenario(device);
    EXPECT_GT(stats().cells_sealed, 0);
    for (const Logits & logits : device.trace()) {
        for (const float x : logits) ASSERT_TRUE(std::isfinite(x));
    }
    const double error = relative_error(device.trace().back(), stock.trace().back());
    std::printf("  packed: relative error %.2e\n", error);
    EXPECT_GT(error, 3 * same) << "the scenario does not tell a packed cache from an f16 one";
}

void fill(Session & s) {
    s.feed(0, 400, 0);
    for (int i = 400; i < 410; ++i) s.feed(i, 1, i);
}

void restore(Session & s, llama_state_seq_flags flags) {
    std::vector<uint8_t> state(llama_state_seq_get_size_ext(s.context(), 0, flags));
    ASSERT_EQ(llama_state_seq_get_data_ext(s.context(), state.data(), state.size(), 0, flags), state.size());
    llama_memory_clear(s.memory(), true);
    ASSERT_EQ(llama_state_seq_set_data_ext(s.context(), state.data(), state.size(), 0, flags), state.size());
}

TEST(KvCache, PrefillAndDecode) {
    for (const char * architecture : {"llama", "gemma2", "mpt", "gpt-oss"}) compare(architecture, fill);
}

TEST(KvCache, CellsAreReused) {
    compare("llama", [](Session & s) {
        fill(s);
        ASSERT_TRUE(llama_memory_seq_rm(s.memory(), 0, 200, -1));
        s.feed(600, 180, 200);
        ASSERT_TRUE(llama_memory_seq_rm(s.memory(), 0, -1, -1));
        s.feed(1000, 300, 0);
    });
}

TEST(KvCache, ContextShift) {
    compare("llama", [](Session & s) {
        fill(s);
        ASSERT_TRUE(llama_memory_seq_rm(s.memory(), 0, 4, 104));
        llama_memory_seq_add(s.memory(), 0, 104, -1, -100);
        s.feed(900, 3, llama_memory_seq_pos_max(s.memory(), 0) + 1);
    });
}

TEST(KvCache, StateIsSavedAndRestored) {
    compare("llama", [](Session & s) {
        fill(s);
        restore(s, 0);
        s.feed(410, 5, 410);
    });
}

TEST(KvCache, StateIsKeptOnTheDevice) {
    compare("llama", [](Session & s) {
        fill(s);
        restore(s, LLAMA_STATE_SEQ_FLAGS_ON_DEVICE);
        s.feed(410, 5, 410);
    });
}

TEST(KvCache, RestoredPackedStateContinuesAlike) {
    SessionOptions options;
    options.preset = "k2v2";
    Session s(model("llama"), options);
    fill(s);
    const Logits before = s.feed(410, 1, 410);
    ASSERT_TRUE(llama_memory_seq_rm(s.memory(), 0, 410, -1));
    restore(s, 0);
    const double error = relative_error(s.feed(410, 1, 410), before);
    std::printf("  relative error %.2e\n", error);
    EXPECT_LT(error, 0.15); // the packed pages are packed a second time
}

TEST(KvCache, StreamsAreApart) {
    SessionOptions options;
    options.sequences = 2;
    compare(
        "llama",
        [](Session & s) {
            fill(s);
            s.feed(100, 200, 0, 1);
            s.feed(2000, 1, 200, 1);
            s.feed(410, 1, 410, 0);
        },
        options);
}

TEST(KvCache, SequencesAreCopied) {
    SessionOptions options;
    options.sequences = 3;
    compare(
        "llama",
        [](Session & s) {
            fill(s);
            llama_memory_seq_cp(s.memory(), 0, 2, -1, -1);
            s.feed(410, 1, 410, 2);
            s.feed(500, 1, 410, 0);
            llama_memory_seq_cp(s.memory(), 0, 1, -1, -1);
            s.feed_together(700, 3, 411);
        },
        options);
}

TEST(KvCache, CopyOfAPackedStreamIsExact) {
    SessionOptions options;
    options.preset = "k1.5v1.58";
    options.sequences = 2;
    Session s(model("llama"), options);
    fill(s);
    llama_memory_seq_cp(s.memory(), 0, 1, -1, -1);
    const Logits copy = s.feed(410, 1, 410, 1);
    EXPECT_EQ(s.feed(410, 1, 410, 0), copy);
}

TEST(KvCache, SequencesShareAUnifiedCache) {
    SessionOptions options;
    options.sequences = 4;
    options.unified = true;
    options.cells = 2048;
    compare(
        "llama",
        [](Session & s) {
            for (int i = 0; i < 4; ++i) s.feed(200 * i, 250 + 20 * i, 0, i);
            for (int i = 0; i < 4; ++i) s.feed(50 * i, 30 - 20 * i + 60, 250 + 20 * i, i);
            s.feed_together(5000, 4, 340);
        },
        options);
}

// A freed text's cells are written by others, between the cells of texts that live on: nobody's codes are packed a second time.
TEST(KvCache, FreedCellsLeaveOtherTextsAlone) {
    SessionOptions options;
    options.preset = "t1.65";
    options.sequences = 4;
    options.unified = true;
    options.cells = 4096;
    Session s(model("llama"), options);
    for (int i = 0; i < 300; ++i) s.feed_together(4 * i, 4, i); // cells of all four, one after the other
    const int64_t sealed = stats().cells_sealed;
    EXPECT_EQ(sealed, 4 * 128 * 6); // one page of each text has aged, in three layers' keys and values
    ASSERT_TRUE(llama_memory_seq_rm(s.memory(), 1, -1, -1));
    s.feed(7000, 600, 0, 1);
    EXPECT_EQ(stats().pages_reopened, 0);
    EXPECT_EQ(stats().cells_written, (3 * 300 + 600) * 6);
    for (int i = 300; i < 310; ++i) s.feed_together(4 * i, 1, i);
    EXPECT_EQ(stats().pages_reopened, 0);
}

// Tokens that are taken back do not make what was said before them old.
TEST(KvCache, RejectedDraftsDoNotAgePages) {
    SessionOptions options;
    options.preset = "t1.65";
    Session s(model("llama"), options);
    s.feed(0, 128, 0);
    for (int position = 128; position < 250; ++position) {
        s.feed(position, 17, position);
        ASSERT_TRUE(llama_memory_seq_rm(s.memory(), 0, position + 1, -1));
        ASSERT_EQ(stats().cells_sealed, 0) << position;
    }
    for (int position = 250; position < 255; ++position) s.feed(position, 1, position);
    EXPECT_EQ(stats().cells_sealed, 0);
}

// Tokens that come one by one wait for a page of one store each.
TEST(KvCache, PagesAreSealedStoreByStore) {
    SessionOptions options;
    options.preset = "t1.65";
    Session s(model("llama"), options);
    s.feed(0, 200, 0);
    const uint64_t planned = stats().bytes_planned;
    for (int position = 200; position < 255; ++position) s.feed(position, 1, position);
    EXPECT_EQ(stats().cells_sealed, 0);
    for (int stores = 1; stores <= 6; ++stores) { // keys and values of three layers
        s.feed(254 + stores, 1, 254 + stores);
        EXPECT_EQ(stats().cells_sealed, 128 * stores);
        EXPECT_EQ(stats().bytes_planned, planned + uint64_t(6 - stores) * 128 * 128 * 2) << "pages that wait are planned";
    }
    s.feed(261, 1, 261);
    EXPECT_EQ(stats().cells_sealed, 128 * 6);
    s.feed(262, 250, 262); // a prompt packs all it makes old
    EXPECT_EQ(stats().cells_sealed, 3 * 128 * 6);
    EXPECT_EQ(stats().bytes_planned, planned);
}

TEST(KvCache, ProtectedTokensTakeMoreBits) {
    uint64_t sealed[2];
    for (const bool protects : {false, true}) {
        SessionOptions options;
        options.preset = protects ? "t1.65-stp0.2" : "t1.65";
        Session s(model("llama"), options);
        fill(s);
        sealed[protects] = stats().sealed_bytes;
    }
    std::printf("  sealed: %llu bytes, protected %llu\n", static_cast<unsigned long long>(sealed[0]),
                static_cast<unsigned long long>(sealed[1]));
    EXPECT_GT(sealed[1], sealed[0] * 102 / 100); // a mask of the protected tokens alone takes less
}

TEST(SlidingWindow, StaysInF16) {
    SessionOptions options;
    options.preset = "k1.5v1.58";
    options.cells = 2048;
    forget_log();
    Session packed(model("gemma2"), options);
    EXPECT_EQ(logged("sliding window, kept in f16").size(), 1u);
    EXPECT_EQ(logged("vidkv: KV cache of").size(), 2u);
    packed.feed(0, 900, 0); // several times round the small cache
    const auto sum = stats();
    EXPECT_GT(sum.cells_sealed, 0);
    EXPECT_EQ(sum.pages_reopened, 0);
}

TEST(SlidingWindow, CellsRecycle) {
    SessionOptions options;
    options.cells = 2048;
    for (const char * architecture : {"gemma2", "gpt-oss"}) {
        compare(
            architecture, [](Session & s) { s.feed(0, 900, 0); }, options);
    }
}

TEST(SlidingWindow, FullSizeCacheIsPacked) {
    SessionOptions options;
    options.full_window_cache = true;
    compare("gemma2", fill, options);
}

// What the plug-in cannot pack lies in plain memory: it says so once, and the model answers as without it.
void expect_fallback(const std::string & path, SessionOptions options, const char * said) {
    options.preset = "k1.5v1.58";
    forget_log();
    Session device(path, options);
    EXPECT_EQ(logged(said).size(), 1u);
    fill(device);
    options.preset.clear();
    Session stock(path, options);
    fill(stock);
    expect_same(device.trace(), stock.trace());
}

TEST(Fallback, FlashAttentionOff) {
    SessionOptions options;
    options.flash_attention = false;
    expect_fallback(model("llama"), options, "flash attention is off");
}

TEST(Fallback, QuantizedCache) {
    SessionOptions options;
    options.type = GGML_TYPE_Q8_0;
    expect_fallback(model("llama"), options, "its type is q8_0");
}

TEST(Fallback, HeadDimTheCodecDoesNotTake) {
    ModelShape shape;
    shape.head_dim = 60;
    const std::string path = write_random_model(shape, seed);
    expect_fallback(path, {}, "head_dim must be a multiple of 8");
    std::remove(path.c_str());
}

TEST(Plugin, HoldsWhatItPlans) {
    SessionOptions options;
    options.preset = "k1.5v1.58";
    options.cells = 2048;
    forget_log();
    {
        Session s(model("llama"), options);
        s.feed(0, 2048, 0);
        const auto sum = stats();
        const auto lines = logged("vidkv: KV cache of 3 layers: preset k1.5v1.58");
        ASSERT_EQ(lines.size(), 1u);
        std::printf("  %s\n  held %.2f MiB, planned %.2f MiB, f16 %.2f MiB\n", lines[0].c_str(),
                    double(sum.bytes) / 1048576, double(sum.bytes_planned) / 1048576, double(sum.bytes_f16) / 1048576);
        EXPECT_EQ(sum.bytes_f16, 3u * 2 * 2048 * 128 * 2);
        EXPECT_LE(sum.bytes, sum.bytes_planned * 11 / 10);
        EXPECT_LT(sum.bytes * 3, sum.bytes_f16);
    }
    EXPECT_EQ(stats().bytes, 0u); // nothing outlives the host's cache
}

// Keys and values of a layer on the device, as llama.cpp has them allocated, and a product of the keys with something.
struct ProbedCache {
    ProbedCache() {
        context = ggml_init({16 * ggml_tensor_overhead(), nullptr, true});
        keys = ggml_new_tensor_3d(context, GGML_TYPE_F16, 128, 256, 1);
        ggml_tensor * values = ggml_new_tensor_3d(context, GGML_TYPE_F16, 128, 256, 1);
        ggml_set_name(keys, "cache_k_l0");
        ggml_set_name(values, "cache_v_l0");
        buffer = ggml_backend_alloc_ctx_tensors_from_buft(context, ggml_backend_dev_buffer_type(device()));
        ggml_tensor * rows = ggml_view_2d(context, keys, 128, 256, keys->nb[1], 0);
        product = ggml_mul_mat(context, rows, ggml_new_tensor_2d(context, GGML_TYPE_F32, 128, 1));
    }
    ~ProbedCache() {
        ggml_backend_buffer_free(buffer);
        ggml_free(context);
    }
    static ggml_backend_dev_t device() { return ggml_backend_dev_by_name("VIDKV"); }

    ggml_context * context;
    ggml_tensor *keys, *product;
    ggml_backend_buffer_t buffer;
};

TEST(Plugin, AskingWhatItSupportsChangesNothing) {
    EXPECT_EQ(configure("t1.65"), nullptr);
    const ProbedCache cache;
    ASSERT_NE(cache.buffer, nullptr);
    const ggml_backend_buffer_type_t type = ggml_backend_buffer_get_type(cache.buffer);
    const uint64_t held = stats().bytes;
    forget_log();
    EXPECT_GT(held, 0u);
    EXPECT_TRUE(ggml_backend_dev_supports_op(ProbedCache::device(), cache.product)) << "else the host would be aborted";
    EXPECT_EQ(ggml_backend_buffer_get_type(cache.buffer), type);
    EXPECT_EQ(stats().bytes, held);
    EXPECT_TRUE(logged("").empty());
}

TEST(Plugin, PlansForTheConversationsThereAre) {
    SessionOptions options;
    options.preset = "t1.65";
    options.sequences = 4;
    options.unified = true;
    options.cells = 4096;
    Session s(model("llama"), options);
    s.feed(0, 400, 0);
    const uint64_t alone = stats().bytes_planned;
    for (int sequence = 1; sequence < 4; ++sequence) s.feed(0, 1000, 0, sequence);
    s.feed(400, 500, 400);
    const vidkv_store_stats four = stats();
    const double mib = 1048576;
    std::printf("  held %.2f MiB, planned %.2f MiB (%.2f for one conversation), f16 %.2f MiB\n", four.bytes / mib,
                four.bytes_planned / mib, alone / mib, four.bytes_f16 / mib);
    EXPECT_GT(four.bytes_planned, alone);
    EXPECT_LE(four.bytes, four.bytes_planned * 11 / 10);
    EXPECT_LT(four.bytes_planned, four.bytes_f16 / 2);
}

TEST(Plugin, ConfigureRefusesNonsense) {
    const char * error = configure("k9v9");
    ASSERT_NE(error, nullptr);
    EXPECT_NE(std::string(error).find("key bits"), std::string::npos) << error;
    vidkv_params params;
    ASSERT_EQ(vidkv_params_from_preset("k2v2", &params), VIDKV_OK);
    params.group_size = 48;
    error = configure(nullptr, &params);
    ASSERT_NE(error, nullptr);
    EXPECT_NE(std::string(error).find("group size"), std::string::npos) << error;
    EXPECT_EQ(configure(nullptr, nullptr), nullptr);
}

} // namespace

} // namespace vidkv_test
