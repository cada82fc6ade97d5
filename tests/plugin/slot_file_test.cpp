// Slot files as llama-server saves them, packed and back; and sections that a stranger wrote.
#include <gtest/gtest.h>

#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <new>
#include <random>

#include <unistd.h>

#include "bench/random_model.h"
#include "engine/packed_store.h"
#include "engine/prompt_tokens.h"
#include "engine/sequence_state.h"
#include "engine/slot_file.h"
#include "engine/state_layout.h"
#include "engine/video_file.h"
#include "error.h"
#include "forged_slot.h"
#include "session.h"

namespace vidkv_test {

namespace {

using namespace vidkv::cli;
namespace fs = std::filesystem;

constexpr uint32_t seed = 20251128;

class SlotFile : public testing::Test {
  protected:
    SlotFile() { fs::create_directories(folder_); }
    ~SlotFile() override { fs::remove_all(folder_); }

    std::string path(const std::string & name) const { return (folder_ / name).string(); }
    std::string model(const std::string & architecture) {
        ModelShape shape;
        shape.architecture = architecture;
        std::string & made = models_[architecture];
        if (!made.empty()) return made;
        const std::string file = write_random_model(shape, seed);
        made = path(architecture + ".gguf");
        fs::rename(file, made);
        return made;
    }

    // As llama-server does.
    std::string save(Session & s, int sequence = 0) const {
        const std::vector<llama_token> tokens(100, 7);
        EXPECT_GT(llama_state_seq_save_file(s.context(), path("slot").c_str(), sequence, tokens.data(), tokens.size()), 0U);
        return path("slot");
    }

    // How many times smaller it is.
    double expect_to_come_back(const std::string & slot) const {
        const SlotReport packed = pack_slot(slot, path("packed"), 2);
        const SlotReport unpacked = unpack_slot(path("packed"), path("again"), 2);
        EXPECT_EQ(unpacked.slot_bytes, packed.slot_bytes);
        EXPECT_TRUE(bytes_of(slot) == bytes_of(path("again")));
        EXPECT_GT(packed.packed_rows, 0);
        return static_cast<double>(packed.slot_bytes) / static_cast<double>(packed.file_bytes);
    }

    static std::string bytes_of(const std::string & file) {
        std::ifstream in(file, std::ios::binary);
        return {std::istreambuf_iterator<char>(in), {}};
    }

