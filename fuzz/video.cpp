// Any bytes as a video file, sampled in any way: frames or one line of an error come out, in order and as many as were
// asked for. An input: one byte each for frames per second, number of frames, start and length, then the file.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <new>
#include <string>

#include <sys/mman.h>
#include <unistd.h>

#include "error.h"
#include "video/reader.h"

using namespace vidkv::cli;

namespace {

constexpr size_t SETTINGS = 4;
constexpr int MOST_FRAMES = 32; // of an input, so that each takes a moment

void demand(bool holds, const char * what) {
    if (holds) return;
    std::fprintf(stderr, "broken promise: %s\n", what);
    std::abort();
}

Sampling settings(const uint8_t * data) {
    Sampling sampling;
    sampling.fps = std::pow(2.0, data[0] / 16.0 - 8); // 1/256 to 256
    sampling.max_frames = data[1] % 16;
    sampling.start = data[2] % 8 == 0 ? data[2] / 8.0 : 0;
    if (data[3] > 0) sampling.end = sampling.start + data[3] / 16.0;
    sampling.accept_damaged = data[2] % 2 != 0;
    sampling.threads = 1;
    return sampling;
}

// A file without a name that is gone when this is.
class MemoryFile {
  public:
    MemoryFile(const uint8_t * data, size_t size) : file_(memfd_create("fuzz", MFD_CLOEXEC)) {
        demand(file_ >= 0 && write(file_, data, size) == static_cast<ssize_t>(size), "a file in memory");
    }
    ~MemoryFile() { close(file_); }
    MemoryFile(const MemoryFile &) = delete;
    MemoryFile & operator=(const MemoryFile &) = delete;

    std::string path() const { return "/proc/self/fd/" + std::to_string(file_); }

  private:
    int file_;
};

void read_frames(const std::string & path, const Sampling & sampling) {
    FrameReader reader(path, sampling);
    double last = -std::numeric_limits<double>::infinity();
    for (int n = 0; n < MOST_FRAMES; ++n) {
        const std::optional<Frame> frame = reader.next();
        if (!frame) return;
        demand(sampling.max_frames == 0 || n < sampling.max_frames, "no more frames than asked for");
        demand(frame->seconds > last, "later than the frame before");
        demand(frame->width > 0 && frame->height > 0, "a size");
        demand(frame->rgb.size() == size_t(3) * frame->width * frame->height, "all pixels");
        last = frame->seconds;
    }
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size) {
    if (size < SETTINGS) return 0;
    const MemoryFile file(data + SETTINGS, size - SETTINGS);
    try {
        read_frames(file.path(), settings(data));
    } catch (const Error & error) {
        demand(std::string(error.what()).find('\n') == std::string::npos, "one line");
    } catch (const std::bad_alloc &) {
    }
    return 0;
}
