// Which bytes a VIDEO argument stands for: to notice that a file was changed under its name.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace vidkv::cli {

struct WatchedFile {
    std::string path;    // absolute; a folder or pattern of images as it was given, made absolute
    uint64_t bytes = 0;  // of all its files
    std::string stat;    // fingerprint of names, sizes, times and inodes
    std::string content; // fingerprint of the bytes; "": not read yet
};

// Nothing for what cannot be read twice: pipes, standard input, URLs.
std::optional<WatchedFile> look_at(const std::string & argument);
// Reads it. Throws Error, or Interrupted.
std::string content_of(const std::string & argument);

// 16 hexadecimal digits of XXH3.
std::string fingerprint_of(const std::string & text);

} // namespace vidkv::cli
