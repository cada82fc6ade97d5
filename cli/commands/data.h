// Generated clips with questions whose answers are known (models/clips/generate.py).
#pragma once

#include <cstdint>
#include <string>

#include <CLI/CLI.hpp>

namespace vidkv::cli {

struct DataOptions {
    int64_t seed = 0;
    std::string split = "short"; // or "long"
    int count = 8;
    bool blank = false;
    std::string out;
};

void add_data_options(CLI::App & app, DataOptions & options);
// Writes a set to options.out; throws Error if that fails.
void generate_data(const DataOptions & options);

} // namespace vidkv::cli
