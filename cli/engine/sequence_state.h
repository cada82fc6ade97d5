// The state of a sequence in a .vidkv file: llama.cpp's own, without the rows of packed caches, and the pages instead.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "llama.h"

namespace vidkv::cli {

// Bytes that become a section of the file.
struct Section {
    std::string name;
    std::vector<uint8_t> bytes;
};

// Saves sequence 0 of a context. stock: its cache is llama.cpp's own. Throws Error with one line, without the file's name.
void save_sequence(llama_context * context, bool stock, const std::string & path, std::vector<Section> sections);

class VideoFile;

// Fills sequence 0 of a context, which holds nothing. On failure it holds nothing again, and Error is thrown.
void load_sequence(llama_context * context, bool stock, const VideoFile & file);

} // namespace vidkv::cli
