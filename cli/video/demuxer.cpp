#include "video/demuxer.h"

#include <algorithm>
#include <cstring>
#include <new>

#include "error.h"
#include "interrupt.h"
#include "video/gif.h"

namespace vidkv::cli {

namespace {

constexpr double USUAL_FRAME_SECONDS = 1.0 / 25;
constexpr double BEFORE_START = 10;                                          // seconds
constexpr double LEAST_FRAMES_A_SECOND = 0.001, MOST_FRAMES_A_SECOND = 1000; // 1000 is a live recording's clock

// A cover picture is no video; a stream that nothing here decodes neither.
bool is_picture_stream(const AVStream & stream) {
    return stream.codecpar->codec_type == AVMEDIA_TYPE_VIDEO &&
           (stream.disposition & (AV_DISPOSITION_ATTACHED_PIC | AV_DISPOSITION_TIMED_THUMBNAILS)) == 0;
}

// The stream a player shows: the default one, then the one with the most pixels, then the first.
bool better(const AVStream & a, const AVStream & b) {
    const auto rank = [](const AVStream & stream) {
        return std::pair(avcodec_find_decoder(stream.codecpar->codec_id) != nullptr,
                         (stream.disposition & AV_DISPOSITION_DEFAULT) != 0);
    };
    const auto pixels = [](const AVStream & stream) { return int64_t(stream.codecpar->width) * stream.codecpar->height; };
    return rank(a) != rank(b) ? rank(a) > rank(b) : pixels(a) > pixels(b);
}

std::string file_url(const Source & source) {
    return source.kind == Source::FILE ? "file:" + source.name : source.kind == Source::URL ? source.name : "";
}

// FFmpeg's own reason, in brackets.
std::string because(int error) {
    const std::string complaint = first_complaint();
    return " (" + (complaint.empty() ? error_words(error) : complaint) + ")";
}

} // namespace

Demuxer::Demuxer(const Source & source, std::shared_ptr<Spool> spool) : name_(source.name), spool_(std::move(spool)) {
    keep_complaints();
    forget_complaints();
    open(source);
    const int found = avformat_find_stream_info(format_.get(), nullptr);
    check_interrupt();
    if (found < 0) refuse(source, found);
    if (std::strcmp(format_->iformat->name, "tty") == 0) throw Error("'" + name_ + "' is a text file: name a video file");
    choose_stream();
    if (stream_->codecpar->codec_id == AV_CODEC_ID_NONE) refuse(source, AVERROR_INVALIDDATA);
    if (format_->start_time != AV_NOPTS_VALUE)
        start_ = static_cast<double>(format_->start_time) / AV_TIME_BASE;
    else if (stream_->start_time != AV_NOPTS_VALUE)
        start_ = static_cast<double>(stream_->start_time) * av_q2d(stream_->time_base);
    opening_complaint_ = first_complaint();
    forget_complaints();
}

void Demuxer::open(const Source & source) {
    if (spool_)
        spool_->rewind();
    else if (source.kind == Source::PIPE)
        spool_ = spool_of_pipe(source.name);
    else if (source.kind == Source::URL)
        spool_ = spool_of_url(source.name);
    check_interrupt();
    forget_complaints();
    AVFormatContext * context = avformat_alloc_context();
    if (!context) throw std::bad_alloc();
    context->interrupt_callback = interrupt_of_ffmpeg();
    if (spool_) context->pb = spool_->io();
    Dictionary options;
    if (source.kind == Source::URL) set_open_options(options);
    const int opened =
        avformat_open_input(&context, file_url(source).c_str(), nullptr, options.address()); // frees it if it fails
    check_interrupt();
    if (opened < 0) refuse(source, opened);
    format_.reset(context);
}

void Demuxer::refuse(const Source & source, int error) const {
    if (source.kind == Source::URL && first_complaint().find("certificate") != std::string::npos)
        throw Error("'" + name_ + "': the server's certificate is not trusted" + because(error) +
                    ": name the certificates to trust in SSL_CERT_FILE, or install ca-certificates");
    if (source.kind == Source::URL && !spool_ && error != AVERROR_INVALIDDATA)
        throw Error("'" + name_ + "' cannot be opened" + because(error) + ": check the address");
    if (error == AVERROR(ENOMEM)) throw std::bad_alloc();
    throw Error("'" + name_ + "' is not a video that FFmpeg can read, or it is cut off" + because(error));
}

void Demuxer::choose_stream() {
    for (unsigned i = 0; i < format_->nb_streams; ++i) {
        AVStream * each = format_->streams[i];
        if (is_picture_stream(*each) && (!stream_ || better(*each, *stream_))) stream_ = each;
    }
    if (!stream_) throw Error("'" + name_ + "' has no video stream, only sound or data: name a video file");
}

bool Demuxer::read(AVPacket & packet) {
    for (;;) {
        av_packet_unref(&packet);
        const int got = av_read_frame(format_.get(), &packet);
        check_interrupt();
        if (got == AVERROR(EAGAIN)) continue;
        if (got < 0) {
            note_end(got);
            return false;
        }
        note_packet(packet);
        if (packet.stream_index == stream_->index) return true;
    }
}

void Demuxer::note_packet(const AVPacket & packet) {
    if (packet.stream_index != stream_->index) return;
    if (packet.dts != AV_NOPTS_VALUE) last_dts_ = packet.dts;
    last_end_ = packet.pos < 0 ? -1 : packet.pos + packet.size;
    last_is_cut_ = (packet.flags & AV_PKT_FLAG_CORRUPT) != 0;
}

// A cut file ends without an error where its parts are read one by one: then its index knows of more.
void Demuxer::note_end(int error) {
    if (error == AVERROR_EOF && format_->pb && format_->pb->error < 0) error = format_->pb->error;
    const std::string complaint = first_complaint();
    if (ends_with_an_error() && format_->pb && avio_feof(format_->pb)) error = AVERROR_EOF;
    if (error != AVERROR_EOF) failed_ = complaint.empty() ? error_words(error) : complaint;
    if (failed_.empty() && is_gif() && !is_whole_gif(*format_->pb)) failed_ = "it has no end";
    if (!failed_.empty() || jumps_mean_nothing()) return;
    if (last_is_cut_ || ends_within_a_frame()) failed_ = "its last frame is incomplete";
    const int entries = avformat_index_get_entries_count(stream_);
    const AVIndexEntry * last = entries > 0 ? avformat_index_get_entry(stream_, entries - 1) : nullptr;
    if (last && last_dts_ != AV_NOPTS_VALUE && last->timestamp > last_dts_)
        failed_ = "its index names frames that are not there";
}

// Formats of which FFmpeg finds the end by what is not there; one that is cut has a last frame that is incomplete.
bool Demuxer::ends_with_an_error() const {
    const char * const names[] = {"mpjpeg", "smjpeg"};
    return std::any_of(std::begin(names), std::end(names),
                       [this](const char * name) { return std::strcmp(format_->iformat->name, name) == 0; });
}

bool Demuxer::is_gif() const { return can_seek() && std::strcmp(format_->iformat->name, "gif") == 0; }

// FFmpeg takes what is left of a raw stream for its end.
bool Demuxer::ends_within_a_frame() const {
    return std::strcmp(format_->iformat->name, "yuv4mpegpipe") == 0 && last_end_ >= 0 && avio_tell(format_->pb) > last_end_;
}

bool Demuxer::seek(double seconds) {
    const double stamp = (seconds + start_.value_or(0)) / av_q2d(stream_->time_base);
    const auto target = static_cast<int64_t>(stamp);
    // Packets are found by their time of decoding, which of the first ones lies before the start.
    const bool first = seconds <= 0 && seek_to(target - static_cast<int64_t>(BEFORE_START / av_q2d(stream_->time_base)));
    const bool done = first || seek_to(target);
    failed_.clear();
    last_dts_ = AV_NOPTS_VALUE;
    last_end_ = -1;
    last_is_cut_ = false;
    return done;
}

bool Demuxer::seek_to(int64_t stamp) {
    const int done = avformat_seek_file(format_.get(), stream_->index, INT64_MIN, stamp, stamp, 0);
    check_interrupt();
    return done >= 0;
}

std::optional<double> Demuxer::seconds(int64_t stamp) const {
    if (stamp == AV_NOPTS_VALUE) return std::nullopt;
    return static_cast<double>(stamp) * av_q2d(stream_->time_base) - start_.value_or(0);
}

std::optional<double> Demuxer::told_frame_seconds() const {
    for (const AVRational rate : {stream_->avg_frame_rate, stream_->r_frame_rate}) {
        const double a_second = rate.den > 0 ? av_q2d(rate) : 0;
        if (a_second > LEAST_FRAMES_A_SECOND && a_second < MOST_FRAMES_A_SECOND) return 1 / a_second;
    }
    return std::nullopt;
}

double Demuxer::frame_seconds() const { return told_frame_seconds().value_or(USUAL_FRAME_SECONDS); }

double Demuxer::claimed_seconds() const {
    if (stream_->duration > 0) return static_cast<double>(stream_->duration) * av_q2d(stream_->time_base);
    return format_->duration > 0 ? static_cast<double>(format_->duration) / AV_TIME_BASE : 0;
}

bool Demuxer::can_seek() const {
    if (format_->pb) return (format_->pb->seekable & AVIO_SEEKABLE_NORMAL) != 0;
    return false;
}

int64_t Demuxer::bytes() const { return format_->pb ? avio_size(format_->pb) : -1; }

bool Demuxer::jumps_mean_nothing() const { return (format_->iformat->flags & AVFMT_TS_DISCONT) != 0; }

bool Demuxer::has_index() const {
    return (format_->iformat->flags & (AVFMT_NOTIMESTAMPS | AVFMT_GENERIC_INDEX | AVFMT_TS_DISCONT)) == 0;
}

} // namespace vidkv::cli
