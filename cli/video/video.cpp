#include "video/video.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include <nlohmann/json.hpp>

#include "error.h"

namespace fs = std::filesystem;
using nlohmann::json;

namespace vidkv::cli {

namespace {

constexpr unsigned char BLANK_LEVEL = 25;
constexpr size_t MAX_WORD = 20;

// ffmpeg's own words without the "[demuxer @ 0x...]" in front and the file name.
std::string first_complaint(const std::string & text, const std::string & path) {
    std::string line = text.substr(0, text.find('\n'));
    if (line.starts_with("[")) line.erase(0, line.find("] ") == std::string::npos ? 0 : line.find("] ") + 2);
    const std::string name = "file:" + path + ": ";
    if (line.starts_with(name)) line.erase(0, name.size());
    return line;
}

void check_file(const std::string & path) {
    std::error_code failed;
    if (!fs::exists(path, failed)) throw Error("no such file: '" + path + "'");
    if (fs::is_directory(path, failed)) throw Error("'" + path + "' is a folder: name a video file");
    if (fs::is_regular_file(path, failed) && fs::file_size(path, failed) == 0)
        throw Error("'" + path + "' is empty (0 bytes): get the file again");
    if (!std::ifstream(path)) throw Error("'" + path + "' cannot be read: check its permissions");
}

double number(const json & object, const char * key) {
    const auto found = object.find(key);
    return found != object.end() && found->is_string() ? std::atof(found->get<std::string>().c_str()) : 0;
}

double rational(const json & object, const char * key) {
    const auto found = object.find(key);
    if (found == object.end() || !found->is_string()) return 0;
    const std::string text = *found;
    const size_t slash = text.find('/');
    const double below = slash == std::string::npos ? 1 : std::atof(text.c_str() + slash + 1);
    return below > 0 ? std::atof(text.c_str()) / below : 0;
}

// A cover picture in a sound file is no video.
bool is_picture_stream(const json & stream) {
    return stream.value("codec_type", "") == "video" &&
           (!stream.contains("disposition") || stream["disposition"].value("attached_pic", 0) == 0);
}

} // namespace

VideoInfo probe_video(const std::string & path) {
    check_file(path);
    Subprocess ffprobe({"ffprobe", "-v", "error", "-of", "json", "-show_format", "-show_streams", "file:" + path});
    const std::string text = ffprobe.read_all();
    const int status = ffprobe.wait();
    const json report = json::parse(text, nullptr, false);
    if (status != 0 || !report.is_object() || !report.contains("streams")) {
        throw Error("'" + path + "' is not a video that ffmpeg can read, or it is cut off (" +
                    first_complaint(ffprobe.complaints(), path) + ")");
    }
    const json format = report.value("format", json::object());
    if (format.value("format_name", "") == "tty") throw Error("'" + path + "' is a text file: name a video file");
    for (const json & stream : report["streams"]) {
        if (!is_picture_stream(stream)) continue;
        VideoInfo info;
        info.seconds = number(stream, "duration") > 0 ? number(stream, "duration") : number(format, "duration");
        info.fps = rational(stream, "avg_frame_rate");
        return info;
    }
    throw Error("'" + path + "' has no video stream, only sound or data: name a video file");
}

FrameReader::FrameReader(const std::string & path, const Sampling & sampling)
    : path_(path), sampling_(sampling), info_(probe_video(path)), fps_(sampling.fps) {
    if (sampling.max_frames > 0 && info_.seconds > 0)
        fps_ = std::min(fps_, static_cast<double>(sampling.max_frames) / info_.seconds);
    expected_ = static_cast<int64_t>(std::llround(info_.seconds * fps_));
    if (sampling.max_frames > 0) expected_ = std::min(expected_, sampling.max_frames);
    start("fps=" + std::to_string(fps_));
}

// PPM frames carry their size, which rotation or odd pixels may change.
void FrameReader::start(const std::string & filter) {
    ffmpeg_ = std::make_unique<Subprocess>(std::vector<std::string>{"ffmpeg", "-nostdin", "-loglevel", "error", "-i",
                                                                    "file:" + path_, "-map", "0:V:0", "-vf", filter, "-f",
                                                                    "image2pipe", "-c:v", "ppm", "pipe:1"});
}

std::optional<Frame> FrameReader::next() {
    if (sampling_.max_frames > 0 && taken_ >= sampling_.max_frames) return std::nullopt;
    std::optional<Frame> frame = read_frame();
    if (!frame && taken_ == 0 && !single_) { // a still picture, or a clip shorter than one frame's time
        single_ = true;
        start("select=eq(n\\,0)");
        frame = read_frame();
    }
    if (!frame) {
        check_complete();
        return std::nullopt;
    }
    ++taken_;
    if (sampling_.blank) std::fill(frame->rgb.begin(), frame->rgb.end(), BLANK_LEVEL);
    return frame;
}

// One word of a PPM header.
std::optional<std::string> FrameReader::read_word() {
    std::string word;
    for (char c; word.size() < MAX_WORD;) {
        if (ffmpeg_->read(&c, 1) == 0) return std::nullopt;
        if (c == ' ' || c == '\n') return word;
        word += c;
    }
    return std::nullopt;
}

std::optional<Frame> FrameReader::read_frame() {
    const auto magic = read_word(), width = read_word(), height = read_word(), depth = read_word();
    if (!magic || *magic != "P6" || !width || !height || !depth) return std::nullopt;
    Frame frame;
    frame.width = static_cast<uint32_t>(std::atoi(width->c_str()));
    frame.height = static_cast<uint32_t>(std::atoi(height->c_str()));
    frame.rgb.resize(size_t(3) * frame.width * frame.height);
    for (size_t at = 0; at < frame.rgb.size();) {
        const size_t got = ffmpeg_->read(frame.rgb.data() + at, frame.rgb.size() - at);
        if (got == 0) return std::nullopt;
        at += got;
    }
    return frame;
}

// At the end of the stream: did ffmpeg get through the whole file?
void FrameReader::check_complete() {
    const int status = ffmpeg_->wait();
    const std::string complaint = first_complaint(ffmpeg_->complaints(), path_);
    if (taken_ == 0) {
        throw Error("no frame of '" + path_ + "' can be decoded (" + (complaint.empty() ? "no picture in it" : complaint) +
                    ")");
    }
    if (sampling_.accept_damaged) return;
    const bool cut = expected_ > 4 && taken_ < expected_ * 9 / 10 - 1;
    if (status == 0 && complaint.empty() && !cut) return;
    throw Error("'" + path_ + "' is cut off or damaged: " + std::to_string(taken_) + " of about " +
                std::to_string(std::max(taken_, expected_)) + " frames decoded" +
                (complaint.empty() ? "" : " (" + complaint + ")") + "; get the whole file, or use --accept-damaged");
}

} // namespace vidkv::cli