  private:
    fs::path folder_ = fs::temp_directory_path() / ("vidkv-slots-" + std::to_string(getpid()));
    std::map<std::string, std::string> models_;
};

SessionOptions options_of(const std::string & preset, uint32_t cells = 2048) {
    SessionOptions options;
    options.preset = preset;
    options.cells = cells;
    return options;
}

TEST_F(SlotFile, EveryByteComesBack) {
    for (const auto & [architecture, preset] :
         {std::pair("llama", "t1.65"), std::pair("llama", "t2.2"), std::pair("llama", "t1.15"),
          std::pair("llama", "k1.5v1.58"), std::pair("gemma2", "t1.65")}) {
        SCOPED_TRACE(std::string(architecture) + " " + preset);
        Session s(model(architecture), options_of(preset));
        s.feed(0, 1500, 0);
        const double times = expect_to_come_back(save(s));
        std::printf("%s %s: %.2f times smaller\n", architecture, preset, times);
        EXPECT_GT(times, std::string(architecture) == "llama" ? 3 : 1);
    }
}

// Values of 3 bits do not fit into the slot file as pages: the keys alone are small.
TEST_F(SlotFile, OneSideAlone) {
    Session s(model("llama"), options_of("k1.5v2"));
    s.feed(0, 1500, 0);
    EXPECT_GT(expect_to_come_back(save(s)), 1.3);
}

TEST_F(SlotFile, CellsThatLieScattered) {
    SessionOptions options = options_of("t1.65", 4096);
    options.sequences = 3;
    options.unified = true;
    Session s(model("llama"), options);
    for (int i = 0; i < 900; i += 150) {
        s.feed(10000 + i, 150, i, 1);
        s.feed(i, 150, i, 0);
        s.feed(20000 + i, 70, i / 150 * 70, 2);
    }
    EXPECT_GT(expect_to_come_back(save(s, 0)), 2);
    ASSERT_TRUE(llama_memory_seq_rm(s.memory(), 1, 700, -1)); // a page that is cut through
    EXPECT_GT(expect_to_come_back(save(s, 1)), 1.5);
    s.feed(30000, 300, 700, 1);
    expect_to_come_back(save(s, 1));
}

TEST_F(SlotFile, WithoutPackedPages) {
    for (const char * preset : {"t1.65", "f16", ""}) {
        Session s(model("llama"), options_of(preset));
        s.feed(0, std::string(preset) == "t1.65" ? 100 : 600, 0);
        try {
            pack_slot(save(s), path("packed"), 1);
            FAIL() << preset;
        } catch (const Error & error) {
            EXPECT_NE(std::string(error.what()).find("holds no packed pages"), std::string::npos) << error.what();
        }
        EXPECT_FALSE(fs::exists(path("packed")));
    }
}

TEST_F(SlotFile, CutAnywhere) {
    Session s(model("llama"), options_of("t1.65", 1024));
    s.feed(0, 400, 0);
    const std::string whole = bytes_of(save(s));
    for (size_t i = 0; i < 60; ++i) {
        const size_t bytes = i < 40 ? i * 16 : (i - 40) * whole.size() / 20;
        std::ofstream(path("cut"), std::ios::binary) << whole.substr(0, bytes);
        EXPECT_THROW(pack_slot(path("cut"), path("packed"), 1), Error) << bytes;
    }
}

// What a session with a video saves becomes a slot file that the same llama.cpp takes.
TEST_F(SlotFile, OfASavedSession) {
    std::vector<Logits> want;
    {
        Session s(model("llama"), options_of("t1.65"));
        s.feed(0, 700, 0);
        Manifest manifest;
        manifest.used = manifest.prefix.tokens = manifest.position = manifest.prefix.position = 700;
        const std::string text = manifest.text();
        PromptTokens prompt;
        prompt.add(std::vector<llama_token>(700, 5));
        const SlotSection slot{head_of_slot(prompt.bytes()), {}, 0};
        save_sequence(s.context(), false, path("saved"),
                      {{"manifest", {text.begin(), text.end()}}, {SLOT_SECTION, slot.bytes()}});
        for (int i = 0; i < 5; ++i) want.push_back(s.feed(700 + i, 1, 700 + i));
    }
    unpack_slot(path("saved"), path("slot"), 2);
    Session s(model("llama"), options_of("t1.65"));
    std::vector<llama_token> tokens(2000);
    size_t n = 0;
    ASSERT_GT(llama_state_seq_load_file(s.context(), path("slot").c_str(), 0, tokens.data(), tokens.size(), &n), 0U);
    for (int i = 0; i < 5; ++i) {
        const Logits & got = s.feed(700 + i, 1, 700 + i);
        EXPECT_EQ(std::memcmp(got.data(), want[i].data(), got.size() * sizeof(float)), 0) << "step " << i;
    }
    const auto * head = reinterpret_cast<const char *>(tokens.data());
    EXPECT_EQ(PromptTokens::from_bytes({head, n * sizeof(llama_token)}).bytes().size(), n * sizeof(llama_token));
}

TEST_F(SlotFile, ForgedSections) {
    Session s(model("llama"), options_of("t1.65", 1024));
    s.feed(0, 400, 0);
    pack_slot(save(s), path("packed"), 1);
    const PackedFile file = open_packed(path("packed"), true, 1);
    std::map<std::string, std::string> good;
    for (int64_t i = 0; const char * name = vidkv_file_section_name(file.get(), i); ++i) {
        uint64_t bytes = 0;
        const auto * data = static_cast<const char *>(vidkv_file_section(file.get(), name, &bytes));
        good[name] = {data, bytes};
    }
    std::mt19937 random(seed);
    int refused = 0, tries = 0;
    for (const char * name : {"slot", "state", "cells"}) {
        for (int i = 0; i < 60; ++i, ++tries) {
            std::map<std::string, std::string> sections = good;
            std::string & section = sections[name];
            if (i % 4 == 0) section.resize(random() % section.size());
            const uint64_t odd[] = {0, 1, ~uint64_t(0), uint64_t(1) << 40, 128, random()};
            for (int n = static_cast<int>(random() % 3); n >= 0 && section.size() >= 8; --n)
                std::memcpy(&section[random() % (section.size() / 8) * 8], &odd[random() % 6], 8);
            write_forged(file.get(), path("forged"), sections);
            try {
                unpack_slot(path("forged"), path("out"), 2);
            } catch (const Error & error) {
                EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos);
                ++refused;
            } catch (const std::bad_alloc &) {
                ++refused;
            }
        }
    }
    std::printf("%d of %d forged files refused\n", refused, tries);
    EXPECT_GT(refused, tries / 2);
    EXPECT_FALSE(fs::exists(path("out.part")));
}

} // namespace

} // namespace vidkv_test
