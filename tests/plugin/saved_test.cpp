// A sequence in a file and back, through an unmodified llama.cpp: what follows is computed from the same bits.
#include <gtest/gtest.h>

#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <tuple>

#include <unistd.h>

#include "engine/sequence_state.h"
#include "engine/video_file.h"
#include "error.h"
#include "bench/random_model.h"
#include "session.h"

namespace vidkv_test {

namespace {

using vidkv::cli::Error;
using vidkv::cli::Manifest;
using vidkv::cli::VideoFile;

constexpr uint32_t seed = 20251126;

struct TemporaryFile {
    explicit TemporaryFile(std::string name) : path(std::move(name)) {}
    ~TemporaryFile() { std::remove(path.c_str()); }
    TemporaryFile(const TemporaryFile &) = delete;
    TemporaryFile & operator=(const TemporaryFile &) = delete;
    std::string path;
};

std::string unique(const std::string & name) {
    return (std::filesystem::temp_directory_path() / ("vidkv-" + std::to_string(getpid()) + "-" + name)).string();
}

const std::string & model(const std::string & architecture) {
    static std::map<std::string, std::unique_ptr<TemporaryFile>> models;
    std::unique_ptr<TemporaryFile> & made = models[architecture];
    ModelShape shape;
    shape.architecture = architecture;
    if (!made) made = std::make_unique<TemporaryFile>(write_random_model(shape, seed));
    return made->path;
}

void save(Session & s, const std::string & path, bool stock = false, int64_t tokens = 1) {
    Manifest manifest;
    manifest.prefix.tokens = manifest.prefix.position = static_cast<llama_pos>(tokens);
    manifest.used = manifest.position = static_cast<llama_pos>(tokens);
    const std::string text = manifest.text();
    vidkv::cli::save_sequence(s.context(), stock, path, {{"manifest", {text.begin(), text.end()}}});
}

void load(Session & s, const std::string & path, bool stock = false) {
    vidkv::cli::load_sequence(s.context(), stock, VideoFile(path, true, 1));
}

void expect_same_bits(const std::vector<Logits> & got, const std::vector<Logits> & want) {
    ASSERT_EQ(got.size(), want.size());
    for (size_t i = 0; i < got.size(); ++i) {
        ASSERT_EQ(got[i].size(), want[i].size());
        EXPECT_EQ(std::memcmp(got[i].data(), want[i].data(), got[i].size() * sizeof(float)), 0) << "step " << i;
    }
}

// What a session computes from here on: over a page that is packed on the way.
std::vector<Logits> go_on(Session & s, int from) {
    const size_t before = s.trace().size();
    for (int i = from; i < from + 5; ++i) s.feed(i, 1, i);
    s.feed(from + 5, 300, from + 5);
    for (int i = from + 305; i < from + 310; ++i) s.feed(i, 1, i);
    return {s.trace().begin() + static_cast<ptrdiff_t>(before), s.trace().end()};
}

void expect_to_go_on(const std::string & path, const SessionOptions & options, const std::function<void(Session &)> & fill,
                     int from) {
    const TemporaryFile file(unique("saved.vidkv"));
    std::vector<Logits> want;
    vidkv_store_stats held;
    {
        Session s(path, options);
        fill(s);
        llama_synchronize(s.context());
        held = stats();
        save(s, file.path);
        want = go_on(s, from);
    }
    Session s(path, options);
    load(s, file.path);
    EXPECT_EQ(stats().cells_sealed, held.cells_sealed);
    EXPECT_EQ(stats().cells_written, held.cells_written);
    expect_same_bits(go_on(s, from), want);
    EXPECT_EQ(stats().pages_reopened, 0);
}

SessionOptions options_of(const std::string & preset) {
    SessionOptions options;
    options.preset = preset;
    return options;
}

void fill(Session & s) {
    s.feed(0, 400, 0);
    for (int i = 400; i < 410; ++i) s.feed(i, 1, i);
}

TEST(SavedSequence, SameLogits) {
    for (const char * preset : {"t1.65", "t2.2", "k1.5v1.58", "f16", "k1.5v1.58-stp0.2"}) {
        SCOPED_TRACE(preset);
        expect_to_go_on(model("llama"), options_of(preset), fill, 410);
    }
}

TEST(SavedSequence, WholePages) {
    expect_to_go_on(
        model("llama"), options_of("t1.65"), [](Session & s) { s.feed(0, 512, 0); }, 512);
}

// A sliding window is kept in f16 beside the packed layers; llama.cpp saves what is within it, and puts that elsewhere: sums run
// in another order.
TEST(SavedSequence, SlidingWindow) {
    const TemporaryFile file(unique("window.vidkv"));
    Session s(model("gemma2"), options_of("t1.65"));
    fill(s);
    llama_synchronize(s.context());
    save(s, file.path);
    const int64_t sealed = stats().cells_sealed;
    const std::vector<Logits> want = go_on(s, 410);
    const int64_t both = stats().cells_sealed;
    Session again(model("gemma2"), options_of("t1.65"));
    load(again, file.path);
    EXPECT_EQ(stats().cells_sealed - both, sealed);
    const std::vector<Logits> got = go_on(again, 410);
    for (size_t i = 0; i < 5; ++i) EXPECT_LT(relative_error(got[i], want[i]), 1e-3) << "step " << i;
}

TEST(SavedSequence, MRope) { expect_to_go_on(VIDKV_VIDEO_MODEL, options_of("t1.65"), fill, 410); }

// Questions were asked and taken back: their rows are in the pages still, and not in the sequence.
TEST(SavedSequence, TakenBack) {
    const auto taken_back = [](Session & s) {
        fill(s);
        s.feed(900, 200, 410);
        ASSERT_TRUE(llama_memory_seq_rm(s.memory(), 0, 300, -1));
    };
    const TemporaryFile file(unique("back.vidkv"));
    SessionOptions options = options_of("t1.65");
    Session s(model("llama"), options);
    taken_back(s);
    save(s, file.path);
    std::vector<Logits> want = go_on(s, 300);
    Session again(model("llama"), options);
    load(again, file.path);
    EXPECT_EQ(llama_memory_seq_pos_max(again.memory(), 0), 299);
    std::vector<Logits> got = go_on(again, 300);
    want.resize(5); // later tokens fill the places of those taken back in one, and new ones in the other
    got.resize(5);
    expect_same_bits(got, want);
}

// In a pool with other sequences the cells lie scattered, and elsewhere after the restore.
TEST(SavedSequence, OneOfSeveral) {
    SessionOptions options = options_of("t1.65");
    options.sequences = 3;
    options.unified = true;
    options.cells = 4096;
    const TemporaryFile file(unique("pool.vidkv"));
    Session s(model("llama"), options);
    for (int i = 0; i < 3; ++i) {
        s.feed(1000, 150, 150 * i, 1);
        s.feed(150 * i, 150, 150 * i, 0);
        s.feed(2000, 150, 150 * i, 2);
    }
    save(s, file.path);
    s.feed(5000, 200, 450, 1);
    const std::vector<Logits> want = go_on(s, 450);
    Session again(model("llama"), options);
    again.feed(7000, 200, 0, 1);
    load(again, file.path);
    // Other sequences are in other pages there, so sums run in another order; pages to come are packed by the queries of the pool.
    const std::vector<Logits> got = go_on(again, 450);
    for (size_t i = 0; i < 5; ++i) EXPECT_LT(relative_error(got[i], want[i]), 1e-4) << "step " << i;
}

TEST(SavedSequence, AnotherContextLength) {
    const TemporaryFile file(unique("length.vidkv"));
    Session s(model("llama"), options_of("t2.2"));
    fill(s);
    save(s, file.path);
    const std::vector<Logits> want = go_on(s, 410);
    SessionOptions longer = options_of("t2.2"), shorter = options_of("t2.2");
    longer.cells = 3000;
    shorter.cells = 256;
    Session more(model("llama"), longer);
    load(more, file.path);
    expect_same_bits(go_on(more, 410), want);
    Session fewer(model("llama"), shorter);
    EXPECT_THROW(load(fewer, file.path), Error);
    EXPECT_EQ(llama_memory_seq_pos_max(fewer.memory(), 0), -1);
}

TEST(SavedSequence, StockCache) {
    const TemporaryFile file(unique("stock.vidkv"));
    SessionOptions options;
    Session s(model("llama"), options);
    fill(s);
    save(s, file.path, true);
    const std::vector<Logits> want = go_on(s, 410);
    Session again(model("llama"), options);
    load(again, file.path, true);
    expect_same_bits(go_on(again, 410), want);
}

std::string complaint(const std::string & path, const std::string & architecture, const std::string & preset) {
    Session s(model(architecture), options_of(preset));
    try {
        load(s, path);
    } catch (const Error & error) {
        EXPECT_EQ(stats().cells_written, 0);
        s.feed(0, 300, 0); // it is as new
        return error.what();
    }
    return "";
}

TEST(SavedSequence, Misfits) {
    const TemporaryFile file(unique("misfit.vidkv"));
    {
        Session s(model("llama"), options_of("t1.65"));
        fill(s);
        save(s, file.path);
    }
    for (const auto & [architecture, preset] :
         {std::pair("llama", "t2.2"), std::pair("llama", "f16"), std::pair("gemma2", "t1.65")}) {
        const std::string said = complaint(file.path, architecture, preset);
        std::printf("%s\n", said.c_str());
        EXPECT_NE(said, "") << architecture << " " << preset;
        EXPECT_EQ(said.find('\n'), std::string::npos);
    }
}

// A manifest under right checksums that no command wrote.
TEST(SavedSequence, FactsThatCannotBe) {
    const TemporaryFile file(unique("facts.vidkv"));
    Session s(model("llama"), options_of("t1.65"));
    s.feed(0, 20, 0);
    Manifest manifest;
    manifest.used = manifest.prefix.tokens = 20;
    manifest.position = manifest.prefix.position = 20;
    const std::string good = manifest.text();
    const auto said_of = [&](const std::string & text) -> std::string {
        vidkv::cli::save_sequence(s.context(), false, file.path, {{"manifest", {text.begin(), text.end()}}});
        try {
            const VideoFile opened(file.path, true, 1);
            return "";
        } catch (const Error & error) {
            return error.what();
        }
    };
    EXPECT_EQ(said_of(good), "");
    for (const auto & [name, from, to] :
         {std::tuple("tokens", "\"tokens\":20", "\"tokens\":-5"),
          std::tuple("tokens", "\"tokens\":20", R"("tokens":"many")"),
          std::tuple("position", "\"position\":20", "\"position\":null"),
          std::tuple("frames", "\"frames\":0", "\"frames\":1.5"), std::tuple("kv", R"("kv":"")", "\"kv\":[]"),
          std::tuple("used", "\"used\":20", "\"used\":3"), std::tuple("manifest", "{", "[")}) {
        std::string text = good;
        text.replace(text.find(from), std::string(from).size(), to);
        EXPECT_NE(said_of(text).find(name), std::string::npos) << text;
    }
}

TEST(SavedSequence, SizeIsThatOfTheBytesHeld) {
    const TemporaryFile file(unique("size.vidkv"));
    SessionOptions options = options_of("t1.65");
    options.cells = 4096;
    Session s(model("llama"), options);
    s.feed(0, 4000, 0);
    llama_synchronize(s.context());
    save(s, file.path);
    const auto bytes = static_cast<double>(std::filesystem::file_size(file.path));
    std::printf("file of %.0f bytes, %llu held: %.4f\n", bytes, static_cast<unsigned long long>(stats().bytes),
                bytes / static_cast<double>(stats().bytes));
    EXPECT_LT(bytes, 1.03 * static_cast<double>(stats().bytes));
}

} // namespace

} // namespace vidkv_test
