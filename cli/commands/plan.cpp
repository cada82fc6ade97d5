// vidkv plan: how many tokens a video of some length is, and what each preset holds for it.
#include <cmath>
#include <cstdio>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "commands.h"
#include "engine/kv_choice.h"
#include "engine/logs.h"
#include "engine/model.h"
#include "error.h"
#include "options.h"

namespace vidkv::cli {

namespace {

using Json = nlohmann::ordered_json;

constexpr const char * STAMP = "[12m34.00s]"; // as long as they get in most videos

struct PlanOptions {
    Options common;
    double minutes = 0;
    std::string size; // "": what suits the model
    std::vector<std::string> kv;
    bool json = false;
};

struct Plan {
    double fps = 0;
    int64_t frames = 0, visual_tokens = 0, tokens = 0;
    struct Row {
        std::string name;
        uint64_t bytes;
        double bits;
    };
    std::vector<Row> rows;
};

// The small model has seen no other size than its clips'.
std::string usual_size(const Model & model) { return model.options().small ? "84x84" : "1280x720"; }

std::pair<int, int> parse_size(const std::string & text) {
    int width = 0, height = 0;
    char end = 0;
    if (std::sscanf(text.c_str(), "%dx%d%c", &width, &height, &end) != 2 || width < 1 || height < 1 || width > 16384 ||
        height > 16384)
        throw UsageError("no size '" + text + "': --size takes WIDTHxHEIGHT, as 1280x720");
    return {width, height};
}

// Of two frames that follow each other, as libmtmd counts them for this model.
struct PairTokens {
    int64_t visual = 0, others = 0; // what marks where a picture begins and ends
};

PairTokens tokens_of_a_pair(const Model & model, const std::pair<int, int> & size) {
    if (const auto & llava = model.llava_onevision()) return {2 * int64_t{llava->pooled_side} * llava->pooled_side, 0};
    using Bitmap = std::unique_ptr<mtmd_bitmap, decltype(&mtmd_bitmap_free)>;
    const std::vector<unsigned char> grey(static_cast<size_t>(size.first) * static_cast<size_t>(size.second) * 3, 128);
    std::vector<Bitmap> frames;
    std::vector<mtmd_input_part> parts;
    for (int i = 0; i < 2; ++i) {
        frames.emplace_back(
            mtmd_bitmap_init(static_cast<uint32_t>(size.first), static_cast<uint32_t>(size.second), grey.data()),
            mtmd_bitmap_free);
        mtmd_bitmap_set_mergeable(frames.back().get(), true);
        parts.push_back({nullptr, frames.back().get()});
    }
    const mtmd_input_part * pointers[] = {parts.data(), parts.data() + 1};
    const std::unique_ptr<mtmd_input_chunks, decltype(&mtmd_input_chunks_free)> chunks(mtmd_input_chunks_init(),
                                                                                       mtmd_input_chunks_free);
    if (mtmd_tokenize_from_parts(model.vision(), chunks.get(), pointers, 2, false) != 0)
        throw Error("the vision tower does not take frames of that size: " + logged_error());
    PairTokens tokens;
    for (size_t i = 0; i < mtmd_input_chunks_size(chunks.get()); ++i) {
        const mtmd_input_chunk * chunk = mtmd_input_chunks_get(chunks.get(), i);
        const bool text = mtmd_input_chunk_get_type(chunk) == MTMD_INPUT_CHUNK_TYPE_TEXT;
        (text ? tokens.others : tokens.visual) += static_cast<int64_t>(mtmd_input_chunk_get_n_tokens(chunk));
    }
    return tokens;
}

int64_t tokens_of(const Model & model, const std::string & words) {
    return static_cast<int64_t>(model.tokenize(words, false).size());
}

uint64_t bytes_held(const KvChoice & kv, const Model & model, int64_t cells) {
    const auto channels = llama_model_n_head_kv(model.text()) * model.head_dim();
    const auto layers = static_cast<uint64_t>(llama_model_n_layer(model.text()));
    if (kv.stock)
        return static_cast<uint64_t>(2.0 * true_bits(kv, model.head_dim()) / 8 * static_cast<double>(layers) *
                                     static_cast<double>(channels) * static_cast<double>(cells));
    uint64_t bytes = 0;
    for (const vidkv_side side : {VIDKV_KEYS, VIDKV_VALUES}) {
        vidkv_store_shape shape = {};
        shape.side = side;
        shape.channels = channels;
        shape.head_dim = model.head_dim();
        shape.cells = cells;
        shape.sequences = 1;
        bytes += layers * vidkv_planned_bytes(&shape, &kv.params);
    }
    return bytes;
}

Plan make_plan(const PlanOptions & options, const Model & model) {
    const double stamp_seconds = options.common.timestamp_seconds(model.options());
    const double seconds = options.minutes * 60;
    Plan plan;
    const Sampling sampling = options.common.sampling(model.options().files);
    plan.fps = sampling.fps;
    plan.frames = std::max<int64_t>(1, std::llround(seconds * sampling.fps));
    if (sampling.max_frames > 0) plan.frames = std::min(plan.frames, sampling.max_frames);
    const PairTokens pair = tokens_of_a_pair(model, parse_size(options.size));
    const int64_t pairs = (plan.frames + 1) / 2;
    plan.visual_tokens = pairs * pair.visual;
    const int64_t stamps = stamp_seconds > 0 ? static_cast<int64_t>(seconds / stamp_seconds) + 1 : 0;
    const Turn turn = model.format("What happens?");
    plan.tokens = pairs * (pair.visual + pair.others) + std::min(stamps, plan.frames) * tokens_of(model, STAMP) +
                  tokens_of(model, turn.before + turn.after);
    for (const std::string & name : options.kv) {
        const KvChoice kv = parse_kv(name);
        check_fits(kv, model);
        plan.rows.push_back({name, bytes_held(kv, model, plan.tokens), true_bits(kv, model.head_dim())});
    }
    return plan;
}

void print_text(const Plan & plan, const PlanOptions & options, const std::string & model) {
    std::printf("%g minutes at %g frames per second, %s, with %s:\n", options.minutes, plan.fps, options.size.c_str(),
                model.c_str());
    std::printf("about %lld frames, %lld visual tokens, %lld tokens in all\n\n", static_cast<long long>(plan.frames),
                static_cast<long long>(plan.visual_tokens), static_cast<long long>(plan.tokens));
    std::printf("%-18s %12s %10s\n", "cache", "GiB held", "true bits");
    for (const Plan::Row & row : plan.rows)
        std::printf("%-18s %12.3f %10.2f\n", row.name.c_str(), static_cast<double>(row.bytes) / (1 << 30), row.bits);
    std::printf("\nWindow, sink tokens and statistics included. The model's weights come on top.\n");
}

void print_json(const Plan & plan) {
    Json rows = Json::array();
    for (const Plan::Row & row : plan.rows)
        rows.push_back({{"name", row.name}, {"kv_bytes", row.bytes}, {"true_bits", row.bits}});
    const Json document = {
        {"frames", plan.frames}, {"visual_tokens", plan.visual_tokens}, {"tokens", plan.tokens}, {"presets", rows}};
    std::cout << document.dump(2) << "\n";
}

void run_plan(PlanOptions & options) {
    if (options.kv.empty()) options.kv = {"f16", "q8_0", "k1.5v1.58", "t2.2", "t1.65", "t1.15"};
    if (!options.size.empty()) parse_size(options.size);
    for (const std::string & name : options.kv) parse_kv(name); // before the model is loaded
    capture_logs(options.common.verbose);
    Progress progress(options.json);
    options.common.fetch(progress);
    const ModelOptions model_options = options.common.model_options();
    const Model model(model_options, parse_kv("stock"));
    if (options.size.empty()) options.size = usual_size(model);
    const Plan plan = make_plan(options, model);
    const std::string & path = model_options.files.text;
    options.json ? print_json(plan) : print_text(plan, options, path.substr(path.find_last_of('/') + 1));
}

} // namespace

void add_plan(CLI::App & app, Command & run) {
    auto options = std::make_shared<PlanOptions>();
    CLI::App * plan =
        app.add_subcommand("plan", "Tokens of a video of some length, and the memory that each preset takes for them");
    plan->add_option("--minutes", options->minutes, "length of the video")->required()->check(CLI::Range(0.001, 1e6));
    plan->add_option("--size", options->size, "of a frame (default 1280x720; the small model: 84x84)")->type_name("WxH");
    plan->add_option("--fps", options->common.fps, "frames taken per second (default 4)")->check(CLI::Range(0.001, 1000.0));
    plan->add_option("--frames", options->common.frames, "at most this many frames")
        ->check(CLI::Range(int64_t(1), int64_t(1) << 40));
    plan->add_option("--frame-tokens", options->common.frame_tokens,
                     "at most this many visual tokens per frame or frame pair")
        ->check(CLI::Range(1, 65536));
    plan->add_option("--kv", options->kv, "caches, separated by commas (default f16,q8_0,k1.5v1.58,t2.2,t1.65,t1.15)")
        ->delimiter(',')
        ->type_name("PRESETS");
    options->common.add_model(*plan);
    options->common.add_hub(*plan);
    plan->add_flag("--json", options->json, "print one JSON document instead of text");
    plan->footer(R"(EXAMPLES
  vidkv plan --minutes 30 --fps 1
  vidkv plan --minutes 90 --fps 0.5 --size 1920x1080 -hf ggml-org/Qwen2.5-VL-3B-Instruct-GGUF --kv t1.65,t1.15)");
    plan->callback([options, &run] { run = [options] { run_plan(*options); }; });
}

} // namespace vidkv::cli
