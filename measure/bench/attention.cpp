// vidkv bench attention: ggml's flash attention and vidkv_attention in one process, in turns.
#include "bench/attention.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <map>
#include <optional>

#include <unistd.h>

#include "bench/bench.h"
#include "bench/fit.h"
#include "machine.h"
#include "error.h"
#include "interrupt.h"
#include "engine/logs.h"
#include "options.h"
#include "progress.h"

namespace vidkv::cli {

namespace {

constexpr const char * CHILD = "VIDKV_BENCH_CHILD"; // set where the instruction set has been chosen already
constexpr int64_t PREFILL_TOKENS = 512;
constexpr int64_t PREFILL_DEPTH = 32768; // deepest past of a prefill unless --tokens asks for it
constexpr int64_t CHECKED_CELLS = 8192;  // most cells at which outputs are held against double
constexpr int64_t CHECKED_QUERIES = 16;
constexpr int SHARING = 8; // sequences of a shared prefix
constexpr double LARGEST_ERROR = 0.1;
constexpr int FEWEST_RUNS = 3;
constexpr double SLOW_SECONDS = 4; // one run is enough from here on

struct AttentionOptions {
    std::vector<std::string> shapes = {"28/4/128", "9/3/64", "4/1/256"};
    std::vector<std::string> tokens;
    std::vector<std::string> kv, isa;
    std::vector<std::string> phases = {"decode", "prefill"};
    std::vector<int> threads, query_tokens = {1};
    int repeat = 15;
    double seconds = 20; // for one point, all contenders together
    bool warm = false, json = false;
    std::string csv, plot;
};

struct Point {
    AttentionShape shape;
    std::string phase;
    int64_t tokens, query_tokens;
    int threads;
};

class AttentionBench {
  public:
    AttentionBench(const AttentionOptions & options, const std::string & isa)
        : options_(options), isa_(isa), ggml_isa_(ggml_isa()), progress_(options.json),
          stream_(static_cast<size_t>(2 * last_level_cache_bytes())) {}

    Json run();

  private:
    using Contenders = std::vector<std::unique_ptr<AttentionContender>>;
    using Runners = std::vector<AttentionContender *>;

    Contenders contenders(const AttentionShape & shape, int64_t capacity, const TokenRows & rows) const;
    void run_shape(const AttentionShape & shape);
    void run_tokens(const AttentionShape & shape, int64_t tokens, Contenders & all);
    static Runners runners(const std::string & phase, const Contenders & all);
    void run_point(const Point & point, const AttentionCall & call, const Runners & all);
    void add_row(const Point & point, const AttentionCall & call, const AttentionContender & contender,
                 const std::vector<double> & seconds, const std::map<std::string, double> & medians, const Json & error);
    std::vector<std::vector<double>> measure(const Point & point, const Runners & all, const std::vector<double> & first);
    std::optional<double> checked_error(const AttentionContender & contender, const AttentionCall & call) const;

