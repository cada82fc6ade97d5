// Parts that the bench commands share.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "commands.h"

namespace vidkv::cli {

using Json = nlohmann::ordered_json;

void add_bench_attention(CLI::App & bench, Command & run);
void add_bench_seal(CLI::App & bench, Command & run);
void add_bench_model(CLI::App & bench, Command & run);
void add_bench_memory(CLI::App & bench, Command & run);
void add_bench_file(CLI::App & bench, Command & run);
void add_bench_video(CLI::App & bench, Command & run);
void add_bench_saved(CLI::App & bench, Command & run);
void add_bench_latency(CLI::App & bench, Command & run);

// Throws UsageError for a name that is no preset.
void check_presets(const std::vector<std::string> & names);

// Presets that a bench measures where none are named: every listed one but f16.
std::vector<std::string> packed_presets();

// This program again with these arguments, which end in --json; its report. Throws Error with its complaint if it fails.
Json run_child(const std::vector<std::string> & arguments);

// ggml's CPU back-end compiled for an instruction set (measure/bench/build-ggml makes it), beside this program; "" if there is
// none.
std::string ggml_built_for(const std::string & isa);

// A CSV of flat rows. header: lines that begin with "# ". Throws Error if the file cannot be written.
void write_csv(const std::string & path, const std::vector<std::string> & header, const Json & rows);

// Draws the rows of a CSV file over the rooflines of its header (measure/bench/roofline.py, matplotlib).
void plot_roofline(const std::string & csv, const std::string & out);

} // namespace vidkv::cli
