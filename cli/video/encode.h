// A video as the language model takes it: text tokens and embeddings of frames, in order.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "engine/model.h"
#include "progress.h"
#include "video/video.h"

namespace vidkv::cli {

struct ChunkDeleter {
    void operator()(mtmd_input_chunk * chunk) const { mtmd_input_chunk_free(chunk); }
};

// Either tokens, or a frame (pair) with its embeddings.
struct Piece {
    std::vector<llama_token> tokens;
    std::unique_ptr<mtmd_input_chunk, ChunkDeleter> chunk; // shape and positions only
    std::vector<float> embeddings;                         // [tokens of the chunk][n_embd]

    int64_t size() const;
};

struct EncodedVideo {
    std::vector<Piece> pieces;
    int64_t frames = 0;
    int64_t visual_tokens = 0; // tokens that stand for pixels
    int64_t tokens = 0;        // these, and the text around them
};

struct WatchOptions {
    Sampling sampling;
    double timestamp_seconds = 0; // a time stamp as text every so often; 0: none
};

// Decodes the video and encodes its frames, one pair (or frame) at a time.
EncodedVideo encode_video(const Model & model, const std::string & path, const WatchOptions & options, Progress & progress);

} // namespace vidkv::cli
