// From when to when a video shows pictures, measured on its packets: what files say of their length is often missing or
// wrong.
#pragma once

#include <cstdint>

#include "video/demuxer.h"

namespace vidkv::cli {

struct Span {
    double begin = 0, end = 0; // seconds
    int64_t pictures = 0;      // 0: not counted
    bool steady = false;       // every packet has a time, and they rise: a seek finds its place
    bool measured = false;     // false: the source cannot be gone through twice, or has no end that is known
    double last = 0;           // when the last picture is shown, if measured on packets
};

// Reads the file through, or a big one with an index only at its end; nothing is decoded. The demuxer is at the end then.
Span measure_span(Demuxer & demuxer);

} // namespace vidkv::cli
