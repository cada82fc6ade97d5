// A frame in another size, as Pillow and torchvision do it.
#pragma once

#include <cstdint>

#include "video/frame.h"

namespace vidkv::cli {

// Bicubic (a = -0.5), wider where the frame shrinks so that nothing aliases; the ratio of the sides is not kept.
Frame resize_bicubic(const Frame & frame, uint32_t width, uint32_t height);

} // namespace vidkv::cli
