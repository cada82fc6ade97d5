// vidkv chat.
#include <iostream>
#include <memory>

#include <unistd.h>

#include "commands.h"
#include "commands/watch.h"
#include "engine/logs.h"
#include "error.h"
#include "interrupt.h"

namespace vidkv::cli {

namespace {

constexpr int CHAT_QUESTION_TOKENS = 512; // room for a question that is not known yet

// One line of standard input; false at its end.
bool read_question(std::string & line) {
    if (isatty(STDIN_FILENO)) std::cerr << "> " << std::flush;
    const bool got = static_cast<bool>(std::getline(std::cin, line));
    check_interrupt();
    line = trim(line);
    return got && line != "/quit" && line != "/exit";
}

void run_chat(AskOptions & options) {
    if (options.load.empty() == options.video.empty()) throw UsageError("name either a VIDEO or --load-cache FILE");
    capture_logs(options.common.verbose);
    Progress progress(false);
    options.common.session.spare_tokens = CHAT_QUESTION_TOKENS;
    const Watched watched = watch(options, {""}, progress);
    if (isatty(STDIN_FILENO)) std::cerr << "Ask about the video. Each question stands alone; /quit or Ctrl-D ends.\n";
    for (std::string line; read_question(line);)
        if (!line.empty()) stream_answer(*watched.session, line);
    print_summary(*watched.session, options.kv().name);
}

} // namespace

void add_chat(CLI::App & app, Command & run) {
    auto options = std::make_shared<AskOptions>();
    CLI::App * chat = app.add_subcommand("chat", "Keep asking about a video file, one question per line");
    chat->add_option("VIDEO", options->video, "the video file");
    add_shared(*chat, *options);
    chat->add_option("--save-cache", options->save, "keep the video's cache in this file, for --load-cache");
    chat->callback([options, &run] { run = [options] { run_chat(*options); }; });
}

} // namespace vidkv::cli
