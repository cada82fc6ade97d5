#include "engine/logs.h"

#include <cstdio>
#include <mutex>

#include "mtmd-helper.h"

namespace vidkv::cli {

namespace {

struct Captured {
    std::mutex mutex;
    bool verbose = false;
    std::string error; // last error line
    ggml_log_level level = GGML_LOG_LEVEL_NONE;
};

Captured & captured() {
    static Captured instance;
    return instance;
}

void on_log(ggml_log_level level, const char * text, void *) {
    Captured & log = captured();
    const std::lock_guard lock(log.mutex);
    if (log.verbose) std::fputs(text, stderr);
    if (level != GGML_LOG_LEVEL_CONT) log.level = level;
    if (log.level == GGML_LOG_LEVEL_ERROR && level != GGML_LOG_LEVEL_CONT) log.error = text;
}

// "llama_model_load: error loading model: X\n" -> "error loading model: X"
std::string trimmed(std::string line) {
    while (!line.empty() && (line.back() == '\n' || line.back() == ' ')) line.pop_back();
    const size_t colon = line.find(": ");
    if (colon != std::string::npos && line.find(' ') == colon + 1) line.erase(0, colon + 2);
    return line.substr(0, line.find('\n'));
}

} // namespace

void capture_logs(bool verbose) {
    captured().verbose = verbose;
    llama_log_set(on_log, nullptr);
    mtmd_helper_log_set(on_log, nullptr);
}

void forget_logged_error() {
    const std::lock_guard lock(captured().mutex);
    captured().error.clear();
}

std::string logged_error() {
    const std::lock_guard lock(captured().mutex);
    return trimmed(captured().error);
}

} // namespace vidkv::cli
