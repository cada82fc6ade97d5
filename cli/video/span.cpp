#include "video/span.h"

#include <algorithm>

#include "video/clock.h"

namespace vidkv::cli {

namespace {

constexpr int64_t SMALL_FILE = int64_t(256) << 20; // read through in a moment
constexpr double TAIL_SECONDS = 10;
constexpr double TRUSTED_SHARE = 0.9; // of the length a file claims

// Reads to the end. Pictures come in order of decoding; where their own times are missing or start anew, the times of
// decoding, which rise, tell how long they last.
Span read_through(Demuxer & demuxer) {
    const PacketPtr packet = make_packet();
    const double usual = demuxer.frame_seconds();
    Clock clock(usual, demuxer.jumps_mean_nothing());
    Span span;
    bool all_stamped = true;
    double first = 0, last = 0, latest = 0, end = 0;
    while (demuxer.read(*packet)) {
        if (packet->flags & AV_PKT_FLAG_DISCARD) continue; // before an edit list's start
        const auto dts = demuxer.seconds(packet->dts), pts = demuxer.seconds(packet->pts);
        last = clock.next(dts ? dts : pts);
        all_stamped &= pts.has_value();
        const double shown = pts.value_or(last);
        const double duration = static_cast<double>(packet->duration) * av_q2d(demuxer.stream().time_base);
        if (span.pictures++ == 0) {
            first = last;
            span.begin = shown;
        }
        if (all_stamped) span.begin = std::min(span.begin, shown);
        latest = std::max(latest, shown);
        end = std::max(end, shown + (duration > 0 ? duration : usual));
    }
    span.measured = span.pictures > 0;
    span.steady = !clock.broken() && all_stamped;
    span.end = span.steady ? end : span.begin + last - first + usual;
    span.last = span.steady ? latest : span.begin + last - first;
    return span;
}

// The end alone, if it is about where the file says it is.
Span read_tail(Demuxer & demuxer) {
    const double claimed = demuxer.claimed_seconds(), begin = demuxer.seconds(demuxer.stream().start_time).value_or(0);
    if (!demuxer.seek(std::max(0.0, begin + claimed - TAIL_SECONDS))) return {};
    Span span = read_through(demuxer);
    span.measured &= demuxer.failed().empty() && span.end >= begin + TRUSTED_SHARE * claimed;
    span.begin = begin;
    span.pictures = 0;
    return span;
}

} // namespace

Span measure_span(Demuxer & demuxer) {
    if (!demuxer.can_seek()) {
        const double claimed = demuxer.claimed_seconds(); // of a playlist
        return {0, claimed, 0, false, claimed > 0};
    }
    const bool big = demuxer.bytes() > SMALL_FILE && demuxer.has_index() && demuxer.claimed_seconds() > 0;
    if (big) {
        const Span span = read_tail(demuxer);
        if (span.measured) return span;
        demuxer.seek(0);
    }
    return read_through(demuxer);
}

} // namespace vidkv::cli
