// Options that the measurements on texts share, and what follows from them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>

#include "eval/text_model.h"

namespace vidkv::cli {

// Of every command that runs a language model on a text.
struct TextOptions {
    std::string model, text;
    int threads = 1;
    bool json = false, verbose = false;

    void add_model(CLI::App & app, const std::string & what_the_text_is_for);
    void add_run(CLI::App & app);

    std::string model_file() const; // fetched where it is known by name
    Text words() const;
};

// Of those that plant files in the text and ask about them.
struct FileOptions : TextOptions {
    std::vector<std::string> kv = {"f16", "q8_0", "q4_0", "t2.2", "t1.65", "t1.15", "k1.5v1.58"};
    int count = 4;
    uint64_t seed = 0;

    void add_files(CLI::App & app);
};

} // namespace vidkv::cli
