// vidkv eval video: a generated set of clips through each codec.
#include <algorithm>
#include <cctype>
#include <cstdio>
#include <iostream>
#include <map>
#include <memory>

#include <nlohmann/json.hpp>

#include "eval/clip_set.h"
#include "eval/contender.h"
#include "measurements.h"
#include "eval/divergence.h"
#include "error.h"
#include "engine/logs.h"
#include "options.h"
#include "run_record.h"
#include "engine/saliency.h"

namespace vidkv::cli {

namespace {

using Json = nlohmann::ordered_json;

constexpr const char * FOOTER = R"(
Every question of a clip is asked by itself; an answer counts if it is the right one, word for word. "drop" is of the first
codec's share, and its standard error that of the same questions' differences. KLD is the mean KL
divergence, in nats, of the f16 cache's next-token distributions from the codec's, over the tokens of the f16 cache's answer.
Presets pack while the video is read, as they do for a user. Reference codecs (vidkv eval kl --help) are simulated: the
video is read at full precision, and their codec is applied then to all but the sink tokens and the residual window, which
favours them.
stock, q8_0 and q4_0 are llama.cpp's own caches here. -stp<share> and --protect take the visual tokens nearest to the questions.
all is every preset and reference codec.)";

struct EvalOptions {
    Options common;
    DataOptions data;
    std::string folder; // a set that exists already
    std::vector<std::string> kv = {"f16", "t2.2", "t1.65", "t1.15", "k1.5v1.58"};
    double protect = 0;
    bool json = false;
};

struct Tally {
    int right = 0, asked = 0;
    void add(bool correct) {
        right += correct;
        ++asked;
    }
    double share() const { return asked > 0 ? static_cast<double>(right) / asked : 0; }
};

struct Result {
    Contender contender;
    std::vector<double> right; // of each question, 0 or 1
    std::map<std::string, Tally> by_type;
    std::map<int, Tally> by_candidates;
    double bytes = 0; // mean per clip
    double true_bits = 0;
    std::vector<Divergence> answers; // of each question

