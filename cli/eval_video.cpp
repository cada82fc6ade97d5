// vidkv eval video: a generated set of clips through each preset.
#include <algorithm>
#include <cctype>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <map>
#include <memory>
#include <sstream>

#include <unistd.h>

#include <nlohmann/json.hpp>

#include "commands.h"
#include "data.h"
#include "error.h"
#include "logs.h"
#include "options.h"

namespace fs = std::filesystem;

namespace vidkv::cli {

namespace {

using Json = nlohmann::ordered_json;

struct EvalOptions {
    Options common;
    DataOptions data;
    std::string folder; // a set that exists already
    std::vector<std::string> kv = {"f16", "k2v2", "k1.5v2", "k1.5v1.58"};
    bool json = false;
};

struct Question {
    std::string text, answer, type;
    int candidates = 0;
};

struct Clip {
    std::string path;
    std::vector<Question> questions;
};

// A generated set in a folder that is removed again.
class TemporarySet {
  public:
    explicit TemporarySet(DataOptions options) {
        std::string name = (fs::temp_directory_path() / "vidkv-eval-XXXXXX").string();
        if (!mkdtemp(name.data()))
            throw Error("cannot make a folder in '" + fs::temp_directory_path().string() + "': set TMPDIR");
        folder_ = name;
        options.out = name;
        try {
            generate_data(options);
        } catch (...) {
            remove();
            throw;
        }
    }
    ~TemporarySet() { remove(); }
    TemporarySet(const TemporarySet &) = delete;
    TemporarySet & operator=(const TemporarySet &) = delete;
    const std::string & folder() const { return folder_; }

