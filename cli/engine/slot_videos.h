// Videos that were watched before, offered to llama-server as slot files by name.
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "engine/model.h"
#include "engine/video_cache.h"

namespace vidkv::cli {

// How the server has to take pictures from the videos, so that it knows them again.
struct ServedSampling {
    double fps = 0, timestamps = -1; // 0, < 0: its usual
    int frame_tokens = 0;            // 0: its usual

    bool operator==(const ServedSampling & other) const = default;
};

// A slot file in the server's folder, and a link to the video in the folder that its requests may name. Removed again with this
// object, unless the server has saved something else under that name.
class SlotVideo {
  public:
    // Throws Error with one line where there is no such video of this model and preset, it was changed since, or the server cannot
    // take it as it was taken.
    SlotVideo(const VideoCache & cache, const std::string & name, const ModelFiles & model, const std::string & kv,
              int threads, const std::filesystem::path & slots, const std::filesystem::path & media);
    ~SlotVideo();
    SlotVideo(const SlotVideo &) = delete;
    SlotVideo & operator=(const SlotVideo &) = delete;

    const std::string & name() const { return name_; }
    const ServedSampling & sampling() const { return sampling_; }

  private:
    std::string name_;
    ServedSampling sampling_;
    std::filesystem::path slot_, mark_;
};

// Slot files of videos that a server left behind when it was killed.
void remove_left_slots(const std::filesystem::path & slots);

} // namespace vidkv::cli
