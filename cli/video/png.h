// Frames as PNG files.
#pragma once

#include <string>

#include "video/frame.h"

namespace vidkv::cli {

// Writes beside the file first and renames, so that no half a file is left. Throws Error if that fails.
void write_png(const Frame & frame, const std::string & path);

} // namespace vidkv::cli