  private:
    void remove() const {
        std::error_code ignored;
        fs::remove_all(folder_, ignored);
    }
    std::string folder_;
};

std::vector<Clip> read_set(const std::string & folder) {
    const std::string path = (fs::path(folder) / "questions.jsonl").string();
    std::ifstream file(path);
    if (!file) throw Error("no questions.jsonl in '" + folder + "': make a set with vidkv data");
    std::vector<Clip> clips;
    std::map<std::string, size_t> index;
    int line_number = 0;
    for (std::string line; std::getline(file, line);) {
        ++line_number;
        const Json entry = Json::parse(line, nullptr, false);
        try {
            const std::string video = entry.at("video");
            const auto [at, added] = index.emplace(video, clips.size());
            if (added) clips.push_back({(fs::path(folder) / video).string(), {}});
            clips[at->second].questions.push_back(
                {entry.at("question"), entry.at("answer"), entry.at("type"), entry.at("candidates")});
        } catch (const Json::exception &) {
            throw Error("line " + std::to_string(line_number) + " of '" + path +
                        "' is not a question: make the set again with vidkv data");
        }
    }
    if (clips.empty()) throw Error("'" + path + "' holds no questions: make the set again with vidkv data");
    return clips;
}

struct Tally {
    int right = 0, asked = 0;
    void add(bool correct) {
        right += correct;
        ++asked;
    }
    double share() const { return asked > 0 ? static_cast<double>(right) / asked : 0; }
};

struct Result {
    std::string name;
    Tally all;
    std::map<std::string, Tally> by_type;
    std::map<int, Tally> by_candidates;
    double bytes = 0; // mean of a clip
    double true_bits = 0;
};

std::string normal(const std::string & answer) {
    const size_t first = answer.find_first_not_of(" \t\r\n"), last = answer.find_last_not_of(" \t\r\n.");
    std::string text = first == std::string::npos || last == std::string::npos || last < first
                           ? ""
                           : answer.substr(first, last - first + 1);
    std::transform(text.begin(), text.end(), text.begin(),
                   [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    return text;
}

class Evaluation {
  public:
    explicit Evaluation(const EvalOptions & options) : options_(options), progress_(options.json) {}

    void run(const std::vector<Clip> & clips);
    void print_table(size_t clips) const;
    void print_json(size_t clips) const;

  private:
    Result evaluate(const KvChoice & kv, const std::vector<Clip> & clips, const std::vector<EncodedVideo> & videos,
                    const std::string & stage);
    std::vector<EncodedVideo> encode_all(const Model & model, const std::vector<Clip> & clips, bool blank);

    const EvalOptions & options_;
    Progress progress_;
    std::vector<Result> results_;
    double blank_accuracy_ = 0;
    double visual_tokens_mean_ = 0;
};

std::vector<EncodedVideo> Evaluation::encode_all(const Model & model, const std::vector<Clip> & clips, bool blank) {
    WatchOptions watch = options_.common.watch_options(model);
    watch.sampling.blank = blank;
    std::vector<EncodedVideo> videos;
    Progress silent(true);
    for (const Clip & clip : clips) {
        progress_.show(blank ? "reading, blanked" : "reading", static_cast<int64_t>(videos.size()),
                       static_cast<int64_t>(clips.size()), "clips");
        videos.push_back(encode_video(model, clip.path, watch, silent));
    }
    return videos;
}

Result Evaluation::evaluate(const KvChoice & kv, const std::vector<Clip> & clips, const std::vector<EncodedVideo> & videos,
                            const std::string & stage) {
    const Model model(options_.common.model_options(), kv);
    Result result;
    result.name = kv.name;
    Progress silent(true);
    for (size_t i = 0; i < clips.size(); ++i) {
        progress_.show(stage, static_cast<int64_t>(i), static_cast<int64_t>(clips.size()), "clips");
        std::vector<std::string> questions;
        for (const Question & question : clips[i].questions) questions.push_back(question.text);
        Session session(model, kv, options_.common.session, videos[i].tokens, questions);
        session.prefill(videos[i], clips[i].path, silent);
        for (const Question & question : clips[i].questions) {
            const bool right = normal(session.ask(question.text, [](const std::string &) {})) == normal(question.answer);
            result.all.add(right);
            result.by_type[question.type].add(right);
            result.by_candidates[question.candidates].add(right);
        }
        const KvReport report = session.kv_report();
        result.bytes += static_cast<double>(report.bytes) / static_cast<double>(clips.size());
        result.true_bits = report.true_bits;
    }
    return result;
}

void Evaluation::run(const std::vector<Clip> & clips) {
    std::vector<KvChoice> choices;
    for (const std::string & name : options_.kv) choices.push_back(parse_kv(name));
    std::vector<EncodedVideo> videos, blank;
    {
        const Model model(options_.common.model_options(), choices.front());
        videos = encode_all(model, clips, false);
        blank = encode_all(model, clips, true);
    }
    for (const EncodedVideo & video : videos)
        visual_tokens_mean_ += static_cast<double>(video.visual_tokens) / static_cast<double>(videos.size());
    for (const KvChoice & kv : choices) results_.push_back(evaluate(kv, clips, videos, kv.name));
    blank_accuracy_ = evaluate(choices.front(), clips, blank, choices.front().name + ", blanked").all.share();
    progress_.clear();
}

void Evaluation::print_table(size_t clips) const {
    const Result & first = results_.front();
    std::printf("%zu clips, %d questions, %.0f visual tokens a clip; exact match in %%\n\n", clips, first.all.asked,
                visual_tokens_mean_);
    std::printf("%-16s %7s %7s", "preset", "all", "drop");
    for (const auto & [type, tally] : first.by_type) std::printf(" %7s", type.c_str());
    std::printf(" %10s %6s\n", "KV KiB", "bits");
    for (const Result & result : results_) {
        std::printf("%-16s %7.1f %7.1f", result.name.c_str(), 100 * result.all.share(),
                    100 * (first.all.share() - result.all.share()));
        for (const auto & [type, tally] : result.by_type) std::printf(" %7.1f", 100 * tally.share());
        std::printf(" %10.1f %6.2f\n", result.bytes / 1024, result.true_bits);
    }
    std::printf("\n%-16s", "candidates");
    for (const auto & [candidates, tally] : first.by_candidates) std::printf(" %7d", candidates);
    std::printf("\n");
    for (const Result & result : results_) {
        std::printf("%-16s", result.name.c_str());
        for (const auto & [candidates, tally] : result.by_candidates) std::printf(" %7.1f", 100 * tally.share());
        std::printf("\n");
    }
    std::printf("\nblanked video (%s): %.1f\n", first.name.c_str(), 100 * blank_accuracy_);
}

void Evaluation::print_json(size_t clips) const {
    Json presets = Json::array();
    for (const Result & result : results_) {
        Json types = Json::object(), candidates = Json::object();
        for (const auto & [type, tally] : result.by_type) types[type] = tally.share();
        for (const auto & [count, tally] : result.by_candidates) candidates[std::to_string(count)] = tally.share();
        presets.push_back({{"name", result.name},
                           {"accuracy", result.all.share()},
                           {"accuracy_by_type", types},
                           {"accuracy_by_candidates", candidates},
                           {"kv_bytes", static_cast<uint64_t>(result.bytes)},
                           {"true_bits", result.true_bits}});
    }
    const Json document = {{"clips", clips},
                           {"visual_tokens_mean", visual_tokens_mean_},
                           {"presets", presets},
                           {"blank_accuracy", blank_accuracy_}};
    std::cout << document.dump(2) << "\n";
}

void run_eval(const EvalOptions & options) {
    for (const std::string & name : options.kv) parse_kv(name); // before any clip is made
    capture_logs(options.common.verbose);
    std::unique_ptr<TemporarySet> made;
    if (options.folder.empty()) made = std::make_unique<TemporarySet>(options.data);
    const std::vector<Clip> clips = read_set(made ? made->folder() : options.folder);
    Evaluation evaluation(options);
    evaluation.run(clips);
    options.json ? evaluation.print_json(clips.size()) : evaluation.print_table(clips.size());
}

} // namespace

void add_eval_video(CLI::App & eval, Command & run) {
    auto options = std::make_shared<EvalOptions>();
    options->common.session.max_tokens = 16;
    CLI::App * video = eval.add_subcommand("video", "Accuracy of each preset on generated clips, by question type");
    options->common.add_model(*video);
    video
        ->add_option("--kv", options->kv,
                     "presets, separated by commas; drops are against the first (default f16,k2v2,k1.5v2,k1.5v1.58)")
        ->delimiter(',');
    add_data_options(*video, options->data);
    video->add_option("--data", options->folder, "a set made with vidkv data, instead of --seed, --split and --count");
    video->add_flag("--json", options->json, "print one JSON document instead of tables");
    video->callback([options, &run] { run = [options] { run_eval(*options); }; });
}

} // namespace vidkv::cli
