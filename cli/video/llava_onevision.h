// How LLaVA-OneVision sees a video: each frame squeezed into a square, its embeddings pooled to a quarter, one newline at the end.
#pragma once

#include "engine/llava_onevision.h"
#include "video/encode.h"

namespace vidkv::cli {

// [from][from][width] -> [to][to][width], bilinear between the centres of pixels.
std::vector<float> pool_bilinear(const float * embeddings, size_t from, size_t to, size_t width);

// Puts videos together frame by frame: the start of the prompt, then what is added.
class LlavaOnevisionEncoder {
  public:
    // The model must be a LLaVA-OneVision (Model::llava_onevision).
    explicit LlavaOnevisionEncoder(const Model & model);

    void add_frame(const Frame & frame);
    void end_video();
    EncodedVideo take() { return std::move(video_); }

  private:
    void add_embeddings(std::vector<float> rows);

    const Model & model_;
    const LlavaOnevision & own_;
    EncodedVideo video_;
};

// encode_videos for LLaVA-OneVision.
EncodedVideo encode_llava_onevision(const Model & model, const Readers & readers, Progress & progress);

} // namespace vidkv::cli
