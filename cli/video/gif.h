// FFmpeg ends a GIF where its bytes end, without a word.
#pragma once

extern "C" {
#include <libavformat/avio.h>
}

namespace vidkv::cli {

// Whether a GIF file goes on to its trailer. io, which can seek, is left where it was.
bool is_whole_gif(AVIOContext & io);

} // namespace vidkv::cli
