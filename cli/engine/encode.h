// A video as the language model takes it: text tokens and embeddings of frames, in order.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "engine/model.h"
#include "progress.h"
#include "video/reader.h"

namespace vidkv::cli {

struct ChunkDeleter {
    void operator()(mtmd_input_chunk * chunk) const { mtmd_input_chunk_free(chunk); }
};

// Either tokens, or a frame (pair) with its embeddings: a chunk as libmtmd made it, or rows at positions that follow each other.
struct Piece {
    std::vector<llama_token> tokens;
    std::unique_ptr<mtmd_input_chunk, ChunkDeleter> chunk; // shape and positions only
    int64_t rows = 0;                                      // of embeddings without a chunk
    std::vector<float> embeddings;                         // [tokens of the chunk, or rows][n_embd]

    int64_t size() const;
    bool visual() const { return !embeddings.empty(); }
};

struct EncodedVideo {
    std::vector<Piece> pieces;
    int64_t frames = 0;
    int64_t visual_tokens = 0; // tokens that stand for pixels
    int64_t tokens = 0;        // these, and the text around them
    double seconds = 0;        // of each video, from its first frame to its last
    std::string pictures;      // fingerprint of all frames
};

using Readers = std::vector<std::unique_ptr<FrameReader>>;

// Opens videos, before a model is loaded: what cannot be read is found at once.
Readers open_videos(const std::vector<std::string> & names, const Sampling & sampling);
// Decodes the videos, one after the other, and encodes their frames, one pair (or frame) at a time.
EncodedVideo encode_videos(const Model & model, const Readers & readers, double timestamp_seconds, Progress & progress);

// The fingerprint that encode_videos gives, without encoding anything.
std::string pictures_of(const Readers & readers, double timestamp_seconds, Progress & progress);

} // namespace vidkv::cli
