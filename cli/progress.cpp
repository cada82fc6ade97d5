#include "progress.h"

#include <algorithm>
#include <cstdio>
#include <unistd.h>

namespace vidkv::cli {

namespace {

constexpr int BAR_WIDTH = 30;
constexpr std::chrono::milliseconds REDRAW_INTERVAL(60);

} // namespace

Progress::Progress(bool quiet) : enabled_(!quiet && isatty(STDERR_FILENO)) {}

Progress::~Progress() { clear(); }

void Progress::show(const std::string & stage, int64_t done, int64_t total, const char * unit) {
    if (!enabled_) return;
    const auto now = std::chrono::steady_clock::now();
    if (stage == stage_ && now - last_ < REDRAW_INTERVAL && done != total) return;
    stage_ = stage;
    last_ = now;
    std::string bar;
    if (total > 0) {
        const int filled = static_cast<int>(std::min<int64_t>(BAR_WIDTH, BAR_WIDTH * done / total));
        bar = " [" + std::string(filled, '#') + std::string(BAR_WIDTH - filled, ' ') + "]";
    }
    const std::string of = total > 0 ? "/" + std::to_string(std::max(done, total)) : "";
    std::fprintf(stderr, "\r\033[K%-20s%s %lld%s %s", stage.c_str(), bar.c_str(), static_cast<long long>(done), of.c_str(),
                 unit);
    std::fflush(stderr);
    drawn_ = true;
}

void Progress::clear() {
    if (!drawn_) return;
    std::fputs("\r\033[K", stderr);
    std::fflush(stderr);
    drawn_ = false;
}

} // namespace vidkv::cli