    double accuracy() const { return estimate(right).mean; }
};

// How much less of the same questions is right, in their order.
Estimate drop(const Result & first, const Result & other) {
    std::vector<double> differences;
    for (size_t i = 0; i < first.right.size(); ++i) differences.push_back(first.right[i] - other.right[i]);
    return estimate(differences);
}

std::string normal(const std::string & answer) {
    const size_t first = answer.find_first_not_of(" \t\r\n"), last = answer.find_last_not_of(" \t\r\n.");
    std::string text = first == std::string::npos || last == std::string::npos || last < first
                           ? ""
                           : answer.substr(first, last - first + 1);
    std::transform(text.begin(), text.end(), text.begin(),
                   [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    return text;
}

// The f16 cache's answer to a question: its tokens and the distributions they were taken from.
struct Reference {
    std::vector<llama_token> tokens;
    std::vector<float> distributions;
};

class Evaluation {
  public:
    explicit Evaluation(const EvalOptions & options);

    void run(const std::vector<Clip> & clips);
    void print_table(size_t clips) const;
    void print_json(size_t clips) const;

  private:
    Session watch(const Contender & contender, const Clip & clip, const EncodedVideo & video) const;
    void evaluate(Result & result, const Clip & clip, const EncodedVideo & video,
                  std::vector<Reference> & references) const;
    EncodedVideo encode(const Clip & clip, bool blank) const;

    const EvalOptions & options_;
    Progress progress_;
    std::unique_ptr<Model> model_;
    std::vector<Result> results_;
    Result blank_;
    double visual_tokens_mean_ = 0;
    size_t clips_ = 1;
};

std::vector<Contender> chosen_contenders(const EvalOptions & options) {
    std::vector<Contender> contenders;
    for (const std::string & name : options.kv) {
        for (const std::string & each : name == "all" ? all_contender_names() : std::vector<std::string>{name}) {
            const bool stock = each == "q8_0" || each == "q4_0";
            contenders.push_back(stock ? Contender{each, parse_kv(each)} : parse_contender(each));
            Contender & contender = contenders.back();
            if (contender.reference && contender.reference->calibrated) {
                if (name != "all")
                    throw Error(each + " is calibrated on queries, which eval video does not keep: leave it out");
                contenders.pop_back();
                continue;
            }
            if (options.protect <= 0 || contender.reference || contender.kv.stock || each == "f16") continue;
            protect_share(contender.kv, options.protect);
            contender.name = contender.kv.name;
        }
    }
    return contenders;
}

Evaluation::Evaluation(const EvalOptions & options) : options_(options), progress_(options.json) {
    model_ = std::make_unique<Model>(options.common.model_options(), parse_kv("f16"));
    for (const Contender & contender : chosen_contenders(options)) {
        check_fits(contender.kv, *model_);
        results_.push_back({contender, {}, {}, {}, 0, 0, {}});
    }
    blank_.contender = results_.front().contender;
}

EncodedVideo Evaluation::encode(const Clip & clip, bool blank) const {
    Sampling sampling = options_.common.sampling(model_->options().files);
    sampling.blank = blank;
    Progress silent(true);
    return encode_videos(*model_, open_videos({clip.path}, sampling), options_.common.timestamp_seconds(model_->options()),
                         silent);
}

Session Evaluation::watch(const Contender & contender, const Clip & clip, const EncodedVideo & video) const {
    std::vector<std::string> questions;
    for (const Question & question : clip.questions) questions.push_back(question.text);
    Session session(*model_, contender.kv, options_.common.session, video.tokens, questions);
    std::vector<int64_t> cells;
    if (!contender.kv.stock && contender.kv.params.protect > 0)
        cells = salient_cells(*model_, video, questions, contender.kv.params.protect);
    Progress silent(true);
    session.prefill(video, clip.path, cells, silent);
    if (contender.reference) pack(contender, video.tokens, options_.common.session.threads);
    return session;
}

// references: filled by the first codec if empty, which is then f16.
void Evaluation::evaluate(Result & result, const Clip & clip, const EncodedVideo & video,
                          std::vector<Reference> & references) const {
    Session session = watch(result.contender, clip, video);
    const bool is_reference = references.empty();
    for (size_t i = 0; i < clip.questions.size(); ++i) {
        const Question & question = clip.questions[i];
        const bool right = normal(session.ask(question.text, [](const std::string &) {})) == normal(question.answer);
        result.right.push_back(right);
        result.by_type[question.type].add(right);
        result.by_candidates[question.candidates].add(right);
        if (is_reference) references.push_back({session.answer_tokens(), {}});
        Reference & reference = references[i];
        const std::vector<float> measured = session.answer_distributions(question.text, reference.tokens);
        if (is_reference) reference.distributions = measured;
        const int64_t vocabulary = llama_vocab_n_tokens(model_->vocab());
        const size_t compared = std::min(measured.size(), reference.distributions.size());
        Divergence & answer = result.answers.emplace_back();
        for (size_t at = 0; at < compared; at += static_cast<size_t>(vocabulary))
            answer.add(&reference.distributions[at], &measured[at], vocabulary);
    }
    const KvReport report = session.kv_report();
    const Packed packed = measure(result.contender, video.tokens, session.used());
    result.bytes +=
        static_cast<double>(result.contender.reference ? packed.bytes : report.bytes) / static_cast<double>(clips_);
    result.true_bits = result.contender.reference ? (packed.k_bits + packed.v_bits) / 2 : report.true_bits;
}

void Evaluation::run(const std::vector<Clip> & clips) {
    clips_ = clips.size();
    const auto steps = static_cast<int64_t>(clips.size() * (results_.size() + 1));
    int64_t step = 0;
    Result f16;
    f16.contender = parse_contender("f16");
    for (const Clip & clip : clips) {
        const EncodedVideo video = encode(clip, false);
        visual_tokens_mean_ += static_cast<double>(video.visual_tokens) / static_cast<double>(clips.size());
        std::vector<Reference> references, of_blank;
        if (results_.front().contender.name != "f16") evaluate(f16, clip, video, references);
        for (Result & result : results_) {
            progress_.show(result.contender.name, step++, steps, "steps");
            evaluate(result, clip, video, references);
        }
        progress_.show("blanked", step++, steps, "steps");
        evaluate(blank_, clip, encode(clip, true), of_blank);
    }
    progress_.clear();
}

void Evaluation::print_table(size_t clips) const {
    const Result & first = results_.front();
    std::printf("%zu clips, %zu questions, %.0f visual tokens per clip; exact match in %%; +-: standard errors\n\n", clips,
                first.right.size(), visual_tokens_mean_);
    std::printf("%-20s %7s %5s %7s %5s %8s %8s", "codec", "all", "+-", "drop", "+-", "KLD", "+-");
    for (const auto & [type, tally] : first.by_type) std::printf(" %7s", type.c_str());
    std::printf(" %10s %6s\n", "KV KiB", "bits");
    for (const Result & result : results_) {
        const Estimate right = estimate(result.right), lost = drop(first, result), kl = mean_kl(result.answers);
        std::printf("%-20s %7.1f %5.1f %7.1f %5.1f %8.4f %8.4f", result.contender.name.c_str(), 100 * right.mean,
                    100 * right.error, 100 * lost.mean, 100 * lost.error, kl.mean, kl.error);
        for (const auto & [type, tally] : result.by_type) std::printf(" %7.1f", 100 * tally.share());
        std::printf(" %10.1f %6.2f\n", result.bytes / 1024, result.true_bits);
    }
    std::printf("\n%-20s", "candidates");
    for (const auto & [candidates, tally] : first.by_candidates) std::printf(" %7d", candidates);
    std::printf("\n");
    for (const Result & result : results_) {
        std::printf("%-20s", result.contender.name.c_str());
        for (const auto & [candidates, tally] : result.by_candidates) std::printf(" %7.1f", 100 * tally.share());
        std::printf("\n");
    }
    std::printf("\nblanked video (%s): %.1f\n", first.contender.name.c_str(), 100 * blank_.accuracy());
}

void Evaluation::print_json(size_t clips) const {
    Json presets = Json::array();
    for (const Result & result : results_) {
        Json types = Json::object(), candidates = Json::object();
        for (const auto & [type, tally] : result.by_type) types[type] = tally.share();
        for (const auto & [count, tally] : result.by_candidates) candidates[std::to_string(count)] = tally.share();
        const Estimate right = estimate(result.right), lost = drop(results_.front(), result), kl = mean_kl(result.answers);
        presets.push_back({{"name", result.contender.name},
                           {"accuracy", right.mean},
                           {"accuracy_se", right.error},
                           {"drop", lost.mean},
                           {"drop_se", lost.error},
                           {"accuracy_by_type", types},
                           {"accuracy_by_candidates", candidates},
                           {"kld", kl.mean},
                           {"kld_se", kl.error},
                           {"kv_bytes", static_cast<uint64_t>(result.bytes)},
                           {"true_bits", result.true_bits}});
    }
    const Json document = {{"run", run_record()},
                           {"clips", clips},
                           {"questions", results_.front().right.size()},
                           {"visual_tokens_mean", visual_tokens_mean_},
                           {"presets", presets},
                           {"blank_accuracy", blank_.accuracy()}};
    std::cout << document.dump(2) << "\n";
}

void run_eval(const EvalOptions & options) {
    chosen_contenders(options); // before any clip is made
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
                     "codecs, separated by commas; drops are against the first (default f16,t2.2,t1.65,t1.15,k1.5v1.58)")
        ->delimiter(',');
    add_data_options(*video, options->data);
    video->add_option("--data", options->folder, "a set made with vidkv data, instead of --seed, --split and --count");
    video->add_option("--protect", options->protect, "share of the tokens that every preset protects, as -stp<share> does")
        ->check(CLI::Range(0.0, 0.5));
    video->footer(FOOTER);
    video->add_flag("--json", options->json, "print one JSON document instead of tables");
    video->callback([options, &run] { run = [options] { run_eval(*options); }; });
}

} // namespace vidkv::cli
