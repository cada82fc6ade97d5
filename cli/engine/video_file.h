// A .vidkv file of the command: what it says of its video, and the sections that llama.cpp needs.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "engine/model.h"
#include "video/watched_file.h"

struct vidkv_file;

namespace vidkv::cli {

// What is in the cache besides its cells.
struct VideoPrefix {
    std::string video; // its names, as they were given
    int64_t frames = 0, visual_tokens = 0;
    int64_t tokens = 0;     // cells
    llama_pos position = 0; // of the next token; with M-RoPE it is not the number of cells
    double seconds = 0;     // how much of the videos was shown
};

struct Manifest {
    std::string kv;                             // preset
    std::string model, mmproj, engine, library; // fingerprints and versions
    std::string sampling;                       // what the video was taken with, as text to compare
    std::vector<WatchedFile> files;             // none for pipes and URLs
    std::string pictures;                       // fingerprint of the frames that were taken; "": unknown
    VideoPrefix prefix;
    int64_t used = 0;       // cells, with the turns'
    llama_pos position = 0; // after them
    std::vector<Exchange> turns;

    std::string text() const; // JSON
};

// The manifest's part that tells one model and engine from another.
Manifest manifest_of(const ModelFiles & model);

// In which of the facts that cells depend on two manifests differ first; NONE: in none. The files of videos are not looked at.
enum class Difference { NONE, MODEL, MMPROJ, ENGINE, KV, LIBRARY, SAMPLING };
Difference differing_fact(const Manifest & a, const Manifest & b);

class VideoFile {
  public:
    // Throws Error with one line where it cannot be read, is cut off or altered, or was not made by this command. whole: the
    // pages are checked too.
    VideoFile(const std::string & path, bool whole, int threads);

    const std::string & path() const { return path_; }
    const Manifest & manifest() const { return manifest_; }
    uint64_t bytes() const;
    bool copied() const { return copied_; } // in memory: its file system has no mmap
    // Saved by transformers: it has pages in order, and no state of llama.cpp's.
    bool is_foreign() const { return foreign_; }
    std::string_view section(const std::string & name) const; // throws Error if there is none
    bool has_section(const std::string & name) const;

  private:
    struct Closer {
        void operator()(vidkv_file * file) const;
    };
    std::string path_;
    std::unique_ptr<vidkv_file, Closer> file_;
    Manifest manifest_;
    bool copied_ = false, foreign_ = false;
};

// Throws Error if a file of transformers' is not of a model of this shape.
void check_shape(const VideoFile & file, const llama_model * model);

// Throws Error if the file is of another model, engine or preset (asked; "": any), and says which.
void check_origin(const VideoFile & file, const ModelFiles & model, const std::string & asked);

// Throws Error if a file cannot be made there: to be asked before the work that is to be saved.
void check_savable(const std::string & path);
// What to do about a file that could not be saved.
std::string cannot_save(const std::string & path, const std::string & why);

} // namespace vidkv::cli
