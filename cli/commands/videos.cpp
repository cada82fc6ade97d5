// vidkv videos.
#include <algorithm>
#include <cstdio>
#include <ctime>
#include <filesystem>
#include <iostream>
#include <memory>

#include <nlohmann/json.hpp>

#include "commands.h"
#include "engine/video_cache.h"
#include "error.h"
#include "progress.h"

namespace fs = std::filesystem;

namespace vidkv::cli {

namespace {

using Json = nlohmann::ordered_json;

std::string size_text(uint64_t bytes) {
    char text[32];
    const double mib = static_cast<double>(bytes) / (1 << 20);
    std::snprintf(text, sizeof(text), mib < 1024 ? "%.1f MiB" : "%.1f GiB", mib < 1024 ? mib : mib / 1024);
    return text;
}

std::string time_text(int64_t seconds) {
    const std::time_t time = seconds;
    std::tm local = {};
    char text[32] = "";
    if (localtime_r(&time, &local)) std::strftime(text, sizeof(text), "%Y-%m-%d %H:%M", &local);
    return text;
}

Json as_json(const KeptVideo & video) {
    Json files = Json::array();
    for (const WatchedFile & file : video.manifest.files) files.push_back(file.path);
    return {{"id", video.id},
            {"title", video.title()},
            {"videos", files},
            {"seconds", video.manifest.prefix.seconds},
            {"frames", video.manifest.prefix.frames},
            {"tokens", video.manifest.prefix.tokens},
            {"kv", video.manifest.kv},
            {"bytes", video.bytes},
            {"last_use", video.last_use},
            {"file", video.path}};
}

void list_videos(bool json) {
    const VideoCache cache;
    const std::vector<KeptVideo> videos = cache.videos();
    if (json) {
        Json all = Json::array();
        uint64_t bytes = 0;
        for (const KeptVideo & video : videos) {
            all.push_back(as_json(video));
            bytes += video.bytes;
        }
        const Json document = {{"folder", cache.folder().string()}, {"bytes", bytes}, {"videos", all}};
        std::cout << document.dump(2, ' ', false, Json::error_handler_t::replace) << "\n";
        return;
    }
    if (videos.empty()) return void(std::fprintf(stderr, "no videos in %s\n", cache.folder().c_str()));
    std::printf("%-8s  %-28s %10s %8s %-9s %10s  %s\n", "id", "title", "length", "tokens", "preset", "size", "last use");
    for (const KeptVideo & video : videos) {
        const VideoPrefix & prefix = video.manifest.prefix;
        std::printf("%-8.8s  %-28s %10s %8lld %-9s %10s  %s\n", video.id.c_str(),
                    video.manifest.kv.empty() ? "(damaged)" : video.title().c_str(), duration_text(prefix.seconds).c_str(),
                    static_cast<long long>(prefix.tokens), video.manifest.kv.c_str(), size_text(video.bytes).c_str(),
                    time_text(video.last_use).c_str());
    }
}

void say_removed(const KeptVideo & video) {
    std::fprintf(stderr, "removed %.8s %s (%s)\n", video.id.c_str(), video.title().c_str(), size_text(video.bytes).c_str());
}

// All names are looked up before anything is removed.
void remove_videos(const std::vector<std::string> & names) {
    const VideoCache cache;
    const std::vector<KeptVideo> videos = cache.videos();
    for (const std::string & name : names) {
        if (std::ranges::none_of(videos, [&](const KeptVideo & video) { return video.is_named(name); }))
            throw Error("no watched video '" + name + "': vidkv videos lists them");
    }
    for (const KeptVideo & video : videos) {
        const bool meant = std::ranges::any_of(names, [&](const std::string & name) { return video.is_named(name); });
        if (meant && cache.remove(video)) say_removed(video);
    }
}

void prune_videos(const std::string & size) {
    for (const KeptVideo & video : VideoCache().prune(parse_size(size, "--max-size"))) {
        std::fprintf(stderr, "removed %.8s (%s)\n", video.id.c_str(), size_text(video.bytes).c_str());
    }
}

struct VideosOptions {
    bool json = false;
    std::vector<std::string> names;
    std::string max_size;
};

} // namespace

void add_videos(CLI::App & app, Command & run) {
    auto options = std::make_shared<VideosOptions>();
    CLI::App * videos =
        app.add_subcommand("videos", "List the watched videos, which ask and chat go on with, or remove some");
    videos->add_flag("--json", options->json, "print one JSON document");
    videos->require_subcommand(0, 1);
    videos->footer(
        R"(What ask and chat have watched is kept in the folder videos of ~/.cache/vidkv, in packed pages, so that the next question
is answered at once: about the same video (unchanged: its size and time are looked at, then its bytes), with the same
model, preset, --fps, --frames, --start and --end. Those used longest ago are removed first.

EXAMPLES
  vidkv videos
  vidkv videos --json
  vidkv videos rm clip.mp4
  vidkv videos prune --max-size 2G
  vidkv videos prune --max-size 0)");
    videos->parse_complete_callback([options, &run] { run = [options] { list_videos(options->json); }; });
    CLI::App * remove = videos->add_subcommand("rm", "Remove watched videos");
    remove->add_option("NAME", options->names, "as the list has it: title, path, or the beginning of the id")->required();
    remove->footer("EXAMPLES\n  vidkv videos rm clip.mp4");
    CLI::App * prune = videos->add_subcommand("prune", "Remove those used longest ago");
    prune->add_option("--max-size", options->max_size, "until at most this much is left: 500M, 10G, 0")
        ->required()
        ->type_name("SIZE");
    prune->footer("EXAMPLES\n  vidkv videos prune --max-size 2G");
    remove->final_callback([options, &run] { run = [options] { remove_videos(options->names); }; });
    prune->final_callback([options, &run] { run = [options] { prune_videos(options->max_size); }; });
}

} // namespace vidkv::cli
