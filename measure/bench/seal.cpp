// vidkv bench seal: what packing costs, and how much of a prefill that is.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <iostream>
#include <memory>

#include "bench/bench.h"
#include "bench/attention.h"
#include "machine.h"
#include "bench/matmul.h"
#include "error.h"
#include "interrupt.h"
#include "engine/logs.h"
#include "options.h"
#include "progress.h"

namespace vidkv::cli {

namespace {

constexpr int64_t BATCH = 512;
constexpr int64_t WARM_UP = 1024; // tokens before the clock runs

struct SealOptions {
    std::string shape = "28/4/128", tokens = "8k";
    int layers = 28;
    std::vector<std::string> kv;
    std::vector<int> threads;
    bool json = false;
    std::string csv;
};

void check(vidkv_status status) {
    if (status != VIDKV_OK) throw Error(vidkv_last_error());
}

struct CacheFree {
    void operator()(vidkv_cache * cache) const { vidkv_cache_free(cache); }
};

// Seconds per token of one layer, in batches of a prefill: observing its queries and sealing, without writing the rows.
double seal_seconds(const std::string & preset, const AttentionShape & shape, int64_t tokens, int threads,
                    const TokenRows & rows) {
    vidkv_params params;
    check(vidkv_params_from_preset(preset.c_str(), &params));
    const vidkv_cache_shape cache_shape = {1, shape.kv_heads, shape.head_dim, tokens + WARM_UP, 1};
    vidkv_cache * made = nullptr;
    check(vidkv_cache_create(&cache_shape, &params, &made));
    const std::unique_ptr<vidkv_cache, CacheFree> cache(made);
    const auto width = static_cast<size_t>(shape.heads * shape.head_dim);
    const std::vector<float> some = uneven_queries(shape);
    std::vector<float> queries(width * BATCH);
    for (int64_t token = 0; token < BATCH; ++token)
        std::copy_n(some.begin() + static_cast<long>(token % OBSERVED_QUERIES * static_cast<int64_t>(width)), width,
                    queries.begin() + static_cast<long>(token * static_cast<int64_t>(width)));
    double seconds = 0;
    for (int64_t at = 0; at < tokens + WARM_UP; at += BATCH) {
        check_interrupt();
        const int64_t from = at % TokenRows::BLOCK * rows.channels();
        check(vidkv_cache_append(made, 0, 0, BATCH, rows.keys() + from, rows.values() + from));
        const auto start = std::chrono::steady_clock::now();
        check(vidkv_cache_observe_queries(made, 0, 0, queries.data(), BATCH, shape.heads));
        check(vidkv_cache_seal(made, threads));
        if (at >= WARM_UP) seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    }
    return seconds / static_cast<double>(tokens);
}

void print_table(const Json & report) {
    std::printf("%s, shape %s, %d layers; estimated prefill of a 7B model: %s\n\n",
                report["cpu"].get<std::string>().c_str(), report["shape"].get<std::string>().c_str(),
                report["layers"].get<int>(), report["prefill_estimate"].get<std::string>().c_str());
    std::printf("%-16s %8s %18s %18s %18s %16s\n", "preset", "threads", "tokens/s, 1 layer", "tokens/s, model",
                "prefill, tokens/s", "share of prefill");
    for (const Json & row : report["rows"])
        std::printf("%-16s %8d %18.0f %18.0f %18.1f %15.1f%%\n", row["name"].get<std::string>().c_str(),
                    row["threads"].get<int>(), row["layer_tokens_per_s"].get<double>(), row["tokens_per_s"].get<double>(),
                    row["prefill_tokens_per_s"].get<double>(), 100 * row["share_of_prefill"].get<double>());
}

Json measure(const SealOptions & options) {
    const AttentionShape shape = parse_shape(options.shape);
    const int64_t tokens = std::max<int64_t>(BATCH, parse_tokens(options.tokens) / BATCH * BATCH);
    const TokenRows rows(shape.channels());
    Progress progress(options.json);
    Json all = Json::array();
    std::string estimate;
    for (const int threads : options.threads) {
        progress.show("prefill estimate", 0, 0, "");
        const PrefillEstimate prefill = estimate_prefill(threads);
        estimate = prefill.method;
        for (const std::string & preset : options.kv) {
            progress.show("sealing " + preset, tokens, 0, "tokens");
            const double layer = seal_seconds(preset, shape, tokens, threads, rows), model = layer * options.layers;
            all.push_back({{"name", preset},
                           {"threads", threads},
                           {"isa", vidkv_isa()},
                           {"layer_tokens_per_s", 1 / layer},
                           {"tokens_per_s", 1 / model},
                           {"prefill_tokens_per_s", 1 / prefill.seconds_per_token},
                           {"share_of_prefill", model / prefill.seconds_per_token}});
        }
    }
    return {{"cpu", cpu_name()}, {"shape", shape.name()},        {"layers", options.layers},
            {"tokens", tokens},  {"prefill_estimate", estimate}, {"rows", all}};
}

void run_seal(SealOptions options) {
    if (options.kv.empty()) options.kv = packed_presets();
    if (options.threads.empty()) options.threads = {available_cores()};
    check_presets(options.kv);
    capture_logs(false);
    const Json report = measure(options);
    if (!options.csv.empty())
        write_csv(options.csv,
                  {"command: vidkv bench seal --shape " + options.shape + " --tokens " + options.tokens,
                   "cpu: " + cpu_name(), "prefill: " + report["prefill_estimate"].get<std::string>()},
                  report["rows"]);
    options.json ? void(std::cout << report.dump(2) << "\n") : print_table(report);
}

} // namespace

void add_bench_seal(CLI::App & bench, Command & run) {
    auto options = std::make_shared<SealOptions>();
    CLI::App * app = bench.add_subcommand("seal", "Speed of packing, and its share of a prefill");
    app->add_option("--shape", options->shape, "query heads/KV heads/head_dim of a layer (default 28/4/128)");
    app->add_option("--layers", options->layers, "layers of the model (default 28)")->check(CLI::Range(1, 1024));
    app->add_option("--tokens", options->tokens, "tokens to pack in one layer (default 8k)");
    app->add_option("--kv", options->kv, "presets (default: all that are listed)")->delimiter(',');
    app->add_option("-t,--threads", options->threads, "thread counts (default: all cores)")
        ->delimiter(',')
        ->check(CLI::Range(1, 1024));
    app->add_flag("--json", options->json, "print one JSON document instead of a table");
    app->add_option("--csv", options->csv, "write the rows to this file too");
    app->callback([options, &run] { run = [options] { run_seal(*options); }; });
}

} // namespace vidkv::cli
