#include "video/source.h"

#include <algorithm>
#include <cctype>
#include <cstring>
#include <filesystem>
#include <fstream>

#include <glob.h>
#include <unistd.h>

#include "error.h"

extern "C" {
#include <libavformat/avformat.h>
#include <libavformat/avio.h>
}

namespace fs = std::filesystem;

namespace vidkv::cli {

// By FFmpeg's own list of endings.
bool is_image_name(const std::string & name) {
    const AVOutputFormat * images = av_guess_format("image2", nullptr, nullptr);
    return images && images->extensions && av_match_ext(name.c_str(), (std::string(images->extensions) + ",webp").c_str());
}

namespace {

bool is_image(const fs::path & path) {
    std::error_code failed;
    return fs::is_regular_file(path, failed) && is_image_name(path.filename().string());
}

// "frame9" before "frame10".
bool before(const std::string & a, const std::string & b) { return strverscmp(a.c_str(), b.c_str()) < 0; }

Source images_of_folder(const std::string & folder) {
    Source source{Source::IMAGES, folder, {}};
    std::error_code failed;
    for (const auto & entry : fs::directory_iterator(folder, failed))
        if (is_image(entry.path())) source.images.push_back(entry.path().string());
    if (failed) throw Error("the folder '" + folder + "' cannot be read: check its permissions");
    if (source.images.empty()) throw Error("'" + folder + "' is a folder without images: name a video file");
    std::ranges::sort(source.images, before);
    return source;
}

std::vector<std::string> files_that_fit(const std::string & pattern) {
    glob_t found = {};
    std::vector<std::string> files;
    if (glob(pattern.c_str(), 0, nullptr, &found) == 0) files.assign(found.gl_pathv, found.gl_pathv + found.gl_pathc);
    globfree(&found);
    return files;
}

Source images_of_pattern(const std::string & pattern) {
    Source source{Source::IMAGES, pattern, files_that_fit(pattern)};
    if (source.images.size() == 1) return find_source(source.images.front());
    for (const std::string & path : source.images)
        if (!is_image(path))
            throw Error("'" + pattern + "' fits '" + path + "', which is no image: name videos one by one");
    std::ranges::sort(source.images, before);
    return source;
}

void check_protocol(const std::string & url) {
    const char * name = avio_find_protocol_name(url.c_str());
    const std::string scheme = url.substr(0, url.find(':'));
    if (!name && scheme != "rtsp" && scheme != "rtsps")
        throw Error("'" + url + "': the FFmpeg at hand does not know " + scheme + "://");
}

} // namespace

bool is_url(const std::string & argument) {
    const size_t colon = argument.find("://");
    if (colon == std::string::npos || colon < 2) return false;
    return std::all_of(argument.begin(), argument.begin() + static_cast<std::ptrdiff_t>(colon),
                       [](unsigned char c) { return std::isalnum(c) || c == '+' || c == '-' || c == '.'; });
}

bool fits_files(const std::string & argument) {
    return argument.find_first_of("*?[") != std::string::npos && !files_that_fit(argument).empty();
}

bool has_media_ending(const std::string & argument) {
    if (is_image_name(argument)) return true;
    void * state = nullptr;
    while (const AVInputFormat * format = av_demuxer_iterate(&state))
        if (format->extensions && av_match_ext(argument.c_str(), format->extensions)) return true;
    return false;
}

Source find_source(const std::string & argument) {
    if (argument == "-") {
        if (isatty(STDIN_FILENO)) throw Error("standard input is a terminal: send a video into it, or name a file");
        return {Source::PIPE, argument, {}};
    }
    std::error_code failed;
    if (!fs::exists(argument, failed)) {
        if (is_url(argument)) {
            check_protocol(argument);
            return {Source::URL, argument, {}};
        }
        if (fits_files(argument)) return images_of_pattern(argument);
        throw Error("no such file: '" + argument + "'");
    }
    if (fs::is_directory(argument, failed)) return images_of_folder(argument);
    if (!fs::is_regular_file(argument, failed)) return {Source::PIPE, argument, {}};
    if (fs::file_size(argument, failed) == 0) throw Error("'" + argument + "' is empty (0 bytes): get the file again");
    if (!std::ifstream(argument)) throw Error("'" + argument + "' cannot be read: check its permissions");
    return {Source::FILE, argument, {}};
}

} // namespace vidkv::cli
