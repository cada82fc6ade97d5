// Decoded pictures to RGB as a screen would show them: any pixel format, upright, with square pixels, no interlacing, no
// HDR.
#pragma once

#include <string>

#include "video/ffmpeg.h"
#include "video/frame.h"

namespace vidkv::cli {

class Converter {
  public:
    // matrix: the container's transformation, used where the picture has none of its own; or nullptr.
    Frame convert(const AVFrame & picture, const int32_t * matrix);

  private:
    void rebuild(const AVFrame & picture, const std::string & filters);

    FilterGraph graph_;
    AVFilterContext * in_ = nullptr;
    AVFilterContext * out_ = nullptr;
    std::string built_for_;
    int64_t fed_ = 0;
};

} // namespace vidkv::cli
