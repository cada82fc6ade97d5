// vidkv chat.
#include <algorithm>
#include <cstdio>
#include <iostream>
#include <memory>

#include "commands.h"
#include "commands/watch.h"
#include "engine/logs.h"
#include "error.h"
#include "line_editor.h"
#include "text.h"

namespace vidkv::cli {

namespace {

constexpr int QUESTION_TOKENS = 512;      // room for a question that is not known yet
constexpr int CONVERSATION_TOKENS = 8192; // and for the turns before it, unless -c says how much

constexpr const char * HELP = R"(/stats   what the cache holds, and how long it took
/clear   forget the conversation, keep the video
/exit    end; /quit and Ctrl-D too
Anything else is a question about the video. Earlier turns are remembered.
)";

void answer(Session & session, const std::string & question) {
    bool forgot = false;
    session.ask_next(
        question, [](const std::string & text) { std::cout << text << std::flush; }, forgot);
    std::cout << std::endl;
    if (forgot) std::fputs("(the context was full: earlier turns are forgotten; -c makes more room)\n", stderr);
}

// A line that begins with a slash. False: end.
bool obey(const std::string & command, Watched & watched) {
    if (command == "/exit" || command == "/quit") return false;
    if (command == "/help")
        std::fputs(HELP, stderr);
    else if (command == "/stats")
        print_summary(watched);
    else if (command == "/clear")
        watched.session->forget_turns();
    else
        std::fprintf(stderr, "no command %s: /help lists them\n", command.c_str());
    return true;
}

void run_chat(AskOptions & options) {
    if (options.load.empty() == options.videos.empty()) throw UsageError("name either a VIDEO or --load-cache FILE");
    if (std::ranges::count(options.videos, "-") > 0)
        throw UsageError("standard input brings the questions: name a video file");
    capture_logs(options.common.verbose);
    Progress progress(false);
    options.common.session.spare_tokens = QUESTION_TOKENS;
    options.common.session.conversation_tokens = CONVERSATION_TOKENS;
    Watched watched = watch(options, {""}, progress);
    LineEditor lines("> ");
    if (lines.at_terminal()) std::fputs("Ask about the video. /help lists the commands; Ctrl-D ends.\n", stderr);
    for (std::string line; lines.read(line);) {
        line = trim(line);
        if (line.empty()) continue;
        if (!line.starts_with("/"))
            answer(*watched.session, line);
        else if (!obey(line, watched))
            break;
    }
    print_summary(watched);
}

} // namespace

void add_chat(CLI::App & app, Command & run) {
    auto options = std::make_shared<AskOptions>();
    CLI::App * chat = app.add_subcommand("chat", "Talk about a video file, one question per line");
    chat->add_option("VIDEO", options->videos, "video files, URLs or folders of images");
    add_shared(*chat, *options);
    chat->add_option("--save-cache", options->save, "keep the video's cache in this file, for --load-cache");
    chat->footer(R"(EXAMPLES
  vidkv chat clip.mp4
  vidkv chat --load-cache clip.cache
  printf 'What colour is the circle?\nAnd the square?\n' | vidkv chat clip.mp4)");
    chat->callback([options, &run] { run = [options] { run_chat(*options); }; });
}

} // namespace vidkv::cli
