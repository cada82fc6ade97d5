#include "paths.h"

#include <cstdlib>
#include <sstream>

#include <dlfcn.h>

#include "llama.h"
#include "error.h"

namespace fs = std::filesystem;

namespace vidkv::cli {

namespace {

fs::path program_folder() {
    std::error_code failed;
    const fs::path program = fs::read_symlink("/proc/self/exe", failed);
    return failed ? fs::current_path() : program.parent_path();
}

// The folder that holds models/ and measure/, in a build tree as in an installation.
fs::path data_root() { return program_folder() / ".." / "share" / "vidkv"; }

bool is_file(const fs::path & path) {
    std::error_code failed;
    return fs::is_regular_file(path, failed);
}

ModelFiles model_in(const fs::path & folder) {
    const fs::path text = folder / "vidkv-tiny.gguf", mmproj = folder / "mmproj-vidkv-tiny.gguf";
    return is_file(text) && is_file(mmproj) ? ModelFiles{text.string(), mmproj.string()} : ModelFiles{};
}

} // namespace

ModelFiles default_model() {
    if (const char * folder = std::getenv("VIDKV_MODEL_DIR"); folder && *folder) {
        ModelFiles files = model_in(folder);
        if (files.text.empty())
            throw Error(std::string("no vidkv-tiny.gguf and mmproj-vidkv-tiny.gguf in VIDKV_MODEL_DIR (") + folder + ")");
        return files;
    }
    ModelFiles files = model_in((data_root() / "models" / "tiny").lexically_normal());
    if (!files.text.empty()) return files;
    throw Error("the small video model is not installed beside this program: set VIDKV_MODEL_DIR, or name a model with -m "
                "and --mmproj");
}

std::string mmproj_beside(const std::string & model) {
    if (!is_file(model)) throw Error("cannot read the model '" + model + "': no such file, or no permission");
    fs::path folder = fs::path(model).parent_path();
    std::error_code failed;
    std::vector<std::string> found;
    for (const auto & entry : fs::directory_iterator(folder.empty() ? fs::path(".") : folder, failed)) {
        const std::string name = entry.path().filename().string();
        if (name.find("mmproj") != std::string::npos && entry.path().extension() == ".gguf")
            found.push_back(entry.path().string());
    }
    if (found.size() == 1) return found[0];
    throw Error(found.empty() ? "no vision tower for '" + model + "': name its mmproj GGUF with --mmproj"
                              : "several mmproj files beside '" + model + "': name the right one with --mmproj");
}

std::string plugin_path() {
    if (const char * path = std::getenv("VIDKV_PLUGIN"); path && *path) return path;
    const fs::path program = program_folder();
    for (const fs::path & folder : {program, program / ".." / "lib", program / ".." / "lib" / "vidkv"})
        if (is_file(folder / "libggml-vidkv.so")) return (folder / "libggml-vidkv.so").lexically_normal().string();
    return "";
}

std::string server_path() {
    if (const char * path = std::getenv("VIDKV_LLAMA_SERVER"); path && *path) return path;
    std::vector<fs::path> folders;
    if (Dl_info library = {}; dladdr(reinterpret_cast<const void *>(&llama_backend_init), &library) && library.dli_fname)
        folders.push_back(fs::path(library.dli_fname).parent_path());
    folders.push_back(program_folder());
    const char * path = std::getenv("PATH");
    std::stringstream listed(path ? path : "");
    for (std::string folder; std::getline(listed, folder, ':');) folders.emplace_back(folder);
    for (const fs::path & folder : folders)
        if (is_file(folder / "llama-server")) return (folder / "llama-server").string();
    return "";
}

std::string script_path(const std::string & name) {
    const fs::path script = data_root() / name;
    if (is_file(script)) return script.lexically_normal().string();
    throw Error(name + " is not installed beside this program");
}

std::filesystem::path cache_folder() {
    const auto set = [](const char * name) {
        const char * value = std::getenv(name);
        return value && *value ? fs::path(value) : fs::path();
    };
    fs::path folder = set("VIDKV_CACHE_DIR");
    if (folder.empty() && !set("XDG_CACHE_HOME").empty()) folder = set("XDG_CACHE_HOME") / "vidkv";
    if (folder.empty() && !set("HOME").empty()) folder = set("HOME") / ".cache" / "vidkv";
    if (folder.empty()) throw Error("no cache folder: set VIDKV_CACHE_DIR, or name a model with --model");
    return folder;
}

} // namespace vidkv::cli
