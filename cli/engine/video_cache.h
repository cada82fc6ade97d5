// Watched videos, kept for the next question: .vidkv files in one folder, the ones not used for longest removed first.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/video_file.h"

namespace vidkv::cli {

// A video as it was asked for. Two that are equal have the same cells.
struct VideoKey {
    std::vector<std::string> names; // as they were given
    Manifest manifest; // what is known before it is watched: files (contents not read), model, preset, sampling

    std::string id() const;
};

struct KeptVideo {
    std::string id, path;
    uint64_t bytes = 0;
    int64_t last_use = 0;             // seconds since 1970
    int64_t last_use_nanoseconds = 0; // of that second
    Manifest manifest;
    std::string title() const;                     // names without their folders
    bool is_named(const std::string & name) const; // title, path, or the beginning of the id
};

class VideoCache {
  public:
    // In VIDKV_VIDEOS_DIR, or the folder `videos` of the cache folder; at most VIDKV_VIDEOS_MAX_SIZE (default 10G; 0: nothing is
    // kept).
    VideoCache();

    bool keeps() const { return most_bytes_ > 0; }
    const std::filesystem::path & folder() const { return folder_; }

    // Null where it was not watched before, or has been changed since. A damaged file is removed, and `complaint` says so.
    std::unique_ptr<VideoFile> find(const VideoKey & key, int threads, std::string & complaint) const;
    // Likewise by its frames: the same ones may lie in another file. pictures() looks at them, and is only called where there is a
    // video of the same kind, and with about as many frames, to compare with.
    std::unique_ptr<VideoFile> find_pictures(const VideoKey & key, int64_t frames, int threads,
                                             const std::function<std::string()> & pictures) const;
    // save(path) writes the file of a video that has just been watched. Throws Error if it cannot be kept; what was there is as
    // before.
    void keep(const VideoKey & key,
              const std::function<void(const std::string & path, const Manifest & manifest)> & save) const;

    // Newest use first. Files that cannot be read have an empty manifest.
    std::vector<KeptVideo> videos() const;
    // Removes it; false if it is gone already.
    bool remove(const KeptVideo & video) const;
    // Removes those used longest ago until at most so many bytes are left; returns what was removed.
    std::vector<KeptVideo> prune(uint64_t most_bytes) const;

  private:
    std::filesystem::path path_of(const std::string & id) const { return folder_ / (id + ".vidkv"); }
    void remove_leftovers() const;

    std::filesystem::path folder_;
    uint64_t most_bytes_;
};

// "500M", "2.5G", "123": bytes. Throws UsageError, with the name of what it was given for.
uint64_t parse_size(const std::string & text, const std::string & what);

} // namespace vidkv::cli
