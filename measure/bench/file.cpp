// vidkv bench file: saving a packed cache, opening and restoring it, and forking one in memory.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <iostream>
#include <memory>

#include "bench/attention.h"
#include "bench/bench.h"
#include "machine.h"
#include "engine/logs.h"
#include "error.h"
#include "options.h"
#include "progress.h"
#include "temporary_folder.h"
#include "vidkv/file.h"

namespace vidkv::cli {

namespace {

constexpr int64_t BATCH = 512;
constexpr int REPEATS = 5; // the best of them counts

struct FileBenchOptions {
    std::string shape = "28/4/128", tokens = "32k", folder;
    int layers = 28, threads = 0;
    std::vector<std::string> kv;
    bool json = false;
    std::string csv;
};

void check(vidkv_status status) {
    if (status != VIDKV_OK) throw Error(vidkv_last_error());
}

template <typename T, void (*free)(T *)> struct Free {
    void operator()(T * thing) const { free(thing); }
};
using Cache = std::unique_ptr<vidkv_cache, Free<vidkv_cache, vidkv_cache_free>>;
using File = std::unique_ptr<vidkv_file, Free<vidkv_file, vidkv_file_close>>;
using Writer = std::unique_ptr<vidkv_file_writer, Free<vidkv_file_writer, vidkv_file_abandon>>;

// The best of some runs, in seconds.
template <typename Work> double seconds(Work work) {
    double best = 1e30;
    for (int i = 0; i < REPEATS; ++i) {
        const auto start = std::chrono::steady_clock::now();
        work();
        best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
    return best;
}

class FileBench {
  public:
    FileBench(const FileBenchOptions & options, const std::string & preset)
        : options_(options), shape_(parse_shape(options.shape)),
          tokens_(std::max<int64_t>(BATCH, parse_tokens(options.tokens) / BATCH * BATCH)),
          folder_("vidkv-bench", options.folder) {
        check(vidkv_params_from_preset(preset.c_str(), &params_));
    }

    Json run() {
        const Cache cache = filled();
        vidkv_store_stats held = stats(cache.get());
        const std::string path = folder_.file("cache.vidkv");
        const double save = seconds([&] { write(path, cache.get()); });
        const double bytes = static_cast<double>(std::filesystem::file_size(path));
        const double open_time = seconds([&] { open(path); });
        const Cache restored = make(options_.layers);
        const double restore = seconds([&] { check(vidkv_file_load_cache(open(path).get(), 0, restored.get(), 0)); });
        const double verify = seconds([&] { check(vidkv_file_verify(open(path).get(), options_.threads)); });
        const double fork = seconds([&] { check(vidkv_cache_copy_sequence(cache.get(), 0, 1)); });
        const double fork_bytes = static_cast<double>(stats(cache.get()).bytes - held.bytes);
        return {{"mib_held", static_cast<double>(held.bytes) / 1048576},
                {"file_to_held", bytes / static_cast<double>(held.bytes)},
                {"save_s", save},
                {"open_ms", 1000 * open_time},
                {"restore_ms", 1000 * restore},
                {"verify_ms", 1000 * verify},
                {"fork_ms", 1000 * fork},
                {"fork_share", fork_bytes / static_cast<double>(held.bytes)}};
    }

  private:
    Cache make(int layers) const {
        const vidkv_cache_shape shape{layers, shape_.kv_heads, shape_.head_dim, tokens_ + BATCH, 2};
        vidkv_cache * made = nullptr;
        check(vidkv_cache_create(&shape, &params_, &made));
        return Cache(made);
    }
    static vidkv_store_stats stats(const vidkv_cache * cache) {
        vidkv_store_stats stats;
        vidkv_cache_get_stats(cache, &stats);
        return stats;
    }
    static File open(const std::string & path) {
        vidkv_file * file = nullptr;
        check(vidkv_file_open(path.c_str(), 0, &file));
        return File(file);
    }
    void write(const std::string & path, const vidkv_cache * cache) const {
        vidkv_file_writer * made = nullptr;
        check(vidkv_file_create(path.c_str(), &params_, &made));
        const Writer writer(made);
        check(vidkv_file_add_cache(made, 0, cache, 0));
        check(vidkv_file_finish(made));
    }

    // One layer is packed, the others have copies of it.
    Cache filled() const {
        const Cache layer = make(1);
        const TokenRows rows(shape_.channels());
        const std::vector<float> queries = uneven_queries(shape_);
        for (int64_t at = 0; at < tokens_; at += BATCH) {
            const int64_t from = at % TokenRows::BLOCK * rows.channels();
            check(vidkv_cache_append(layer.get(), 0, 0, BATCH, rows.keys() + from, rows.values() + from));
            check(vidkv_cache_observe_queries(layer.get(), 0, 0, queries.data(), OBSERVED_QUERIES, shape_.heads));
            check(vidkv_cache_seal(layer.get(), options_.threads));
        }
        const std::string path = folder_.file("layer.vidkv");
        write(path, layer.get());
        vidkv_file * read = nullptr;
        check(vidkv_file_open(path.c_str(), 1, &read));
        const File file(read);
        Cache cache = make(options_.layers);
        for (int i = 0; i < options_.layers; ++i) {
            check(vidkv_file_load(read, 0, 0, vidkv_cache_keys(cache.get(), i), 0, nullptr, 0));
            check(vidkv_file_load(read, 0, 0, vidkv_cache_values(cache.get(), i), 0, nullptr, 0));
        }
        return cache;
    }

    const FileBenchOptions & options_;
    AttentionShape shape_;
    int64_t tokens_;
    TemporaryFolder folder_;
    vidkv_params params_;
};

void print_table(const Json & report) {
    std::printf("%s, shape %s, %d layers, %lld tokens; best of %d, the file in memory\n\n",
                report["cpu"].get<std::string>().c_str(), report["shape"].get<std::string>().c_str(),
                report["layers"].get<int>(), report["tokens"].get<long long>(), REPEATS);
    std::printf("%-12s %10s %10s %8s %9s %12s %11s %9s %11s\n", "preset", "MiB held", "file/held", "save, s", "open, ms",
                "restore, ms", "verify, ms", "fork, ms", "fork bytes");
    for (const Json & row : report["rows"])
        std::printf("%-12s %10.1f %10.4f %8.2f %9.2f %12.2f %11.1f %9.3f %10.3f%%\n",
                    row["name"].get<std::string>().c_str(), row["mib_held"].get<double>(),
                    row["file_to_held"].get<double>(), row["save_s"].get<double>(), row["open_ms"].get<double>(),
                    row["restore_ms"].get<double>(), row["verify_ms"].get<double>(), row["fork_ms"].get<double>(),
                    100 * row["fork_share"].get<double>());
}

void run_file(FileBenchOptions options) {
    if (options.kv.empty()) options.kv = {"t1.65"};
    if (options.threads == 0) options.threads = available_cores();
    check_presets(options.kv);
    capture_logs(false);
    Progress progress(options.json);
    Json rows = Json::array();
    for (const std::string & preset : options.kv) {
        progress.show("files of " + preset, 0, 0, "");
        Json row = {{"name", preset}};
        row.update(FileBench(options, preset).run());
        rows.push_back(row);
    }
    const Json report = {{"cpu", cpu_name()},
                         {"shape", options.shape},
                         {"layers", options.layers},
                         {"tokens", parse_tokens(options.tokens)},
                         {"rows", rows}};
    if (!options.csv.empty())
        write_csv(
            options.csv,
            {"command: vidkv bench file --shape " + options.shape + " --tokens " + options.tokens, "cpu: " + cpu_name()},
            rows);
    options.json ? void(std::cout << report.dump(2) << "\n") : print_table(report);
}

} // namespace

void add_bench_file(CLI::App & bench, Command & run) {
    auto options = std::make_shared<FileBenchOptions>();
    CLI::App * app = bench.add_subcommand("file", "Saving, opening and restoring a packed cache, and forking it");
    app->add_option("--shape", options->shape, "query heads/KV heads/head_dim of a layer (default 28/4/128)");
    app->add_option("--layers", options->layers, "layers of the model (default 28)")->check(CLI::Range(1, 1024));
    app->add_option("--tokens", options->tokens, "tokens in the cache (default 32k)");
    app->add_option("--kv", options->kv, "presets (default: t1.65)")->delimiter(',');
    app->add_option("--folder", options->folder, "where the file is written (default: the temporary folder)");
    app->add_option("-t,--threads", options->threads, "threads (default: all cores)")->check(CLI::Range(1, 1024));
    app->add_flag("--json", options->json, "print one JSON document instead of a table");
    app->add_option("--csv", options->csv, "write the rows to this file too");
    app->callback([options, &run] { run = [options] { run_file(*options); }; });
}

} // namespace vidkv::cli