    const AttentionOptions & options_;
    std::string isa_, ggml_isa_;
    Progress progress_;
    StreamBuffer stream_;
    std::map<int, std::vector<double>> stream_seconds_; // by threads
    std::map<int, double> peaks_;
    Json rows_ = Json::array();
};

std::vector<int64_t> token_counts(const AttentionOptions & options) {
    std::vector<int64_t> counts;
    for (const std::string & text : options.tokens) counts.push_back(parse_tokens(text));
    if (counts.empty()) counts = {1024, 8192, 32768, 131072};
    std::sort(counts.begin(), counts.end());
    counts.erase(std::unique(counts.begin(), counts.end()), counts.end());
    return counts;
}

AttentionBench::Contenders AttentionBench::contenders(const AttentionShape & shape, int64_t capacity,
                                                      const TokenRows & rows) const {
    Contenders all;
    for (const Layout layout : {Layout::BY_HEAD, Layout::BY_CELL})
        for (const ggml_type type : {GGML_TYPE_F16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0})
            if (shape.head_dim % ggml_blck_size(type) == 0)
                all.push_back(make_ggml_contender(type, layout, shape, capacity, rows));
    for (const std::string & preset : options_.kv) all.push_back(make_packed_contender(preset, shape, capacity, rows));
    return all;
}

double seconds_of(AttentionContender & contender) {
    const auto before = std::chrono::steady_clock::now();
    contender.run();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - before).count();
}

// The threads of all contenders are those of one team, which sleeps while the caches are emptied. In an engine, where layer follows upon
// layer, it waits awake.
void wake_team([[maybe_unused]] int threads) {
#if defined(_OPENMP)
    std::atomic<int> awake{0};
    const auto start = std::chrono::steady_clock::now();
#pragma omp parallel num_threads(threads)
    {
        ++awake;
        while (awake < threads && std::chrono::steady_clock::now() - start < std::chrono::milliseconds(1)) {
        }
    }
#endif
}

// Seconds of each contender, in turns, each after a read of other memory that empties the caches. first: of a first run;
// where that was slow it has to do.
std::vector<std::vector<double>> AttentionBench::measure(const Point & point, const Runners & all,
                                                         const std::vector<double> & first) {
    std::vector<std::vector<double>> seconds(all.size());
    for (size_t i = 0; i < all.size(); ++i)
        if (first[i] > SLOW_SECONDS) seconds[i].push_back(first[i]);
    const auto start = std::chrono::steady_clock::now();
    for (int turn = 0; turn < options_.repeat; ++turn) {
        const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - start;
        if (turn >= FEWEST_RUNS && spent.count() > options_.seconds) break;
        for (size_t i = 0; i < all.size(); ++i) {
            check_interrupt();
            if (first[i] > SLOW_SECONDS) continue;
            stream_seconds_[point.threads].push_back(stream_.read(point.threads));
            wake_team(point.threads);
            if (options_.warm) all[i]->run();
            seconds[i].push_back(seconds_of(*all[i]));
        }
    }
    return seconds;
}

std::optional<double> AttentionBench::checked_error(const AttentionContender & contender,
                                                    const AttentionCall & call) const {
    if (call.sequences > 1 || call.cells() > CHECKED_CELLS || call.query_tokens > CHECKED_QUERIES) return std::nullopt;
    const double error = output_error(contender, call);
    if (!(error < LARGEST_ERROR))
        throw Error(contender.name() + " computes a wrong result at " + std::to_string(call.cells()) + " tokens of shape " +
                    call.shape.name() + ": its relative error is " + std::to_string(error));
    return error;
}

void AttentionBench::run_point(const Point & point, const AttentionCall & call, const Runners & all) {
    std::vector<Json> errors;
    std::vector<double> first; // with the first touch of scratch memory
    for (AttentionContender * contender : all) {
        progress_.show(point.shape.name() + " " + point.phase + " " + contender->name(), point.tokens, 0, "tokens");
        contender->prepare(call, point.threads);
        first.push_back(seconds_of(*contender));
        const std::optional<double> error = checked_error(*contender, call);
        errors.push_back(error ? Json(*error) : Json());
    }
    const std::vector<std::vector<double>> seconds = measure(point, all, first);
    std::map<std::string, double> medians;
    for (size_t i = 0; i < all.size(); ++i) medians[all[i]->name()] = median(seconds[i]);
    for (size_t i = 0; i < all.size(); ++i) add_row(point, call, *all[i], seconds[i], medians, errors[i]);
}

void AttentionBench::add_row(const Point & point, const AttentionCall & call, const AttentionContender & contender,
                             const std::vector<double> & seconds, const std::map<std::string, double> & medians,
                             const Json & error) {
    const double time = medians.at(contender.name()), rate = static_cast<double>(contender.bytes()) / time;
    const double stream = static_cast<double>(stream_.bytes()) / median(stream_seconds_[point.threads]);
    const double macs = 2.0 * point.shape.heads * point.shape.head_dim *
                        static_cast<double>(call.cells() * call.query_tokens * call.sequences);
    const auto ratio = [&](const char * peer) { return medians.contains(peer) ? Json(medians.at(peer) / time) : Json(); };
    rows_.push_back({{"shape", point.shape.name()},
                     {"tokens", point.tokens},
                     {"phase", point.phase},
                     {"query_tokens", point.query_tokens},
                     {"sequences", call.sequences},
                     {"isa", isa_},
                     {"threads", point.threads},
                     {"name", contender.name()},
                     {"ms", time * 1e3},
                     {"ratio_f16", ratio("ggml-f16")},
                     {"ratio_q8_0", ratio("ggml-q8_0")},
                     {"ratio_q4_0", ratio("ggml-q4_0")},
                     {"ratio_llama_cpp_f16", ratio("llama.cpp-f16")},
                     {"gb_s", rate / 1e9},
                     {"stream_share", rate / stream},
                     {"gmac_s", macs / time / 1e9},
                     {"int8_share", peaks_[point.threads] > 0 ? Json(macs / time / peaks_[point.threads]) : Json()},
                     {"bytes", contender.bytes()},
                     {"ms_min", *std::min_element(seconds.begin(), seconds.end()) * 1e3},
                     {"runs", seconds.size()},
                     {"error", error},
                     {"ggml_isa", ggml_isa_}});
}

// Who takes part: ggml's quantized caches in llama.cpp's order are left out of prefills, where a run takes many seconds.
AttentionBench::Runners AttentionBench::runners(const std::string & phase, const Contenders & all) {
    Runners some;
    for (const auto & contender : all)
        if (phase == "decode" || !contender->name().starts_with("llama.cpp-q")) some.push_back(contender.get());
    return some;
}

void AttentionBench::run_tokens(const AttentionShape & shape, int64_t tokens, Contenders & all) {
    for (const std::string & phase : options_.phases) {
        const bool prefill = phase == "prefill";
        const Runners taking_part = runners(phase, all);
        if (prefill && options_.tokens.empty() && tokens > PREFILL_DEPTH) continue;
        const std::vector<int> decode(options_.query_tokens), batch = {static_cast<int>(PREFILL_TOKENS)};
        for (const int query_tokens : prefill ? batch : decode) {
            AttentionCall call = make_call(shape, tokens, prefill ? query_tokens : 0, query_tokens);
            if (phase == "shared") {
                call.sequences = SHARING;
                call.common = tokens / 8 * 7;
            }
            for (const int threads : options_.threads)
                run_point({shape, phase, tokens, query_tokens, threads}, call, taking_part);
        }
    }
}

void AttentionBench::run_shape(const AttentionShape & shape) {
    const std::vector<int64_t> counts = token_counts(options_);
    const TokenRows rows(shape.channels());
    Contenders all = contenders(shape, counts.back() + PREFILL_TOKENS, rows);
    for (const int64_t tokens : counts) run_tokens(shape, tokens, all);
}

Json AttentionBench::run() {
    // Before ggml's threads exist: they go on waiting in a loop for a while after each of its runs.
    for (const int threads : options_.threads) peaks_[threads] = int8_peak(isa_, threads);
    for (const std::string & shape : options_.shapes) run_shape(parse_shape(shape));
    progress_.clear();
    const int most = *std::max_element(options_.threads.begin(), options_.threads.end());
    Json peaks = Json::object();
    for (const auto & [threads, macs] : peaks_) peaks[std::to_string(threads)] = macs / 1e9;
    Json streams = Json::object();
    for (const auto & [threads, seconds] : stream_seconds_)
        streams[std::to_string(threads)] = static_cast<double>(stream_.bytes()) / median(seconds) / 1e9;
    return {{"cpu", cpu_name()},
            {"stream_gb_s", streams[std::to_string(most)]},
            {"stream_gb_s_by_threads", streams},
            {"int8_gmac_s_by_isa_and_threads", {{isa_, peaks}}},
            {"cold", !options_.warm},
            {"rows", rows_}};
}

std::string join(const std::vector<std::string> & words) {
    std::string text;
    for (const std::string & word : words) text += (text.empty() ? "" : ",") + word;
    return text;
}

std::string join(const std::vector<int> & numbers) {
    std::vector<std::string> words;
    for (const int number : numbers) words.push_back(std::to_string(number));
    return join(words);
}

std::vector<std::string> arguments(const AttentionOptions & options, const std::string & isa) {
    std::vector<std::string> line = {"bench",          "attention",
                                     "--shape",        join(options.shapes),
                                     "--kv",           join(options.kv),
                                     "--phase",        join(options.phases),
                                     "--query-tokens", join(options.query_tokens),
                                     "--threads",      join(options.threads),
                                     "--repeat",       std::to_string(options.repeat),
                                     "--seconds",      std::to_string(options.seconds),
                                     "--isa",          isa};
    if (!options.tokens.empty()) line.insert(line.end(), {"--tokens", join(options.tokens)});
    if (options.warm) line.push_back("--warm");
    return line;
}

// The instruction set of codecs and of ggml is fixed when a process starts: another one needs another process.
Json run_isa(const AttentionOptions & options, const std::string & isa) {
    const bool chosen = std::getenv(CHILD) != nullptr;
    const std::string peer = ggml_isa() == isa ? "" : ggml_built_for(isa);
    if (isa == vidkv_isa() && (chosen || peer.empty())) return AttentionBench(options, isa).run();
    if (chosen) throw Error("this processor, or this build, has no " + isa + ": --isa takes what the processor can do");
    setenv(CHILD, "1", 1);
    setenv("VIDKV_FORCE_ISA", isa.c_str(), 1);
    if (!peer.empty()) setenv("LD_PRELOAD", peer.c_str(), 1);
    std::vector<std::string> line = arguments(options, isa);
    line.push_back("--json");
    Json report = run_child(line);
    for (const char * name : {CHILD, "VIDKV_FORCE_ISA", "LD_PRELOAD"}) unsetenv(name);
    return report;
}

void merge(Json & report, Json && part) {
    if (report.is_null()) {
        report = std::move(part);
        return;
    }
    for (Json & row : part["rows"]) report["rows"].push_back(std::move(row));
    report["int8_gmac_s_by_isa_and_threads"].update(part["int8_gmac_s_by_isa_and_threads"]);
}

void print_table(const Json & report) {
    std::printf("%s, streaming read %.1f GB/s, medians; ratio: ggml's time / this one's\n",
                report["cpu"].get<std::string>().c_str(), report["stream_gb_s"].get<double>());
    std::string heading;
    for (const Json & row : report["rows"]) {
        char text[200];
        std::snprintf(text, sizeof(text), "%s, %lld tokens, %s of %d, %s (ggml: %s), %d threads",
                      row["shape"].get<std::string>().c_str(), row["tokens"].get<long long>(),
                      row["phase"].get<std::string>().c_str(), row["query_tokens"].get<int>(),
                      row["isa"].get<std::string>().c_str(), row["ggml_isa"].get<std::string>().c_str(),
                      row["threads"].get<int>());
        if (heading != text) {
            heading = text;
            std::printf("\n%s\n%-16s %10s %8s %8s %8s %8s %8s %8s %8s\n", text, "", "ms", "x f16", "x q8_0", "x llama",
                        "GB/s", "stream", "int8", "error");
        }
        const auto number = [&](const char * name) { return row[name].is_null() ? 0.0 : row[name].get<double>(); };
        std::printf("%-16s %10.3f %8.2f %8.2f %8.2f %8.1f %7.0f%% %7.0f%% ", row["name"].get<std::string>().c_str(),
                    number("ms"), number("ratio_f16"), number("ratio_q8_0"), number("ratio_llama_cpp_f16"), number("gb_s"),
                    100 * number("stream_share"), 100 * number("int8_share"));
        row["error"].is_null() ? std::printf("%8s\n", "") : std::printf("%8.1e\n", number("error"));
    }
    std::printf("\nTime over tokens: microseconds a thousand tokens, and how much of the variation the line explains\n");
    for (const Json & fit : report["fits"])
        std::printf("%-10s %-8s %3d %-8s %-16s %10.2f   R2 %.4f\n", fit["shape"].get<std::string>().c_str(),
                    fit["phase"].get<std::string>().c_str(), fit["query_tokens"].get<int>(),
                    fit["isa"].get<std::string>().c_str(), fit["name"].get<std::string>().c_str(),
                    fit["us_per_1k_tokens"].get<double>(), fit["r2"].get<double>());
}

std::vector<std::string> csv_header(const AttentionOptions & options, const Json & report) {
    std::vector<std::string> words = arguments(options, join(options.isa));
    std::string command = "command: vidkv";
    for (const std::string & word : words) command += " " + word;
    Json machine = report;
    machine.erase("rows");
    machine.erase("fits");
    return {command, "cpu: " + cpu_name(), "machine: " + machine.dump()};
}

void run_attention(AttentionOptions options) {
    if (options.kv.empty()) options.kv = packed_presets();
    if (options.isa.empty()) options.isa = {vidkv_isa()};
    if (options.threads.empty()) options.threads = {available_cores()};
    check_presets(options.kv);
    token_counts(options);
    for (const std::string & shape : options.shapes) parse_shape(shape);
    capture_logs(false);
    Json report;
    try {
        for (const std::string & isa : options.isa) merge(report, run_isa(options, isa));
    } catch (const std::bad_alloc &) {
        throw Error("no memory left: ask for fewer --tokens, or for fewer presets with --kv");
    }
    report["fits"] = linear_fits(report["rows"]);
    if (!options.csv.empty()) write_csv(options.csv, csv_header(options, report), report["rows"]);
    if (!options.plot.empty()) {
        const std::string csv = options.csv.empty() ? options.plot + ".csv" : options.csv;
        if (options.csv.empty()) write_csv(csv, csv_header(options, report), report["rows"]);
        plot_roofline(csv, options.plot);
    }
    options.json ? void(std::cout << report.dump(2) << "\n") : print_table(report);
}

} // namespace

