#include "engine/backends.h"

#include <filesystem>

#include <dlfcn.h>

#include "ggml-backend.h"

#include "error.h"

namespace vidkv::cli {

namespace {

std::filesystem::path engine_folder() {
    Dl_info info = {};
    if (!dladdr(reinterpret_cast<const void *>(&ggml_backend_load_all_from_path), &info)) return ".";
    return std::filesystem::path(info.dli_fname).parent_path();
}

} // namespace

void load_cpu_backend() {
    if (ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU)) return;
    const std::string folder = engine_folder().string();
    ggml_backend_load_all_from_path(folder.c_str());
    if (!ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU))
        throw Error("no CPU back-end of llama.cpp (libggml-cpu-*.so) for this processor in '" + folder +
                    "': install VidKV again");
}

} // namespace vidkv::cli
