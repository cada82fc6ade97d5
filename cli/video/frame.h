// A picture as vision towers take it.
#pragma once

#include <cstdint>
#include <vector>

namespace vidkv::cli {

struct Frame {
    uint32_t width = 0, height = 0;
    std::vector<unsigned char> rgb; // [height][width][3]
    double seconds = 0;             // when the video shows it
};

} // namespace vidkv::cli
