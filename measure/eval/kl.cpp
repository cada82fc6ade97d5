// vidkv eval kl: how far each codec moves the next-token distributions of a text.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <memory>

#include <nlohmann/json.hpp>

#include "measurements.h"
#include "output_file.h"
#include "error.h"
#include "eval/model_under_test.h"
#include "eval/kl_run.h"
#include "engine/logs.h"
#include "run_record.h"
#include "progress.h"
#include "eval/text_options.h"

namespace vidkv::cli {

namespace {

using Json = nlohmann::ordered_json;

constexpr const char * FOOTER = R"(
PROTOCOL
  Each window of the text is read at full precision but for its last 256 tokens. Then the cache is packed: all but the
  residual window (the newest 128 tokens) and the sink tokens (the first 4). The last 256 tokens are decoded on it, their
  own keys and values in f16, and every next-token distribution is compared with that of the f16 cache: mean KL divergence
  in nats with its standard error over windows; what it has less or more than the first codec on the same windows, with the
  standard error of that difference; the divergence that half of the tokens, 99 % and 99.9 % of them stay below
  (of few windows the last is nearly the worst token's); perplexity; flips: how often the likeliest token is another one.
  Bits are those of what is packed, all metadata included; sink tokens and the residual window count in bytes held, which
  is what the cache takes at the end of the window.

  --protocol far: 64 tokens of the text, a passage of 256 tokens from elsewhere in it, over a thousand tokens of the text,
  and the same passage again. The repeated passage is scored (but for its first 32 tokens): what it needs was last read
  over a thousand tokens ago, so that a codec gains nothing by being kind to recent tokens.

CODECS
  Presets of VidKV (vidkv presets) run in the plug-in as they do for a user. PRESET@FILE spreads one's bits over the layers, by a file that
  eval layers has written; PRESET@NAME by the one that comes with a model of that name (t1.65@smollm2). Codecs of others are simulated:
  their reference code is applied to the rows of an f16 cache, with the same sink tokens (kept out of their scales) and residual window.
    q8_0, q5_1, q5_0, q4_0                      ggml's cache types
    q8_0-rot, q5_0-rot, q4_0-rot                the same with the rotation that llama.cpp's own cache has
    kivi2            KIVI, 2 bits (arXiv 2402.02750)
    turbo2, turbo3   after TurboQuant (arXiv 2504.19874)
    trellis2, trellis1   plain trellis codes, after buun-llama-cpp's turbo2_tcq and turbo1_tcq
    kvarn2           KVarN, 2-bit keys and values (arXiv 2606.03458)
    oscar-omni2      OScaR, 2 bits (arXiv 2605.19660)
    oscar-spectral2  OSCAR, 2 bits, a rotation per head (arXiv 2605.17757); calibrated on the window's own queries
    vidkv-released   VidKV's released code, with its defects (arXiv 2503.16257)
  NAME-nosink is NAME without sink tokens; stock is llama.cpp's own f16 cache; all is every preset and reference codec.)";

struct KlOptions : TextOptions {
    std::string csv;
    std::vector<std::string> kv = {"all"};
    int windows = 6, length = 2048, sinks = -1, residual = -1;
    std::string protocol = "near", weights = "f32";
    bool details = false;
};

struct CodecResult {
    Contender contender;
    std::vector<double> kl;
    Divergence all;
    Packed packed; // of the last window
    std::map<int, ChannelErrors> keys, values;

    void add(const WindowResult & window);
};

void add_errors(std::map<int, ChannelErrors> & sums, const std::map<int, ChannelErrors> & more) {
    for (const auto & [layer, errors] : more) {
        ChannelErrors & sum = sums[layer];
        sum.error.resize(errors.error.size());
        sum.variance.resize(errors.variance.size());
        for (size_t i = 0; i < errors.error.size(); ++i) {
            sum.error[i] += errors.error[i];
            sum.variance[i] += errors.variance[i];
        }
    }
}

void CodecResult::add(const WindowResult & window) {
    kl.push_back(window.divergence.mean_kl());
    all.add(window.divergence);
    packed = window.packed;
    add_errors(keys, window.keys);
    add_errors(values, window.values);
}

std::vector<Contender> chosen_contenders(const KlOptions & options) {
    std::vector<std::string> names;
    for (const std::string & name : options.kv) {
        const std::vector<std::string> more = name == "all" ? all_contender_names() : std::vector<std::string>{name};
        names.insert(names.end(), more.begin(), more.end());
    }
    std::vector<Contender> contenders;
    for (const std::string & name : names) {
        Contender contender = parse_contender(name);
        if (options.sinks >= 0 && !name.ends_with("-nosink")) contender.kv.params.sink_tokens = options.sinks;
        if (options.residual >= 0) contender.kv.params.residual_length = options.residual;
        if (vidkv_params_check(&contender.kv.params, 0) != VIDKV_OK && !contender.kv.stock)
            throw Error("codec " + name + ": " + vidkv_last_error());
        contenders.push_back(contender);
    }
    return contenders;
}

// Relative errors by channel as "bits": half the binary logarithm of variance over error, 0 to 16.
Json channel_bits(const ChannelErrors & errors) {
    Json bits = Json::array();
    for (size_t i = 0; i < errors.error.size(); ++i) {
        const double exact = errors.error[i] > 0 ? std::log2(std::max(errors.variance[i] / errors.error[i], 1e-9)) / 2 : 16;
        bits.push_back(std::round(std::clamp(exact, 0.0, 16.0) * 1000) / 1000);
    }
    return bits;
}

double relative_error(const ChannelErrors & errors) {
    double error = 0, variance = 0;
    for (const double x : errors.error) error += x;
    for (const double x : errors.variance) variance += x;
    return variance > 0 ? error / variance : 0;
}

Json layer_report(const CodecResult & result) {
    Json layers = Json::array();
    for (const auto & [layer, keys] : result.keys) {
        const auto values = result.values.find(layer);
        if (values == result.values.end()) continue;
        layers.push_back({{"layer", layer},
                          {"k_error", relative_error(keys)},
                          {"v_error", relative_error(values->second)},
                          {"k_channel_bits", channel_bits(keys)},
                          {"v_channel_bits", channel_bits(values->second)}});
    }
    return layers;
}

// What a codec has more than the first one, window by window.
Estimate more_than(const CodecResult & first, const CodecResult & result) {
    std::vector<double> differences;
    for (size_t i = 0; i < result.kl.size(); ++i) differences.push_back(result.kl[i] - first.kl[i]);
    return estimate(differences);
}

Json codec_report(const CodecResult & first, const CodecResult & result, bool details) {
    const Estimate kl = estimate(result.kl), more = more_than(first, result);
    Json report = {{"name", result.contender.name},
                   {"kld", kl.mean},
                   {"kld_se", kl.error},
                   {"kld_more", more.mean}, // than the first codec
                   {"kld_more_se", more.error},
                   {"kld_median", result.all.kl_quantile(0.5)},
                   {"kld_p99", result.all.kl_quantile(0.99)},
                   {"kld_p999", result.all.kl_quantile(0.999)},
                   {"ppl", result.all.perplexity()},
                   {"top1", result.all.top1()},
                   {"flips", 1 - result.all.top1()},
                   {"k_bits", result.packed.k_bits},
                   {"v_bits", result.packed.v_bits},
                   {"kv_bytes", result.packed.bytes},
                   {"sink_tokens", result.contender.kv.params.sink_tokens},
                   {"residual_length", result.contender.kv.params.residual_length},
                   {"simulated", result.contender.reference != nullptr},
                   {"source", result.contender.reference ? result.contender.reference->source : "VidKV"},
                   {"kld_windows", result.kl}};
    if (details) report["layers"] = layer_report(result);
    return report;
}

void write_csv(const std::string & path, const std::vector<CodecResult> & results) {
    std::ofstream file(path);
    file << "name,kld,kld_se,kld_median,kld_p99,kld_p999,ppl,top1,k_bits,v_bits,kv_bytes\n";
    for (const CodecResult & result : results) {
        const Estimate kl = estimate(result.kl);
        file << result.contender.name << ',' << kl.mean << ',' << kl.error << ',' << result.all.kl_quantile(0.5) << ','
             << result.all.kl_quantile(0.99) << ',' << result.all.kl_quantile(0.999) << ',' << result.all.perplexity()
             << ',' << result.all.top1() << ',' << result.packed.k_bits << ',' << result.packed.v_bits << ','
             << result.packed.bytes << '\n';
    }
    file.flush();
    if (!file) throw cannot_write(path);
}

void print_table(const std::vector<CodecResult> & results, const std::string & text, size_t windows, int length) {
    std::printf("%zu windows of %d tokens of %s\n\n", windows, length, text.c_str());
    std::printf("%-22s %8s %7s %8s %7s %8s %7s %7s %9s %7s %6s %6s %10s\n", "codec", "KLD", "+-", "- first", "+-", "median",
                "99 %", "99.9 %", "PPL", "flips %", "K bits", "V bits", "KV KiB");
    for (const CodecResult & result : results) {
        const Estimate kl = estimate(result.kl), more = more_than(results.front(), result);
        std::printf("%-22s %8.4f %7.4f %+8.4f %7.4f %8.5f %7.3f %7.3f %9.3f %7.2f %6.3f %6.3f %10.1f\n",
                    result.contender.name.c_str(), kl.mean, kl.error, more.mean, more.error, result.all.kl_quantile(0.5),
                    result.all.kl_quantile(0.99), result.all.kl_quantile(0.999), result.all.perplexity(),
                    100 * (1 - result.all.top1()), result.packed.k_bits, result.packed.v_bits,
                    static_cast<double>(result.packed.bytes) / 1024);
    }
}

void run_kl(const KlOptions & options) {
    if (options.length < 2 * SCORED_TOKENS + 256)
        throw UsageError("--window-length must be " + std::to_string(2 * SCORED_TOKENS + 256) + " or more");
    const std::vector<Contender> contenders = chosen_contenders(options);
    const Protocol protocol = options.protocol == "far" ? Protocol::far : Protocol::near;
    const Text text = options.words();
    const std::string named = options.model_file();
    capture_logs(options.verbose);
    Progress progress(options.json);
    const ModelUnderTest loaded(named, options.weights == "f32", options.threads, progress);
    const Model & model = *loaded.model;
    for (const Contender & contender : contenders) check_fits(contender.kv, model);
    const std::vector<Window> windows = cut_windows(model, text.words, protocol, options.windows, options.length);
    if (static_cast<int>(windows.size()) < options.windows)
        std::cerr << "the text holds " << windows.size() << " windows only" << std::endl;
    std::vector<CodecResult> results;
    for (const Contender & contender : contenders) results.push_back({contender, {}, {}, {}, {}, {}});
    const auto steps = static_cast<int64_t>(windows.size() * (contenders.size() + 1));
    int64_t step = 0;
    for (const Window & window : windows) {
        progress.show("reading", step++, steps, "steps");
        const WindowRun run(model, window, options.threads);
        for (CodecResult & result : results) {
            progress.show(result.contender.name, step++, steps, "steps");
            result.add(run.score(result.contender, options.details));
        }
    }
    progress.clear();
    if (!options.csv.empty()) write_csv(options.csv, results);
    if (!options.json) return print_table(results, text.name, windows.size(), options.length);
    Json presets = Json::array();
    for (const CodecResult & result : results) presets.push_back(codec_report(results.front(), result, options.details));
    const Json document = {{"run", run_record()},
                           {"model", named},
                           {"text", text.name},
                           {"protocol", options.protocol},
                           {"windows", windows.size()},
                           {"window_length", options.length},
                           {"weights", loaded.exact ? "f32" : "as-is"},
                           {"presets", presets}};
    std::cout << document.dump(2) << "\n";
}

} // namespace

void add_eval_kl(CLI::App & eval, Command & run) {
    auto options = std::make_shared<KlOptions>();
    CLI::App * kl = eval.add_subcommand("kl", "Divergence of each codec from the f16 cache on a text");
    options->add_model(*kl, "text file (default: documents and sources of this project, frozen: measure/eval/text.txt)");
    kl->add_option("--kv", options->kv, "codecs, separated by commas; see below (default all)")->delimiter(',');
    kl->add_option("--windows", options->windows, "windows of the text (default 6; fewer if it is short)")
        ->check(CLI::Range(1, 1000));
    kl->add_option("--window-length", options->length,
                   "tokens per window (default 2048; 16384 of a 1.5B model take 6 GB of memory)")
        ->check(CLI::Range(1, 1 << 20));
    kl->add_option("--protocol", options->protocol, "near or far (default near)")->check(CLI::IsMember({"near", "far"}));
    kl->add_option("--sink", options->sinks, "sink tokens kept in f16 (default: the preset's, 4)")
        ->check(CLI::Range(0, 32));
    kl->add_option("--residual", options->residual, "newest tokens kept in f16 (default 128)")
        ->check(CLI::Range(0, 1 << 20));
    kl->add_option(
          "--weights", options->weights,
          "f32 (default): quantized weights of a model of up to 10^9 weights are written out as f32 (a temporary "
          "file), as llama.cpp rounds activations to 8 bits otherwise, which alone costs a KLD of about 0.004; as-is")
        ->check(CLI::IsMember({"f32", "as-is"}));
    options->add_run(*kl);
    kl->add_option("--csv", options->csv, "also write the table to this file");
    kl->add_flag("--details", options->details, "with --json: errors by layer and channel too");
    kl->footer(FOOTER);
    kl->callback([options, &run] { run = [options] { run_kl(*options); }; });
}

} // namespace vidkv::cli
