#include "progress.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>

#include <sys/ioctl.h>
#include <unistd.h>

namespace vidkv::cli {

namespace {

constexpr int BAR_WIDTH = 30, LEAST_BAR = 8, USUAL_COLUMNS = 80;
constexpr std::chrono::milliseconds REDRAW_INTERVAL(60);
constexpr double SECONDS_BEFORE_A_GUESS = 2;

// Of the terminal on standard error; a line that is longer would scroll at every update.
int columns() {
    winsize size = {};
    return ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : USUAL_COLUMNS;
}

double seconds(std::chrono::steady_clock::duration time) { return std::chrono::duration<double>(time).count(); }

std::string bar_of(int width, int64_t done, int64_t total) {
    const auto filled = static_cast<size_t>(std::min<int64_t>(width, width * done / total));
    return " [" + std::string(filled, '#') + std::string(static_cast<size_t>(width) - filled, ' ') + "]";
}

} // namespace

std::string duration_text(double time) {
    const auto whole = std::llround(time);
    char text[32];
    if (whole < 60)
        std::snprintf(text, sizeof(text), "%lld s", whole);
    else if (whole < 3600)
        std::snprintf(text, sizeof(text), "%lld:%02lld min", whole / 60, whole % 60);
    else
        std::snprintf(text, sizeof(text), "%lld:%02lld h", whole / 3600, whole / 60 % 60);
    return text;
}

std::string progress_line(const std::string & stage, int64_t done, int64_t total, const char * unit, double elapsed,
                          int width) {
    std::string counts =
        " " + std::to_string(done) + (total > 0 ? "/" + std::to_string(std::max(done, total)) : "") + " " + unit;
    if (total > done && done > 0 && elapsed > SECONDS_BEFORE_A_GUESS)
        counts += ", " + duration_text(elapsed / static_cast<double>(done) * static_cast<double>(total - done)) + " left";
    const int room = width - 1 - static_cast<int>(stage.size() + counts.size()) - 3;
    const std::string bar = total > 0 && room >= LEAST_BAR ? bar_of(std::min(BAR_WIDTH, room), done, total) : "";
    return (stage + bar + counts).substr(0, static_cast<size_t>(std::max(0, width - 1)));
}

Progress::Progress(bool quiet) : enabled_(!quiet && isatty(STDERR_FILENO)) {}

Progress::~Progress() { clear(); }

void Progress::show(const std::string & stage, int64_t done, int64_t total, const char * unit) {
    if (!enabled_) return;
    const auto now = std::chrono::steady_clock::now();
    if (stage != stage_) began_ = now;
    if (stage == stage_ && now - last_ < REDRAW_INTERVAL && done != total) return;
    stage_ = stage;
    last_ = now;
    std::fprintf(stderr, "\r\033[K%s", progress_line(stage, done, total, unit, seconds(now - began_), columns()).c_str());
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