void add_bench_attention(CLI::App & bench, Command & run) {
    auto options = std::make_shared<AttentionOptions>();
    CLI::App * app =
        bench.add_subcommand("attention", "Attention on packed caches against ggml's flash attention on f16, q8_0, q4_0");
    app->add_option("--shape", options->shapes, "query heads/KV heads/head_dim (default 28/4/128,9/3/64,4/1/256)")
        ->delimiter(',');
    app->add_option("--tokens", options->tokens,
                    "cells in the cache, up to 64M (default 1k,8k,32k,128k; prefill up to 32k)")
        ->delimiter(',');
    app->add_option("--kv", options->kv, "presets (default: all that are listed)")->delimiter(',');
    app->add_option(
           "--phase", options->phases,
           "decode, prefill (512 tokens on a packed past), both (default), or shared (a token of each of 8 sequences, which have the "
           "first 7/8 of their cells in common)")
        ->delimiter(',')
        ->check(CLI::IsMember({"decode", "prefill", "shared"}));
    app->add_option("--query-tokens", options->query_tokens, "tokens decoded at once (default 1)")
        ->delimiter(',')
        ->check(CLI::Range(1, 512));
    app->add_option(
           "--isa", options->isa,
           "instruction sets, each in a process of its own: scalar, avx2, vnni256, avxvnni, avx512vnni, avx512, neon "
           "(default: the best there is)")
        ->delimiter(',')
        ->check(CLI::IsMember({"scalar", "avx2", "vnni256", "avxvnni", "avx512vnni", "avx512", "neon"}));
    app->add_option("-t,--threads", options->threads, "thread counts (default: all cores)")
        ->delimiter(',')
        ->check(CLI::Range(1, 1024));
    app->add_option("--repeat", options->repeat, "timed runs of each; the median counts (default 15)")
        ->check(CLI::Range(3, 10000));
    app->add_option("--seconds", options->seconds, "stop repeating a point after this long, not before 3 runs (default 20)")
        ->check(CLI::Range(0.0, 1e6));
    app->add_flag("--warm", options->warm, "leave the cache in the processor's caches (default: emptied before each run)");
    app->add_flag("--json", options->json, "print one JSON document instead of tables");
    app->add_option("--csv", options->csv, "write the rows to this file too");
    app->add_option("--plot", options->plot, "draw a roofline to this file (png, svg, pdf); needs matplotlib");
    app->callback([options, &run] { run = [options] { run_attention(*options); }; });
}

} // namespace vidkv::cli
