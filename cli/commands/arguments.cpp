#include "commands/arguments.h"

#include <algorithm>
#include <filesystem>

#include "error.h"
#include "video/source.h"

namespace vidkv::cli {

namespace {

// A file that is there, or something that no question looks like.
bool is_video(const std::string & argument) {
    std::error_code failed;
    return argument == "-" || is_url(argument) || fits_files(argument) || std::filesystem::exists(argument, failed);
}

bool looks_like_a_path(const std::string & argument) {
    if (argument.find_first_of(" \t\n") != std::string::npos) return false;
    return argument.find('/') != std::string::npos || has_media_ending(argument);
}

// No question may be the name of a file: it would be answered instead of watched.
void check_question(const std::string & question, const AskOptions & options) {
    if (!is_video(question) && !looks_like_a_path(question)) return;
    if (!options.load.empty())
        throw UsageError("'" + question + "' is a video, and --load-cache has its video: name no other");
    if (is_video(question)) throw UsageError("'" + question + "' is a video: name videos before questions");
    throw Error("no such file: '" + question + "' (if it is a question, put it after --)");
}

} // namespace

std::vector<std::string> name_questions(std::vector<std::string> arguments) {
    const auto dashes = std::ranges::find(arguments, "--");
    if (arguments.empty() || arguments.front() != "ask" || dashes == arguments.end()) return arguments;
    for (auto each = dashes + 1; each != arguments.end(); ++each) *each = "--question=" + *each;
    arguments.erase(dashes);
    return arguments;
}

void sort_arguments(AskOptions & options) {
    std::vector<std::string> & videos = options.videos;
    if (options.questions.empty()) {
        const auto first = videos.begin() + (options.load.empty() && !videos.empty() ? 1 : 0);
        const auto question = options.load.empty() ? std::find_if_not(first, videos.end(), is_video) : first;
        options.questions.assign(question, videos.end());
        videos.erase(question, videos.end());
        for (const std::string & each : options.questions) check_question(each, options);
    }
    if (!options.load.empty() && !videos.empty()) check_question(videos.front(), options);
    if (!options.load.empty() && !videos.empty()) throw UsageError("--load-cache has its video: name no other");
    if (options.load.empty() && videos.empty()) throw UsageError("a video is missing: vidkv ask VIDEO... QUESTION...");
    if (options.questions.empty()) {
        throw UsageError(videos.size() > 1
                             ? "a question is missing: '" + videos.back() + "' names a video; put questions after --"
                             : "a question is missing: vidkv ask VIDEO... QUESTION...");
    }
}

} // namespace vidkv::cli
