// vidkv ask.
#include <iostream>
#include <memory>

#include <nlohmann/json.hpp>

#include "commands.h"
#include "commands/arguments.h"
#include "commands/watch.h"
#include "engine/logs.h"
#include "error.h"
#include "text.h"

namespace vidkv::cli {

namespace {

using Json = nlohmann::ordered_json;

constexpr const char * FOOTER =
    R"(vidkv ask VIDEO... QUESTION...     vidkv ask VIDEO... -- QUESTION...     vidkv ask VIDEO... -q QUESTION
Videos come first, then questions. What follows -- is a question, and so is the value of -q; with neither, the first
argument is a video, and so are those after it that name a file, a folder, a URL, a pattern (*.png) or -. A question
that looks like the name of a missing file (clip2.mp4, a/b) is refused: put it after --.

EXAMPLES
  vidkv ask clip.mp4 "What colour is the circle?"
  vidkv ask clip.mp4 "First question" "Second question" --json
  vidkv ask before.mp4 after.mp4 -- "What has changed?"
  vidkv ask talk.mp4 "What is on the board?" --start 12:00 --end 15:30 --frames 32
  curl -s https://example.org/clip.webm | vidkv ask - "What happens?"
  vidkv ask clip.mp4 "What happens?" -m Qwen2.5-VL-7B.gguf --mmproj mmproj.gguf --frames 64
  vidkv ask clip.mp4 "What happens?" -hf ggml-org/Qwen2.5-VL-3B-Instruct-GGUF:Q4_K_M
  vidkv ask clip.mp4 "First question" --save-cache clip.vidkv
  vidkv ask --load-cache clip.vidkv "Second question")";

void print_report(const Watched & watched, const Json & answers) {
    const Session & session = *watched.session;
    const VideoPrefix & prefix = session.prefix();
    const KvReport report = session.kv_report();
    const Json document = {{"video", prefix.video},
                           {"frames", prefix.frames},
                           {"visual_tokens", prefix.visual_tokens},
                           {"kv", watched.kv.name},
                           {"kv_bytes", report.bytes},
                           {"kv_bytes_f16", report.bytes_f16},
                           {"true_bits", report.true_bits},
                           {"tokens_per_s", session.tokens_per_second()},
                           {"read_s", watched.read_seconds},
                           {"prefill_s", session.prefill_seconds()},
                           {"decode_s", session.decode_seconds()},
                           {"tokens", session.generated()},
                           {"packed", report.packed},
                           {"peak_bytes", peak_bytes()},
                           {"watched_before", watched.from_cache},
                           {"answers", answers}};
    std::cout << document.dump(2, ' ', false, Json::error_handler_t::replace) << "\n";
}

// One answer on standard output, as it grows.
void stream_answer(Session & session, const std::string & question) {
    session.ask(question, [](const std::string & text) { std::cout << text << std::flush; });
    std::cout << std::endl;
}

void run_ask(AskOptions options) {
    sort_arguments(options);
    const std::vector<std::string> & questions = options.questions;
    for (const std::string & question : questions)
        if (trim(question).empty()) throw UsageError("a question is empty");
    capture_logs(options.common.verbose);
    Progress progress(options.json);
    const Watched watched = watch(options, questions, progress);
    Json answers = Json::array();
    for (const std::string & question : questions) {
        if (options.json) {
            answers.push_back(
                {{"question", question}, {"answer", trim(watched.session->ask(question, [](const std::string &) {}))}});
            continue;
        }
        if (questions.size() > 1) std::cout << question << " ";
        stream_answer(*watched.session, question);
    }
    if (options.json) print_report(watched, answers);
    if (!options.json) print_summary(watched);
}

} // namespace

void add_ask(CLI::App & app, Command & run) {
    auto options = std::make_shared<AskOptions>();
    CLI::App * ask = app.add_subcommand("ask", "Answer questions about a video file");
    ask->add_option("VIDEO", options->videos,
                    "video files, URLs, folders of images, or - for standard input; then the questions")
        ->type_name("QUESTION...");
    ask->add_option("-q,--question", options->questions, "a question; may be given again")->allow_extra_args(false);
    add_shared(*ask, *options);
    ask->add_option("--save-cache", options->save, "keep the video's cache in this file, for --load-cache")
        ->type_name("FILE");
    ask->add_flag("--json", options->json, "print one JSON document instead of text");
    ask->footer(FOOTER);
    ask->callback([options, &run] { run = [options] { run_ask(*options); }; });
}

} // namespace vidkv::cli
