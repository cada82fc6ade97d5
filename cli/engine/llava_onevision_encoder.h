// How LLaVA-OneVision sees a video: each frame squeezed into a square, its embeddings pooled to a quarter, one newline at the
// end; and one picture: whole and in tiles, nothing pooled, a newline after each row.
#pragma once

#include "engine/llava_onevision.h"
#include "engine/anyres.h"
#include "engine/encode.h"

namespace vidkv::cli {

// Puts videos together frame by frame: the start of the prompt, then what is added.
class LlavaOnevisionEncoder {
  public:
    // The model must be a LLaVA-OneVision (Model::llava_onevision).
    explicit LlavaOnevisionEncoder(const Model & model);

    void add_frame(const Frame & frame);
    void end_video();
    // One picture, and nothing else.
    void add_picture(const Frame & picture);
    EncodedVideo take() { return std::move(video_); }

  private:
    Map encode(const Frame & square) const;
    void add_embeddings(std::vector<float> rows);

    const Model & model_;
    const LlavaOnevision & own_;
    EncodedVideo video_;
};

// encode_videos for LLaVA-OneVision.
EncodedVideo encode_llava_onevision(const Model & model, const Readers & readers, Progress & progress);

} // namespace vidkv::cli
