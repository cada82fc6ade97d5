// vidkv bench memory: what a process really holds for a cache, against what the preset promises. One process per preset.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <utility>

#ifdef __GLIBC__
#include <malloc.h>
#endif

#include "bench/bench.h"
#include "bench/attention.h"
#include "machine.h"
#include "error.h"
#include "interrupt.h"
#include "options.h"
#include "progress.h"

namespace vidkv::cli {

namespace {

constexpr const char * CHILD = "VIDKV_BENCH_CHILD"; // set in the process of one preset
constexpr int64_t BATCH = 512;
constexpr int64_t WARM_UP = 1024;
constexpr int ROUNDS = 16; // of forgetting and filling a part again, to see whether anything grows

struct MemoryOptions {
    std::string shape = "28/4/128", tokens = "128k";
    int layers = 4, threads = 0;
    std::vector<std::string> kv;
    bool json = false;
};

void check(vidkv_status status) {
    if (status != VIDKV_OK) throw Error(vidkv_last_error());
}

class MemoryRun {
  public:
    MemoryRun(const MemoryOptions & options, const std::string & preset);
    ~MemoryRun() { vidkv_cache_free(cache_); }
    MemoryRun(const MemoryRun &) = delete;
    MemoryRun & operator=(const MemoryRun &) = delete;
    Json run();

  private:
    float scale() const { return 1.0f / std::sqrt(static_cast<float>(shape_.head_dim)); }
    void create(int64_t cells);
    void fill(int64_t length);
    void seal(int layer);
    void decode(int layer);
    uint64_t planned() const;

