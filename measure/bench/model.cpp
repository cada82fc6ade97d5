// vidkv bench model: tokens/s of a GGUF at depth, with llama.cpp's own caches and with presets, in turns in one process.
#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <iostream>
#include <map>
#include <memory>
#include <random>

#include "bench/attention.h"
#include "bench/bench.h"
#include "machine.h"
#include "engine/backends.h"
#include "engine/kv_choice.h"
#include "engine/logs.h"
#include "engine/model.h"
#include "engine/plugin.h"
#include "error.h"
#include "eval/text_model.h"
#include "interrupt.h"
#include "options.h"
#include "progress.h"

namespace vidkv::cli {

namespace {

constexpr int BATCH = 512;
constexpr uint32_t SEED = 6;

struct ModelBenchOptions {
    std::string model;
    std::vector<std::string> kv = {"stock", "q8_0", "q4_0"}, depths = {"0", "2k", "8k"};
    int prompt = 512, predict = 32, repeat = 5, threads = 1;
    bool verbose = false, json = false;
    std::string csv;
};

using LoadedModel = std::unique_ptr<llama_model, ModelDeleter>;
struct ContextDeleter {
    void operator()(llama_context * context) const { llama_free(context); }
};

std::string because() {
    const std::string reason = logged_error();
    return reason.empty() ? "" : ": " + reason;
}

LoadedModel load(const std::string & path, bool stock) {
    std::array<ggml_backend_dev_t, 2> devices = {stock ? nullptr : kv_device(), nullptr};
    llama_model_params params = llama_model_default_params();
    params.devices = devices.data();
    params.n_gpu_layers = stock ? 0 : 999; // the device takes the cache; weights stay with the CPU
    load_cpu_backend();
    forget_logged_error();
    LoadedModel model(llama_model_load_from_file(path.c_str(), params));
    if (!model) throw Error("cannot load the model '" + path + "'" + because());
    return model;
}

// One context with its cache, filled with random tokens.
class Runner {
  public:
    Runner(llama_model * model, const KvChoice & kv, const ModelBenchOptions & options, int64_t cells);
    const std::string & name() const { return name_; }
    void fill(int64_t depth);
    // Seconds per token of a prompt, and of tokens one by one, at the depth that fill() reached. Forgets them again.
    double prefill(int tokens);
    double decode(int tokens);

  private:
    void feed(int64_t n);
    double timed(int tokens, int batch);

    std::string name_;
    std::unique_ptr<llama_context, ContextDeleter> context_;
    std::mt19937 random_{SEED};
    int32_t vocabulary_;
    int64_t used_ = 0;
};

Runner::Runner(llama_model * model, const KvChoice & kv, const ModelBenchOptions & options, int64_t cells)
    : name_(kv.name), vocabulary_(llama_vocab_n_tokens(llama_model_get_vocab(model))) {
    if (vocabulary_ <= 0) throw Error("'" + options.model + "' is not a language model: -m takes the text model");
    if (!kv.stock) configure_plugin(kv.params, kv.losses);
    llama_context_params params = llama_context_default_params();
    params.n_ctx = static_cast<uint32_t>(cells);
    params.n_batch = params.n_ubatch = BATCH;
    params.n_threads = params.n_threads_batch = options.threads;
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    params.type_k = params.type_v = kv.type;
    params.abort_callback = interrupt_callback;
    forget_logged_error();
    context_.reset(llama_init_from_model(model, params));
    if (!context_)
        throw Error("llama.cpp cannot make a context of " + std::to_string(cells) + " tokens with --kv " + kv.name +
                    because());
}

void Runner::feed(int64_t n) {
    std::vector<llama_token> tokens(static_cast<size_t>(n));
    for (llama_token & token : tokens) token = static_cast<llama_token>(random_() % static_cast<uint32_t>(vocabulary_));
    const int status = llama_decode(context_.get(), llama_batch_get_one(tokens.data(), static_cast<int32_t>(n)));
    check_interrupt();
    if (status != 0) throw Error("llama.cpp failed to decode (" + std::to_string(status) + ")" + because());
    used_ += n;
}

void Runner::fill(int64_t depth) {
    while (used_ < depth) feed(std::min<int64_t>(BATCH, depth - used_));
    llama_synchronize(context_.get());
}

double Runner::timed(int tokens, int batch) {
    const int64_t depth = used_;
    const auto start = std::chrono::steady_clock::now();
    for (int left = tokens; left > 0; left -= batch) feed(std::min(batch, left));
    llama_synchronize(context_.get());
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    if (!llama_memory_seq_rm(llama_get_memory(context_.get()), 0, static_cast<llama_pos>(depth), -1))
        throw Error("this model's memory cannot be rolled back, so it cannot be measured again and again");
    used_ = depth;
    return seconds.count() / tokens;
}

double Runner::prefill(int tokens) { return timed(tokens, BATCH); }
double Runner::decode(int tokens) { return timed(tokens, 1); }

int64_t parse_depth(const std::string & text) { return text == "0" ? 0 : parse_tokens(text); }

class ModelBench {
  public:
    explicit ModelBench(const ModelBenchOptions & options);
    Json run();

  private:
    void run_depth(int64_t depth);

