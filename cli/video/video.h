// Video files as RGB frames, through the ffmpeg and ffprobe programs.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "subprocess.h"

namespace vidkv::cli {

struct VideoInfo {
    double seconds = 0; // 0: the file does not say
    double fps = 0;     // of the file; 0: it does not say
};

// Looks into the file; throws Error with one line if it is missing, empty, not a video, or has no picture.
VideoInfo probe_video(const std::string & path);

struct Frame {
    uint32_t width = 0, height = 0;
    std::vector<unsigned char> rgb; // [height][width][3]
};

struct Sampling {
    double fps = 4;              // frames taken per second
    int64_t max_frames = 0;      // 0: all; else at most this many, evenly over the video
    bool accept_damaged = false; // take what can be decoded of a broken file
    bool blank = false;          // frames of the same number and size with nothing on them
};

// Reads a video's frames in order.
class FrameReader {
  public:
    FrameReader(const std::string & path, const Sampling & sampling);

    // The next frame, or nothing at the end. Throws Error if the file turns out to be broken.
    std::optional<Frame> next();
    // Frames to come in all, as far as the file tells; 0 if it does not.
    int64_t expected() const { return expected_; }
    double fps() const { return fps_; }

  private:
    void start(const std::string & filter);
    std::optional<Frame> read_frame();
    std::optional<std::string> read_word();
    void check_complete();

    std::string path_;
    Sampling sampling_;
    VideoInfo info_;
    double fps_ = 0; // in effect
    int64_t expected_ = 0, taken_ = 0;
    bool single_ = false;
    std::unique_ptr<Subprocess> ffmpeg_;
};

} // namespace vidkv::cli