    AttentionShape shape_;
    int64_t tokens_;
    int layers_, threads_;
    std::string preset_;
    vidkv_params params_ = {};
    TokenRows rows_;
    std::vector<float> queries_, out_;
    vidkv_cache * cache_ = nullptr;
};

MemoryRun::MemoryRun(const MemoryOptions & options, const std::string & preset)
    : shape_(parse_shape(options.shape)), tokens_(parse_tokens(options.tokens)), layers_(options.layers),
      threads_(options.threads), preset_(preset), rows_(shape_.channels()), queries_(uneven_queries(shape_)),
      out_(static_cast<size_t>(shape_.heads * shape_.head_dim)) {
    check(vidkv_params_from_preset(preset.c_str(), &params_));
}

void MemoryRun::create(int64_t cells) {
    vidkv_cache_free(cache_);
    cache_ = nullptr;
    const vidkv_cache_shape shape = {layers_, shape_.kv_heads, shape_.head_dim, cells, 1};
    check(vidkv_cache_create(&shape, &params_, &cache_));
}

void MemoryRun::seal(int layer) {
    vidkv_store *keys = vidkv_cache_keys(cache_, layer), *values = vidkv_cache_values(cache_, layer);
    if (params_.protect > 0) check(vidkv_store_protect_by_queries(values, keys, scale()));
    check(vidkv_store_seal(keys, threads_));
    check(vidkv_store_seal(values, threads_));
}

// Up to `length` cells in every layer, one batch at a time through layer after layer, each sealed when it is done.
void MemoryRun::fill(int64_t length) {
    for (int64_t at = vidkv_cache_length(cache_, 0, 0); at < length;) {
        check_interrupt();
        const int64_t in_block = at % TokenRows::BLOCK, n = std::min({length - at, BATCH, TokenRows::BLOCK - in_block});
        for (int layer = 0; layer < layers_; ++layer) {
            check(vidkv_cache_append(cache_, layer, 0, n, rows_.keys() + in_block * rows_.channels(),
                                     rows_.values() + in_block * rows_.channels()));
            check(vidkv_cache_observe_queries(cache_, layer, 0, queries_.data(), OBSERVED_QUERIES, shape_.heads));
            seal(layer);
        }
        at += n;
    }
}

void MemoryRun::decode(int layer) {
    vidkv_attention_args args = {};
    args.q = queries_.data();
    args.out = out_.data();
    args.q_token_stride = args.out_token_stride = static_cast<int64_t>(shape_.heads) * shape_.head_dim;
    args.q_head_stride = args.out_head_stride = shape_.head_dim;
    args.tokens = 1;
    args.heads = shape_.heads;
    args.cells = vidkv_cache_length(cache_, layer, 0);
    args.scale = scale();
    args.threads = threads_;
    check(vidkv_attention(vidkv_cache_keys(cache_, layer), vidkv_cache_values(cache_, layer), &args));
}

uint64_t MemoryRun::planned() const {
    uint64_t bytes = 0;
    for (const vidkv_side side : {VIDKV_KEYS, VIDKV_VALUES}) {
        const vidkv_store_shape store = {side, shape_.channels(), shape_.head_dim, tokens_, 1};
        bytes += vidkv_planned_bytes(&store, &params_);
    }
    return bytes * static_cast<uint64_t>(layers_);
}

Json MemoryRun::run() {
    create(WARM_UP); // code, threads and scratch are in memory from here on
    fill(WARM_UP);
    decode(0);
    vidkv_cache_free(std::exchange(cache_, nullptr));
#ifdef __GLIBC__
    malloc_trim(0);
#endif
    const int64_t before = resident_bytes();
    create(tokens_);
    fill(tokens_);
    for (int layer = 0; layer < layers_; ++layer) decode(layer);
    const int64_t peak = peak_resident_bytes() - before, held = resident_bytes() - before;
    for (int round = 0; round < ROUNDS; ++round) {
        check(vidkv_cache_truncate(cache_, 0, std::max<int64_t>(0, tokens_ - BATCH)));
        fill(tokens_);
        for (int layer = 0; layer < layers_; ++layer) decode(layer);
    }
    vidkv_store_stats stats;
    vidkv_cache_get_stats(cache_, &stats);
    return {{"name", preset_},
            {"peak_bytes", peak},
            {"held_bytes", held},
            {"counted_bytes", stats.bytes},
            {"planned_bytes", planned()},
            {"peak_over_planned", static_cast<double>(peak) / static_cast<double>(planned())},
            {"grown_bytes", resident_bytes() - before - held}};
}

Json run_in_child(const MemoryOptions & options, const std::string & preset) {
    return run_child({"bench", "memory", "--shape", options.shape, "--tokens", options.tokens, "--layers",
                      std::to_string(options.layers), "--threads", std::to_string(options.threads), "--kv", preset,
                      "--json"})
        .at("rows")
        .at(0);
}

// How many times less than f16 each preset takes, as promised and as seen.
void add_savings(Json & rows) {
    const Json f16 = rows.front();
    for (Json & row : rows) {
        for (const char * kind : {"planned", "peak"}) {
            const std::string bytes = std::string(kind) + "_bytes";
            row[std::string("saving_") + kind] = f16[bytes].get<double>() / row[bytes].get<double>();
        }
    }
}

void print_table(const MemoryOptions & options, const Json & rows) {
    constexpr double MIB = 1 << 20;
    std::printf("%s, %s tokens, %d layers; one process per preset, MiB over what it held with a small cache\n\n",
                options.shape.c_str(), options.tokens.c_str(), options.layers);
    std::printf("%-16s %10s %10s %10s %8s %12s %10s %10s\n", "preset", "promised", "peak", "counted", "peak/pr.",
                "less, prom.", "less, seen", "grown");
    for (const Json & row : rows)
        std::printf("%-16s %10.2f %10.2f %10.2f %8.3f %11.2fx %9.2fx %10.2f\n", row["name"].get<std::string>().c_str(),
                    row["planned_bytes"].get<double>() / MIB, row["peak_bytes"].get<double>() / MIB,
                    row["counted_bytes"].get<double>() / MIB, row["peak_over_planned"].get<double>(),
                    row["saving_planned"].get<double>(), row["saving_peak"].get<double>(),
                    row["grown_bytes"].get<double>() / MIB);
}

void run_memory(MemoryOptions options) {
    if (options.kv.empty()) options.kv = packed_presets();
    if (options.threads == 0) options.threads = available_cores();
    check_presets(options.kv);
    parse_shape(options.shape);
    parse_tokens(options.tokens);
    Json rows = Json::array();
    if (std::getenv(CHILD)) {
        rows.push_back(MemoryRun(options, options.kv.front()).run());
    } else {
        if (options.kv.front() != "f16") options.kv.insert(options.kv.begin(), "f16");
        setenv(CHILD, "1", 1);
        Progress progress(options.json);
        for (const std::string & preset : options.kv) {
            progress.show("filling " + preset, static_cast<int64_t>(rows.size()), static_cast<int64_t>(options.kv.size()),
                          "presets");
            rows.push_back(run_in_child(options, preset));
        }
        progress.clear();
        add_savings(rows);
    }
    if (!options.json) return print_table(options, rows);
    const Json report = {{"cpu", cpu_name()},
                         {"shape", options.shape},
                         {"tokens", parse_tokens(options.tokens)},
                         {"layers", options.layers},
                         {"rows", rows}};
    std::cout << report.dump(2) << "\n";
}

} // namespace

void add_bench_memory(CLI::App & bench, Command & run) {
    auto options = std::make_shared<MemoryOptions>();
    CLI::App * app =
        bench.add_subcommand("memory", "Peak resident memory of a filled cache against what the preset promises");
    app->add_option("--shape", options->shape, "query heads/KV heads/head_dim (default 28/4/128)");
    app->add_option("--tokens", options->tokens, "cells to fill (default 128k)");
    app->add_option("--layers", options->layers, "layers (default 4)")->check(CLI::Range(1, 1024));
    app->add_option("--kv", options->kv, "presets, held against f16 (default: all that are listed)")->delimiter(',');
    app->add_option("-t,--threads", options->threads, "threads (default: all cores)")->check(CLI::Range(1, 1024));
    app->add_flag("--json", options->json, "print one JSON document instead of a table");
    app->callback([options, &run] { run = [options] { run_memory(*options); }; });
}

} // namespace vidkv::cli
