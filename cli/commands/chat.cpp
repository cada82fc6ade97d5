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

constexpr const char * HELP = R"(/stats      what the cache holds, and how long it took
/save FILE  keep the video and the conversation, for --load-cache
/clear      forget the conversation, keep the video
/exit       end; /quit and Ctrl-D too
Anything else is a question about the video. Earlier turns are remembered.
)";

void answer(Session & session, const std::string & question) {
    bool forgot = false;
    session.ask_next(
        question, [](const std::string & text) { std::cout << text << std::flush; }, forgot);
    std::cout << std::endl;
    if (forgot) std::fputs("(the context was full: earlier turns are forgotten; -c makes more room)\n", stderr);
}

// A conversation goes on after a file that could not be written.
void save(const Watched & watched, const std::string & path) {
    try {
        if (path.empty()) throw Error("/save takes the name of a file");
        watched.save(path);
        std::fprintf(stderr, "saved: vidkv chat --load-cache '%s' goes on from here\n", path.c_str());
    } catch (const Error & error) {
        std::fprintf(stderr, "%s\n", error.what());
    }
}

// A line that begins with a slash. False: end.
bool obey(const std::string & line, Watched & watched) {
    const std::string command = line.substr(0, line.find(' '));
    if (command == "/exit" || command == "/quit") return false;
    if (command == "/help")
        std::fputs(HELP, stderr);
    else if (command == "/stats")
        print_summary(watched);
    else if (command == "/save")
        save(watched, trim(line.substr(command.size())));
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
    const size_t earlier = watched.session->turns();
    if (earlier > 0)
        std::fprintf(stderr, "%zu earlier question%s remembered; /clear forgets them.\n", earlier,
                     earlier > 1 ? "s are" : " is");
    if (lines.at_terminal()) std::fputs("Ask about the video. /help lists the commands; Ctrl-D ends.\n", stderr);
    for (std::string line; lines.read(line);) {
        line = trim(line);
        if (line.empty()) continue;
        if (!line.starts_with("/"))
            answer(*watched.session, line);
        else if (!obey(line, watched))
            break;
    }
    if (!options.save.empty()) watched.save(options.save);
    print_summary(watched);
}

} // namespace

void add_chat(CLI::App & app, Command & run) {
    auto options = std::make_shared<AskOptions>();
    CLI::App * chat = app.add_subcommand("chat", "Talk about a video file, one question per line");
    chat->add_option("VIDEO", options->videos, "video files, URLs or folders of images");
    add_shared(*chat, *options);
    chat->add_option("--save-cache", options->save, "keep the video and the conversation in this file, for --load-cache")
        ->type_name("FILE");
    chat->footer(R"(EXAMPLES
  vidkv chat clip.mp4
  vidkv chat --load-cache clip.vidkv
  printf 'What colour is the circle?\nAnd the square?\n' | vidkv chat clip.mp4)");
    chat->callback([options, &run] { run = [options] { run_chat(*options); }; });
}

} // namespace vidkv::cli
