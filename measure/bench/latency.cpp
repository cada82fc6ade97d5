// vidkv bench latency: how long each decoded token takes, those that pack pages and the others.
#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <iostream>
#include <memory>

#include "bench/attention.h"
#include "bench/bench.h"
#include "machine.h"
#include "bench/random_model.h"
#include "engine/kv_choice.h"
#include "engine/logs.h"
#include "engine/model.h"
#include "engine/plugin.h"
#include "error.h"
#include "eval/text_model.h"
#include "interrupt.h"
#include "options.h"
#include "progress.h"
#include "temporary_folder.h"

namespace vidkv::cli {

namespace {

constexpr uint32_t SEED = 20251126;
constexpr int BATCH = 512, WARM_UP = 8;

struct LatencyOptions {
    std::string model, shape = "28/4/128", depth = "1k", kv = DEFAULT_KV;
    int layers = 28, tokens = 1000, threads = 1;
    bool shift = false, json = false;
};

using LoadedModel = std::unique_ptr<llama_model, ModelDeleter>;
struct ContextDeleter {
    void operator()(llama_context * context) const { llama_free(context); }
};

std::string write_model(const LatencyOptions & options, const TemporaryFolder & folder) {
    const AttentionShape shape = parse_shape(options.shape);
    const auto made = vidkv_test::cache_shape(options.layers, shape.heads, shape.kv_heads, shape.head_dim);
    return vidkv_test::write_random_model(made, SEED, folder.path());
}

LoadedModel load(const std::string & path) {
    std::array<ggml_backend_dev_t, 2> devices = {kv_device(), nullptr};
    llama_model_params params = llama_model_default_params();
    params.devices = devices.data();
    params.n_gpu_layers = 999; // the device takes the cache; weights stay with the CPU
    forget_logged_error();
    LoadedModel model(llama_model_load_from_file(path.c_str(), params));
    if (!model) throw Error("cannot load the model '" + path + "': " + logged_error());
    return model;
}

class LatencyRun {
  public:
    LatencyRun(llama_model * model, const LatencyOptions & options, int64_t cells);
    void feed(int n); // the next tokens, in one batch
    double token();   // seconds of the next one
    int64_t shift();  // throws the first half of the cells away: the others move when the next token comes. How many do

