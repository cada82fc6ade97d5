// The cache of a video in a file.
//
// "VIDKVSES", u32 version, u32 length of the header, u64 length of the state, u64 checksum (XXH3) of the lengths, the
// header and the state, the header (JSON: model, preset, engine, what the video was), the state as llama.cpp writes it,
// which another build of it may read differently. Little endian. A file of a stranger is as safe as llama.cpp's loader of
// states.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/session.h"
#include "paths.h"

namespace vidkv::cli {

struct SavedCache {
    std::string kv; // its preset
    VideoPrefix prefix;
    std::vector<uint8_t> state;
};

// Throws Error if a file cannot be made there: to be asked before the work that is to be saved.
void check_savable(const std::string & path);
// Writes beside the file first and renames, so that a failure leaves what was there.
void save_cache(const std::string & path, const SavedCache & cache, const ModelFiles & model);
// kv: the preset asked for; "": the file's. Throws Error if the file is cut off, altered, or of another model, preset or
// engine.
SavedCache load_cache(const std::string & path, const ModelFiles & model, const std::string & kv);

} // namespace vidkv::cli
