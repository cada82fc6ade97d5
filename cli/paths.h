// Where the parts of VidKV lie, seen from the running program: in a build tree or installed.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace vidkv::cli {

struct ModelFiles {
    std::string text;   // GGUF of the language model
    std::string mmproj; // GGUF of the vision tower; "": text only
};

// The small video model: in VIDKV_MODEL_DIR, or beside the program. Throws Error if it is not there.
ModelFiles default_model();
// The one mmproj*.gguf beside a model file; throws Error if there is none or more than one.
std::string mmproj_beside(const std::string & model);
// libggml-vidkv.so: VIDKV_PLUGIN, or beside the program; "" if there is none.
std::string plugin_path();
// llama-server: VIDKV_LLAMA_SERVER, or beside llama.cpp's libraries or the program, or in PATH; "" if there is none.
std::string server_path();
// A file of models/ or measure/, such as a Python script; throws Error if it is not there.
std::string script_path(const std::string & name);
// Where what is fetched is kept: VIDKV_CACHE_DIR, or ~/.cache/vidkv. Throws Error if there is no such place.
std::filesystem::path cache_folder();

} // namespace vidkv::cli