  private:
    std::unique_ptr<llama_context, ContextDeleter> context_;
    int32_t vocabulary_;
    int64_t used_ = 0;
};

LatencyRun::LatencyRun(llama_model * model, const LatencyOptions & options, int64_t cells)
    : vocabulary_(llama_vocab_n_tokens(llama_model_get_vocab(model))) {
    if (vocabulary_ <= 0) throw Error("'" + options.model + "' is not a language model: -m takes the text model");
    const KvChoice kv = parse_kv(options.kv);
    configure_plugin(kv.params, kv.losses);
    llama_context_params params = llama_context_default_params();
    params.n_ctx = static_cast<uint32_t>(cells);
    params.n_batch = params.n_ubatch = BATCH;
    params.n_threads = params.n_threads_batch = options.threads;
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    params.abort_callback = interrupt_callback;
    forget_logged_error();
    context_.reset(llama_init_from_model(model, params));
    if (!context_)
        throw Error("llama.cpp cannot make a context of " + std::to_string(cells) + " tokens: " + logged_error());
}

void LatencyRun::feed(int n) {
    std::vector<llama_token> tokens;
    for (int i = 0; i < n; ++i) tokens.push_back(static_cast<llama_token>(used_++ * 37 % vocabulary_));
    const int status = llama_decode(context_.get(), llama_batch_get_one(tokens.data(), n));
    check_interrupt();
    if (status != 0) throw Error("llama.cpp failed to decode (" + std::to_string(status) + "): " + logged_error());
}

double LatencyRun::token() {
    const auto start = std::chrono::steady_clock::now();
    feed(1);
    llama_synchronize(context_.get());
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

int64_t LatencyRun::shift() {
    auto * const memory = llama_get_memory(context_.get());
    const auto last = static_cast<int32_t>(used_ - 1), half = last / 2;
    if (!llama_memory_can_shift(memory)) throw Error("this model's positions cannot be shifted");
    llama_memory_seq_rm(memory, 0, 4, half);
    llama_memory_seq_add(memory, 0, half, -1, 4 - half);
    return last + 1 - half;
}

// The value that a share of them do not exceed.
double quantile(std::vector<double> values, double share) {
    std::sort(values.begin(), values.end());
    const auto last = static_cast<double>(values.size() - 1);
    return values[static_cast<size_t>(std::ceil(share * last))];
}

Json milliseconds(const std::vector<double> & seconds) {
    if (seconds.empty()) return {{"tokens", 0}, {"p50_ms", nullptr}, {"p99_ms", nullptr}, {"max_ms", nullptr}};
    const auto of = [&](double share) { return 1e3 * quantile(seconds, share); };
    return {{"tokens", seconds.size()}, {"p50_ms", of(.5)}, {"p99_ms", of(.99)}, {"max_ms", of(1)}};
}

Json measure(const LatencyOptions & options) {
    const TemporaryFolder folder("vidkv-bench");
    const bool random = options.model.empty();
    const LoadedModel model = load(random ? write_model(options, folder) : text_model(options.model));
    const int64_t depth = options.depth == "0" ? 0 : parse_tokens(options.depth);
    LatencyRun run(model.get(), options, depth + WARM_UP + options.tokens);
    Progress progress(options.json);
    for (int64_t left = depth; left > 0; left -= BATCH) {
        progress.show("filling the cache", depth, depth - left, "tokens");
        run.feed(static_cast<int>(std::min<int64_t>(left, BATCH)));
    }
    for (int i = 0; i < WARM_UP; ++i) run.token();
    std::vector<double> all, packing, others, packing_alone;
    int64_t sealed = plugin_stats().cells_sealed;
    for (int i = 0; i < options.tokens; ++i) {
        if (i % 16 == 0) progress.show("decoding", options.tokens, i, "tokens");
        const double packed = packing_seconds();
        all.push_back(run.token());
        const int64_t now = plugin_stats().cells_sealed;
        (now != sealed ? packing : others).push_back(all.back());
        if (now != sealed) packing_alone.push_back(packing_seconds() - packed);
        sealed = now;
    }
    progress.clear();
    Json shift;
    if (options.shift) {
        shift["cells"] = run.shift();
        shift["ms"] = 1e3 * run.token();
    }
    return {{"cpu", cpu_name()},
            {"isa", vidkv_isa()},
            {"model", random ? "random weights of next to no size, " + options.shape + ", " +
                                   std::to_string(options.layers) + " layers"
                             : options.model},
            {"kv", options.kv},
            {"threads", options.threads},
            {"depth", depth},
            {"shift", shift},
            {"all", milliseconds(all)},
            {"packing", milliseconds(packing)},
            {"packing_alone", milliseconds(packing_alone)},
            {"others", milliseconds(others)}};
}

void print_report(const Json & r) {
    std::printf("%s, %s, %s, %d threads, from depth %lld\n\n%-24s %8s %10s %10s %10s\n",
                r["cpu"].get<std::string>().c_str(), r["model"].get<std::string>().c_str(),
                r["kv"].get<std::string>().c_str(), r["threads"].get<int>(), r["depth"].get<long long>(), "", "tokens",
                "p50, ms", "p99, ms", "max, ms");
    for (const auto & [name, key] : {std::pair{"all tokens", "all"},
                                     {"those that packed", "packing"},
                                     {"  packing alone", "packing_alone"},
                                     {"the others", "others"}}) {
        if (r[key]["tokens"] == 0) continue;
        std::printf("%-24s %8d %10.2f %10.2f %10.2f\n", name, r[key]["tokens"].get<int>(), r[key]["p50_ms"].get<double>(),
                    r[key]["p99_ms"].get<double>(), r[key]["max_ms"].get<double>());
    }
    if (r["shift"].is_null()) return;
    std::printf("\n%.2f ms for the token after a shift of %lld cells\n", r["shift"]["ms"].get<double>(),
                r["shift"]["cells"].get<long long>());
}

void run_latency(const LatencyOptions & options) {
    check_presets({options.kv});
    capture_logs(false);
    const Json report = measure(options);
    options.json ? void(std::cout << report.dump(2) << "\n") : print_report(report);
}

} // namespace

void add_bench_latency(CLI::App & bench, Command & run) {
    auto options = std::make_shared<LatencyOptions>();
    options->threads = available_cores();
    CLI::App * app =
        bench.add_subcommand("latency", "How long each decoded token takes, those that pack pages and the others");
    app->add_option("-m,--model", options->model,
                    std::string("GGUF of a language model, or ") + TEXT_MODELS + " (default: a random one of --shape)");
    app->add_option("--shape", options->shape, "query heads/KV heads/head_dim of the random model (default 28/4/128)");
    app->add_option("--layers", options->layers, "layers of the random model (default 28)")->check(CLI::Range(1, 200));
    app->add_option("--kv", options->kv, "preset (default " + std::string(DEFAULT_KV) + ")");
    app->add_option("-d,--depth", options->depth, "tokens in the cache before (default 1k)");
    app->add_option("-n,--tokens", options->tokens, "tokens decoded one by one (default 1000)")
        ->check(CLI::Range(1, 1 << 20));
    app->add_option("-t,--threads", options->threads, "threads (default: all cores)")->check(CLI::Range(1, 1024));
    app->add_flag("--shift", options->shift,
                  "then throw the first half of the cache away, and time the token after that shift");
    app->add_flag("--json", options->json, "print one JSON document instead of a table");
    app->callback([options, &run] { run = [options] { run_latency(*options); }; });
}

} // namespace vidkv::cli