    const ModelBenchOptions & options_;
    Progress progress_;
    std::vector<int64_t> depths_;
    LoadedModel stock_, packed_;
    std::vector<std::unique_ptr<Runner>> runners_;
    Json rows_ = Json::array();
};

ModelBench::ModelBench(const ModelBenchOptions & options) : options_(options), progress_(options.json) {
    for (const std::string & text : options.depths) depths_.push_back(parse_depth(text));
    std::sort(depths_.begin(), depths_.end());
    const int64_t cells = depths_.back() + std::max(options.prompt, options.predict);
    for (const std::string & name : options.kv) {
        const KvChoice kv = parse_kv(name);
        LoadedModel & model = kv.stock ? stock_ : packed_;
        if (!model) model = load(text_model(options.model), kv.stock);
        runners_.push_back(std::make_unique<Runner>(model.get(), kv, options, cells));
    }
}

void ModelBench::run_depth(int64_t depth) {
    for (const auto & runner : runners_) {
        progress_.show("filling " + runner->name(), depth, 0, "tokens");
        runner->fill(depth);
        runner->decode(1);
    }
    std::map<std::string, std::vector<double>> prefill, decode;
    for (int turn = 0; turn < options_.repeat; ++turn) {
        for (const auto & runner : runners_) {
            progress_.show("depth " + std::to_string(depth), turn, options_.repeat, "turns");
            if (options_.prompt > 0) prefill[runner->name()].push_back(runner->prefill(options_.prompt));
            if (options_.predict > 0) decode[runner->name()].push_back(runner->decode(options_.predict));
        }
    }
    for (const auto * seconds : {&prefill, &decode}) {
        if (seconds->empty()) continue;
        const double first = median(seconds->at(runners_.front()->name()));
        for (const auto & runner : runners_) {
            const double time = median(seconds->at(runner->name()));
            rows_.push_back({{"depth", depth},
                             {"phase", seconds == &prefill ? "prefill" : "decode"},
                             {"tokens", seconds == &prefill ? options_.prompt : options_.predict},
                             {"threads", options_.threads},
                             {"name", runner->name()},
                             {"tokens_per_s", 1 / time},
                             {"ratio_first", first / time}});
        }
    }
}

Json ModelBench::run() {
    for (const int64_t depth : depths_) run_depth(depth);
    progress_.clear();
    return {
        {"cpu", cpu_name()}, {"model", options_.model}, {"isa", vidkv_isa()}, {"ggml_isa", ggml_isa()}, {"rows", rows_}};
}

void print_table(const Json & report) {
    std::printf("%s, %s; medians of turns; ratio: to the first\n\n%8s %-8s %8s %-16s %12s %8s\n",
                report["cpu"].get<std::string>().c_str(), report["model"].get<std::string>().c_str(), "depth", "phase",
                "threads", "cache", "tokens/s", "ratio");
    for (const Json & row : report["rows"])
        std::printf("%8lld %-8s %8d %-16s %12.1f %8.2f\n", row["depth"].get<long long>(),
                    row["phase"].get<std::string>().c_str(), row["threads"].get<int>(),
                    row["name"].get<std::string>().c_str(), row["tokens_per_s"].get<double>(),
                    row["ratio_first"].get<double>());
}

void run_model(const ModelBenchOptions & options) {
    capture_logs(options.verbose);
    const Json report = ModelBench(options).run();
    if (!options.csv.empty()) {
        std::string kv;
        for (const std::string & name : options.kv) kv += (kv.empty() ? "" : ",") + name;
        write_csv(
            options.csv,
            {"command: vidkv bench model -m " + std::filesystem::path(options.model).filename().string() + " --kv " + kv,
             "cpu: " + cpu_name()},
            report["rows"]);
    }
    options.json ? void(std::cout << report.dump(2) << "\n") : print_table(report);
}

} // namespace

void add_bench_model(CLI::App & bench, Command & run) {
    auto options = std::make_shared<ModelBenchOptions>();
    options->threads = available_cores();
    for (const char * name : {"k2v2", "k1.5v1.58", "t1.65"})
        if (vidkv_params params; vidkv_params_from_preset(name, &params) == VIDKV_OK) options->kv.push_back(name);
    CLI::App * app =
        bench.add_subcommand("model", "Tokens/s of a model at depth, with llama.cpp's caches and with presets");
    app->add_option("-m,--model", options->model, std::string("GGUF of a language model, or ") + TEXT_MODELS)
        ->required()
        ->envname("VIDKV_MODEL");
    app->add_option("--kv", options->kv, "caches; ratios are to the first (default stock,q8_0,q4_0,k2v2,k1.5v1.58,t1.65)")
        ->delimiter(',');
    app->add_option("-d,--depth", options->depths, "tokens in the cache before (default 0,2k,8k)")->delimiter(',');
    app->add_option("-p,--prompt", options->prompt, "tokens of the prompt; 0: none (default 512)")
        ->check(CLI::Range(0, 1 << 20));
    app->add_option("-n,--predict", options->predict, "tokens decoded one by one; 0: none (default 32)")
        ->check(CLI::Range(0, 1 << 20));
    app->add_option("--repeat", options->repeat, "turns; the median counts (default 5)")->check(CLI::Range(1, 1000));
    app->add_option("-t,--threads", options->threads, "threads (default: all cores)")->check(CLI::Range(1, 1024));
    app->add_flag("-v,--verbose", options->verbose, "show what llama.cpp logs");
    app->add_flag("--json", options->json, "print one JSON document instead of a table");
    app->add_option("--csv", options->csv, "write the rows to this file too");
    app->callback([options, &run] { run = [options] { run_model(*options); }; });
}

} // namespace vidkv::cli
