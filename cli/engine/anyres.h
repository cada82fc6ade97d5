// How LLaVA-OneVision sees one picture: whole, and again in tiles of a grid that suits its shape ("anyres").
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "engine/llava_onevision.h"
#include "video/frame.h"

namespace vidkv::cli {

// Embeddings of a picture: [height][width][channels].
struct Map {
    size_t height = 0, width = 0, channels = 0;
    std::vector<float> values;

    float * at(size_t y, size_t x) { return &values[(y * width + x) * channels]; }
    const float * at(size_t y, size_t x) const { return &values[(y * width + x) * channels]; }
};

// The grid in which most of the picture's pixels stay, and of those the one with the least room left over.
Size best_grid(const Frame & picture, const std::vector<Size> & grids);
// The picture as large as fits into the grid, black around it, cut into squares of `side` pixels, row by row.
std::vector<Frame> tiles_of(const Frame & picture, Size grid, uint32_t side);

// Tiles [columns a row] put together.
Map joined(const std::vector<Map> & tiles, size_t columns);
// Without what stands for the black around a picture of that size.
Map without_margins(const Map & map, Size picture);
// Bilinear between the centres of pixels.
Map resized(const Map & map, size_t height, size_t width);
// Smaller, with its shape kept, where it has more than about `most` embeddings.
Map at_most(Map map, size_t most);

} // namespace vidkv::cli
