// vidkv frames: what ask shows to the model, without a model.
#include <cstdio>
#include <filesystem>
#include <iostream>
#include <memory>

#include <nlohmann/json.hpp>

#include "commands.h"
#include "error.h"
#include "options.h"
#include "video/png.h"

namespace fs = std::filesystem;

namespace vidkv::cli {

namespace {

using Json = nlohmann::ordered_json;

struct FramesOptions {
    Options common;
    std::vector<std::string> videos;
    std::string out;
    bool json = false;
};

std::string file_name(int64_t number) {
    char text[32];
    std::snprintf(text, sizeof(text), "frame-%05lld.png", static_cast<long long>(number));
    return text;
}

void make_folder(const std::string & folder) {
    std::error_code failed;
    fs::create_directories(folder, failed);
    if (failed) throw Error("cannot make the folder '" + folder + "' (" + failed.message() + ")");
}

Json describe(const Frame & frame, const std::string & video) {
    return {{"video", video}, {"seconds", frame.seconds}, {"width", frame.width}, {"height", frame.height}};
}

void run_frames(const FramesOptions & options) {
    const Readers readers = open_videos(options.videos, options.common.sampling());
    if (!options.out.empty()) make_folder(options.out);
    Progress progress(options.json);
    Json frames = Json::array();
    int64_t decoded = 0;
    for (const auto & reader : readers) {
        while (const std::optional<Frame> frame = reader->next()) {
            Json entry = describe(*frame, reader->name());
            if (!options.out.empty()) {
                entry["file"] = (fs::path(options.out) / file_name(static_cast<int64_t>(frames.size()))).string();
                write_png(*frame, entry["file"]);
            }
            if (!options.json) std::printf("%10.3f s  %ux%u\n", frame->seconds, frame->width, frame->height);
            frames.push_back(std::move(entry));
        }
        decoded += reader->decoded();
    }
    if (options.json) {
        const Json document = {{"frames", frames}, {"packets_decoded", decoded}};
        std::cout << document.dump(2, ' ', false, Json::error_handler_t::replace) << "\n";
    }
}

} // namespace

void add_frames(CLI::App & app, Command & run) {
    auto options = std::make_shared<FramesOptions>();
    CLI::App * frames = app.add_subcommand("frames", "List or write the frames that ask would show to a model");
    frames->add_option("VIDEO", options->videos, "video files, URLs, folders of images, or - for standard input")
        ->required();
    options->common.add_sampling(*frames);
    frames->add_option("--out", options->out, "write them into this folder, as frame-00000.png ...");
    frames->add_flag("--json", options->json, "print one JSON document instead of text");
    frames->callback([options, &run] { run = [options] { run_frames(*options); }; });
}

} // namespace vidkv::cli
