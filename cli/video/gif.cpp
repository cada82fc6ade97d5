#include "video/gif.h"

namespace vidkv::cli {

namespace {

constexpr int SIGNATURE_BYTES = 6, SCREEN_BYTES = 7, IMAGE_BYTES = 9;
constexpr int SCREEN_FLAGS = 4, IMAGE_FLAGS = 8;
constexpr int EXTENSION = 0x21, IMAGE = 0x2c, TRAILER = 0x3b;

// Reads `bytes` bytes; that at `wanted`.
int byte_of(AVIOContext & io, int bytes, int wanted) {
    int value = 0;
    for (int i = 0; i < bytes; ++i) {
        const int byte = avio_r8(&io);
        if (i == wanted) value = byte;
    }
    return value;
}

void skip_palette(AVIOContext & io, int flags) {
    if (flags & 0x80) avio_skip(&io, int64_t(3) << ((flags & 7) + 1));
}

void skip_blocks(AVIOContext & io) {
    for (int size = avio_r8(&io); size > 0 && !avio_feof(&io); size = avio_r8(&io)) avio_skip(&io, size);
}

bool reaches_trailer(AVIOContext & io) {
    avio_skip(&io, SIGNATURE_BYTES);
    skip_palette(io, byte_of(io, SCREEN_BYTES, SCREEN_FLAGS));
    while (!avio_feof(&io)) {
        const int kind = avio_r8(&io);
        if (avio_feof(&io)) return false;
        if (kind == TRAILER) return true;
        if (kind == IMAGE) skip_palette(io, byte_of(io, IMAGE_BYTES, IMAGE_FLAGS));
        if (kind == IMAGE || kind == EXTENSION) avio_r8(&io); // the width of its codes, or what it extends
        if (kind == IMAGE || kind == EXTENSION) skip_blocks(io);
    }
    return false;
}

} // namespace

bool is_whole_gif(AVIOContext & io) {
    const int64_t at = avio_tell(&io);
    avio_seek(&io, 0, SEEK_SET);
    const bool whole = reaches_trailer(io);
    avio_seek(&io, at, SEEK_SET);
    return whole;
}

} // namespace vidkv::cli
