// What models/convert_llava_onevision writes into an mmproj beside what libmtmd reads.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace vidkv::cli {

struct Size {
    uint32_t height = 0, width = 0;
};

struct LlavaOnevision {
    uint32_t frames = 0;                      // of a video, where nothing else is asked for
    uint32_t frame_pixels = 0;                // a side
    uint32_t frame_side = 0, pooled_side = 0; // embeddings a side: what libmtmd gives, and what the language model takes
    std::string prompt_before, prompt_between, prompt_after; // up to the video, up to the question, up to the answer
    std::vector<float> newline; // the embedding that ends a video, or a row of a picture's tiles
    std::vector<Size> grids;    // in pixels, for the tiles of one picture; empty: it is taken as a video of one frame
    uint32_t most_tiles = 0;    // of a picture; what has more is made smaller
};

// Nothing if the mmproj is of another model. Throws Error if the file is cut off or does not fit together.
std::optional<LlavaOnevision> read_llava_onevision(const std::string & mmproj);

} // namespace vidkv::cli
