// Animated WebP, which FFmpeg's libraries do not decode: libwebp does.
#pragma once

#include <memory>
#include <string>

#include "video/pictures.h"
#include "video/span.h"

namespace vidkv::cli {

struct Animation {
    Span span;
    std::unique_ptr<Pictures> pictures;
};

// Whether a file's header says so.
bool is_animated_webp(const std::string & path);
// Throws Error with one line if the file is cut off or is no such animation.
Animation open_animated_webp(const std::string & path);

} // namespace vidkv::cli
