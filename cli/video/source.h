// What a VIDEO argument names: a file, a URL, standard input, or images that follow each other.
#pragma once

#include <string>
#include <vector>

namespace vidkv::cli {

struct Source {
    enum Kind { FILE, PIPE, URL, IMAGES };

    Kind kind = FILE;
    std::string name;                // as it was given
    std::vector<std::string> images; // of IMAGES, in order of their names, numbers in them by value
};

// Throws Error with one line if there is no such file, or nothing in it.
Source find_source(const std::string & argument);

// "http://..." and the like.
bool is_url(const std::string & argument);
// A pattern with * or ? or [...] that names of files fit.
bool fits_files(const std::string & argument);
// Ends as pictures do: .png and the like.
bool is_image_name(const std::string & name);
// Ends as files that FFmpeg reads do: .mp4 and the like.
bool has_media_ending(const std::string & argument);

} // namespace vidkv::cli
