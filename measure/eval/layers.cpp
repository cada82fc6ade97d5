// vidkv eval layers: what packing each side of each layer costs by itself, which bits are spread by (vidkv/layers.h).
#include <array>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iostream>

#include <unistd.h>

#include <nlohmann/json.hpp>

#include "engine/logs.h"
#include "error.h"
#include "eval/kl_run.h"
#include "eval/model_under_test.h"
#include "eval/text_options.h"
#include "measurements.h"
#include "output_file.h"
#include "progress.h"
#include "run_record.h"

namespace vidkv::cli {

namespace {

using Json = nlohmann::ordered_json;

constexpr const char * FOOTER = R"(
Some layers of a model hardly mind how their keys and values are packed, others mind a hundred times as much. This command measures
it: windows of a text, as in vidkv eval kl, with the keys, or the values, of one layer packed and all else in f16. That takes one reading
of a window and then two runs for each layer, minutes for a small model. One window may be unlike others, and what it happens not to need
gets too few bits: three are measured. The losses are the model's more than the text's, so one file serves all texts, presets and
quantizations of its weights.

  vidkv eval layers --model model.gguf -o model.layers
  vidkv ask clip.mp4 "What happens?" -m model.gguf --mmproj mmproj.gguf --kv t1.65@model.layers
  VIDKV_PRESET=t1.65@model.layers llama-server --device VIDKV -m model.gguf -fa on

PRESET@FILE spends the preset's bits so that the sum of the losses is least; their mean stays the preset's. The file is a text; its lines
have a layer and the losses of its keys and values. Layers with a sliding window stay in f16 and are not in it.)";

constexpr int64_t MOST_WEIGHTS = 4'000'000'000; // 8 GB as f16

struct LayersOptions : TextOptions {
    std::string kv = "t1.65", out, weights = "exact";
    int windows = 3, length = 2048;
};

using Losses = std::vector<vidkv_layer_loss>;

void add_window(const WindowRun & run, const Contender & whole, size_t windows, Progress & progress, Losses & losses) {
    if (losses.empty()) {
        for (const int layer : run.packed_layers(whole)) losses.push_back({layer, 0, 0});
    }
    const auto steps = static_cast<int64_t>(2 * losses.size());
    for (size_t i = 0; i < losses.size(); ++i) {
        for (const vidkv_side side : {VIDKV_KEYS, VIDKV_VALUES}) {
            progress.show("layer " + std::to_string(losses[i].layer), static_cast<int64_t>(2 * i + side), steps, "runs");
            Contender alone = whole;
            alone.alone = {losses[i].layer, side};
            const double loss = run.score(alone, false).divergence.mean_kl() / static_cast<double>(windows);
            (side == VIDKV_KEYS ? losses[i].keys : losses[i].values) += loss;
        }
    }
}

std::string as_text(const Losses & losses, const std::string & model, const LayersOptions & options) {
    std::string text = "# what " + options.kv + " costs the predictions of " + model.substr(model.find_last_of('/') + 1) +
                       ", layer by layer: KL divergences in nats, by vidkv eval layers\n# layer keys values\n";
    for (const vidkv_layer_loss & each : losses) {
        std::array<char, 96> line;
        std::snprintf(line.data(), line.size(), "%d %.3e %.3e\n", each.layer, each.keys, each.values);
        text += line.data();
    }
    return text;
}

// Before minutes of measuring. What is there stays as it is, and a pipe is not opened: closing it would end it.
void check_writable(const std::string & path) {
    const std::filesystem::file_status there = std::filesystem::status(path);
    if (std::filesystem::exists(there)) {
        if (std::filesystem::is_directory(there) || access(path.c_str(), W_OK) != 0) throw cannot_write(path);
        return;
    }
    if (!std::ofstream(path)) throw cannot_write(path);
    std::filesystem::remove(path);
}

void write(const std::string & path, const std::string & text) {
    std::ofstream file(path);
    file << text;
    file.flush();
    if (!file) throw cannot_write(path);
}

Json as_json(const Losses & losses, const std::string & model, const LayersOptions & options) {
    Json layers = Json::array();
    for (const vidkv_layer_loss & each : losses)
        layers.push_back({{"layer", each.layer}, {"keys", each.keys}, {"values", each.values}});
    return {{"run", run_record()}, {"model", model}, {"kv", options.kv}, {"windows", options.windows}, {"layers", layers}};
}

void run_layers(const LayersOptions & options) {
    const Contender whole = parse_contender(options.kv);
    if (whole.reference || whole.kv.stock || !whole.kv.losses.empty() || whole.kv.params.key_codec != VIDKV_CODEC_TRELLIS ||
        whole.kv.params.value_codec != VIDKV_CODEC_TRELLIS)
        throw UsageError("--kv takes a preset with trellis codes, such as t1.65, not " + options.kv);
    if (!options.out.empty()) check_writable(options.out);
    const Text text = options.words();
    const std::string named = options.model_file();
    capture_logs(options.verbose);
    Progress progress(options.json);
    const ModelUnderTest loaded(named, options.weights == "exact", options.threads, progress, MOST_WEIGHTS);
    check_fits(whole.kv, *loaded.model);
    if (loaded.too_many)
        std::cerr
            << "the model's weights stay quantized: what llama.cpp rounds activations to for them may hide what layers cost"
            << std::endl;
    const std::vector<Window> windows =
        cut_windows(*loaded.model, text.words, Protocol::near, options.windows, options.length);
    Losses losses;
    for (const Window & window : windows) {
        progress.show("reading", 0, 0, "");
        add_window(WindowRun(*loaded.model, window, options.threads), whole, windows.size(), progress, losses);
    }
    progress.clear();
    if (losses.empty()) throw Error("the windows are too short: nothing of this model's cache is packed");
    const std::string lines = as_text(losses, named, options);
    if (!options.out.empty()) write(options.out, lines);
    if (options.json)
        std::cout << as_json(losses, named, options).dump(2) << "\n";
    else if (options.out.empty())
        std::cout << lines;
}

} // namespace

void add_eval_layers(CLI::App & eval, Command & run) {
    auto options = std::make_shared<LayersOptions>();
    CLI::App * layers = eval.add_subcommand("layers", "What packing each layer costs by itself: a file for PRESET@FILE");
    options->add_model(*layers, "text file (default: as for eval kl)");
    layers->add_option("--kv", options->kv, "the preset to measure with (default t1.65)");
    layers->add_option("-o,--output", options->out, "write the layers file here (default: standard output)");
    layers->add_option("--windows", options->windows, "windows of the text (default 3)")->check(CLI::Range(1, 1000));
    layers->add_option("--window-length", options->length, "tokens per window (default 2048)")
        ->check(CLI::Range(2 * SCORED_TOKENS + 256, 1 << 20));
    layers
        ->add_option(
            "--weights", options->weights,
            "exact (default): quantized weights are written out as f32, of models of 10^9 to 4 x 10^9 weights as f16 (a "
            "temporary file), as llama.cpp rounds activations to 8 bits otherwise, which hides what layers cost; as-is")
        ->check(CLI::IsMember({"exact", "as-is"}));
    options->add_run(*layers);
    layers->footer(FOOTER);
    layers->callback([options, &run] { run = [options] { run_layers(*options); }; });
}

} // namespace vidkv::cli
