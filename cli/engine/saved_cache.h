// The cache of a video in a file.
//
// "VIDKVSES", u32 version, u32 length of the header, u64 length of the state, u64 checksum of all that follows, the
// header (JSON: model, preset, what the video was), the state as llama.cpp writes it. Little endian.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "paths.h"
#include "engine/session.h"

namespace vidkv::cli {

struct SavedCache {
    VideoPrefix prefix;
    std::vector<uint8_t> state;
};

// Writes beside the file first and renames, so that a failure leaves what was there.
void save_cache(const std::string & path, const SavedCache & cache, const ModelFiles & model, const std::string & kv);
// Throws Error if the file is cut off, altered, or of another model or preset.
SavedCache load_cache(const std::string & path, const ModelFiles & model, const std::string & kv);

} // namespace vidkv::cli
