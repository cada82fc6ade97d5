#include "video/reader.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <thread>

#include <xxhash.h>

#include "error.h"
#include "interrupt.h"
#include "video/webp.h"

namespace vidkv::cli {

namespace {

constexpr unsigned char BLANK_LEVEL = 25;
constexpr double ROUNDING = 1e-3; // seconds, of times in files
constexpr double NUDGE = 1e-6;    // of an interval: a picture wanted at its very time is on show
constexpr int MOST_THREADS = 4;   // of the decoder, unless it is told

std::string seconds_text(double seconds) {
    std::string text = std::to_string(seconds);
    return text.substr(0, text.find('.') + 2);
}

// Leaves `most` of the frames, the first among them.
void keep_evenly(std::deque<Frame> & frames, size_t most) {
    if (frames.size() <= most) return;
    std::deque<Frame> kept;
    for (size_t i = 0; i < most; ++i) kept.push_back(std::move(frames[i * frames.size() / most]));
    frames = std::move(kept);
}

int decoder_threads(const Sampling & sampling) {
    const int cores = static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
    return std::min(sampling.threads > 0 ? sampling.threads : cores, MOST_THREADS);
}

} // namespace

FrameReader::FrameReader(const std::string & argument, const Sampling & sampling)
    : source_(find_source(argument)), sampling_(sampling) {
    if (sampling_.end <= sampling_.start) throw UsageError("--end is not after --start");
    if (source_.kind == Source::IMAGES)
        open_images();
    else if (source_.kind == Source::FILE && is_animated_webp(source_.name))
        open_animation();
    else
        open_video();
}

void FrameReader::open_images() {
    const double each = 1 / sampling_.fps;
    pictures_ = pictures_of_images(source_, each);
    set_times(0, each * static_cast<double>(source_.images.size()), true);
}

void FrameReader::open_animation() {
    Animation animation = open_animated_webp(source_.name);
    pictures_ = std::move(animation.pictures);
    set_times(0, animation.span.end, true);
    if (sampling_.both_ends) set_both_ends(0, animation.span.last);
}

void FrameReader::open_video() {
    auto demuxer = std::make_unique<Demuxer>(source_);
    claimed_ = demuxer->claimed_seconds();
    bool seek = demuxer->can_seek() && demuxer->has_index();
    if (sampling_.max_frames > 0) {
        const Span span = measured(demuxer);
        seek = seek || (demuxer->can_seek() && span.steady);
        evenly_at_the_end_ = !span.measured && std::isinf(sampling_.end);
        set_times(span.measured ? span.begin : 0, span.measured ? span.end : sampling_.end, span.measured);
        if (sampling_.both_ends && span.measured) set_both_ends(span.begin, span.last);
    } else {
        set_times(0, claimed_ > 0 ? claimed_ : sampling_.end, claimed_ > 0);
    }
    pictures_ = pictures_of_video(std::move(demuxer), decoder_threads(sampling_), seek);
}

// Goes through the file and opens it anew.
Span FrameReader::measured(std::unique_ptr<Demuxer> & demuxer) const {
    const Span span = measure_span(*demuxer);
    if (!demuxer->can_seek()) return span;
    std::string failed = demuxer->failed();
    if (failed.empty() && !demuxer->jumps_mean_nothing()) failed = first_complaint();
    if (!failed.empty() && !sampling_.accept_damaged) {
        throw Error("'" + source_.name + "' is cut off or damaged: its pictures end at " + seconds_text(span.end) + " of " +
                    seconds_text(claimed_) + " seconds (" + failed + "); get the whole file, or use --accept-damaged");
    }
    std::shared_ptr<Spool> spool = demuxer->spool();
    demuxer.reset();
    demuxer = std::make_unique<Demuxer>(source_, std::move(spool));
    return span;
}

// The times wanted of a video that lasts from begin to end, as far as that is known.
void FrameReader::set_times(double begin, double end, bool known_end) {
    const double from = std::max(begin, sampling_.start), to = std::min(end, sampling_.end);
    double interval = 1 / sampling_.fps;
    if (sampling_.max_frames > 0 && std::isfinite(to) && to > from)
        interval = std::max(interval, (to - from) / static_cast<double>(sampling_.max_frames));
    if (known_end && to > from) expected_ = static_cast<int64_t>(std::llround((to - from) / interval));
    if (sampling_.max_frames > 0) expected_ = std::min(expected_, sampling_.max_frames);
    times_ = WantedTimes(from, sampling_.end, interval, evenly_at_the_end_ ? 0 : sampling_.max_frames);
}

// The first and the last picture, and those on show at times evenly between.
void FrameReader::set_both_ends(double begin, double last) {
    const double from = std::max(begin, sampling_.start), to = std::min(last, sampling_.end);
    if (sampling_.max_frames < 2 || !(to > from)) return;
    const double interval = std::max(1 / sampling_.fps, (to - from) / static_cast<double>(sampling_.max_frames - 1));
    times_ = WantedTimes(from + NUDGE * interval, sampling_.end, interval, sampling_.max_frames);
    expected_ = std::min(sampling_.max_frames, static_cast<int64_t>((to - from) / interval + NUDGE) + 1);
}

std::optional<Frame> FrameReader::next() {
    std::optional<Frame> frame = next_frame();
    if (!frame) return frame;
    const uint32_t size[] = {frame->width, frame->height};
    pictures_seen_ = XXH3_64bits_withSeed(size, sizeof(size), pictures_seen_);
    pictures_seen_ = XXH3_64bits_withSeed(frame->rgb.data(), frame->rgb.size(), pictures_seen_);
    const int64_t hundredths = std::llround(frame->seconds * 100);
    times_seen_ = XXH3_64bits_withSeed(&hundredths, sizeof(hundredths), times_seen_);
    return frame;
}

std::string FrameReader::fingerprint(bool with_times) const {
    char text[40];
    std::snprintf(text, sizeof(text), "%016llx", static_cast<unsigned long long>(pictures_seen_));
    if (with_times) std::snprintf(text + 16, sizeof(text) - 16, "+%016llx", static_cast<unsigned long long>(times_seen_));
    return text;
}

std::optional<Frame> FrameReader::next_frame() {
    if (evenly_at_the_end_ && !begun_) collect_evenly();
    if (!evenly_at_the_end_) return take_next();
    if (collected_.empty()) return std::nullopt;
    Frame frame = std::move(collected_.front());
    collected_.pop_front();
    return frame;
}

// Of a stream that comes once and does not say how long it is: twice the frames wanted at most are held, at intervals that
// double whenever they are too many.
void FrameReader::collect_evenly() {
    const auto most = static_cast<size_t>(sampling_.max_frames);
    size_t stride = 1, seen = 0;
    while (std::optional<Frame> frame = take_next()) {
        if (seen++ % stride == 0) collected_.push_back(std::move(*frame));
        if (collected_.size() < 2 * most) continue;
        keep_evenly(collected_, most);
        stride *= 2;
    }
    keep_evenly(collected_, most);
}

std::optional<Frame> FrameReader::take_next() {
    begin();
    while (const std::optional<double> wanted = times_.current()) {
        advance_to(*wanted);
        const Picture * picture = chosen(*wanted);
        if (ended_ && !picture) break;
        const bool fresh = picture && (!last_taken_ || picture->seconds > *last_taken_);
        times_.advance();
        if (fresh) return take(*picture);
        if (!after_) break; // the last picture is taken, however long it may be shown
        times_.advance_to(after_->seconds - times_.interval() / 2);
    }
    check_complete();
    return std::nullopt;
}

// Times count from the first picture, or from --start.
void FrameReader::begin() {
    if (begun_) return;
    begun_ = true;
    after_ = pictures_->next(sampling_.start);
    ended_ = !after_;
    if (after_ && sampling_.start <= 0 && sampling_.max_frames == 0)
        times_ = WantedTimes(after_->seconds, sampling_.end, times_.interval(), 0);
}

void FrameReader::advance_to(double wanted) {
    while (after_ && after_->seconds <= wanted) {
        before_ = std::move(after_);
        last_seen_ = before_->seconds + before_->duration;
        after_ = pictures_->next(wanted);
        ended_ = !after_;
    }
}

// The picture meant by a time, or nothing if none is shown then.
const Picture * FrameReader::chosen(double wanted) const {
    const double half = times_.interval() / 2;
    if (!sampling_.both_ends && before_ && after_ &&
        later_is_nearer(wanted, times_.interval(), before_->seconds, after_->seconds))
        return &*after_;
    if (before_ && (after_ || wanted < before_->seconds + std::max(before_->duration - ROUNDING, before_->duration / 2)))
        return &*before_;
    if (!before_ && after_ && after_->seconds - wanted <= half) return &*after_;
    return nullptr;
}

Frame FrameReader::take(const Picture & picture) {
    Frame frame = converter_.convert(*picture.frame, pictures_->display_matrix());
    frame.seconds = picture.seconds;
    if (!last_taken_) first_taken_ = picture.seconds;
    last_taken_ = picture.seconds;
    ++taken_;
    if (sampling_.blank) std::fill(frame.rgb.begin(), frame.rgb.end(), BLANK_LEVEL);
    return frame;
}

// At the end: was the whole file read?
void FrameReader::check_complete() const {
    const std::string damage = pictures_->damage();
    if (taken_ == 0 && last_seen_ > 0 && sampling_.start > 0)
        throw Error("'" + source_.name + "' ends at " + seconds_text(last_seen_) + " seconds: --start is behind its end");
    if (taken_ == 0) {
        const std::string complaint = damage.empty() ? first_complaint() : damage;
        throw Error("no frame of '" + source_.name + "' can be decoded" +
                    (complaint.empty() ? ": no picture is shown at these times"
                                       : ": it is cut off or damaged (" + complaint + ")"));
    }
    if (sampling_.accept_damaged || damage.empty()) return;
    throw Error("'" + source_.name + "' is cut off or damaged: " + std::to_string(taken_) + " of about " +
                std::to_string(std::max(taken_, expected_)) + " frames decoded (" + damage +
                "); get the whole file, or use --accept-damaged");
}

} // namespace vidkv::cli
