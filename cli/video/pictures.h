// Decoded pictures with their times, in the order they are shown.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "video/demuxer.h"
#include "video/ffmpeg.h"

namespace vidkv::cli {

struct Picture {
    FramePtr frame;
    double seconds = 0;  // when it is shown, from the start of the file
    double duration = 0; // how long, as far as the file tells
};

class Pictures {
  public:
    virtual ~Pictures() = default;

    // The next picture, or nothing at the end. wanted: pictures well before this time may be left out.
    virtual std::optional<Picture> next(double wanted) = 0;
    // What went wrong on the way, in FFmpeg's words; "": nothing did.
    virtual std::string damage() const = 0;
    // Transformation that the container asks for (rotation, mirroring): 9 numbers, or nothing.
    virtual const int32_t * display_matrix() const { return nullptr; }
    virtual int64_t decoded() const = 0; // packets given to a decoder
};

// Of a video stream. threads: of the decoder; seek: jump to what is wanted where that saves decoding.
std::unique_ptr<Pictures> pictures_of_video(std::unique_ptr<Demuxer> demuxer, int threads, bool seek);
// Of images that follow each other, each shown for so long.
std::unique_ptr<Pictures> pictures_of_images(const Source & source, double seconds_each);

} // namespace vidkv::cli
