#include "video/decoder.h"

#include <new>

#include "error.h"
#include "interrupt.h"

namespace vidkv::cli {

namespace {

#ifdef FUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION
constexpr int64_t MOST_PIXELS = int64_t(1) << 20; // so that each input takes a moment
#else
constexpr int64_t MOST_PIXELS = int64_t(1) << 28; // of a frame; what claims more is damaged
#endif
constexpr int MOST_FAILURES = 100; // in a row

CodecContext make_codec(const Demuxer & demuxer, int threads) {
    const AVCodecParameters * parameters = demuxer.stream().codecpar;
    const AVCodec * codec = avcodec_find_decoder(parameters->codec_id);
    if (!codec) {
        throw Error("'" + demuxer.name() + "': the FFmpeg at hand has no decoder for " +
                    std::string(avcodec_get_name(parameters->codec_id)) + ": convert the video");
    }
    CodecContext context(avcodec_alloc_context3(codec));
    if (!context || avcodec_parameters_to_context(context.get(), parameters) < 0) throw std::bad_alloc();
    context->thread_count = threads;
    context->pkt_timebase = demuxer.stream().time_base;
    context->max_pixels = MOST_PIXELS;
    const int opened = avcodec_open2(context.get(), codec, nullptr);
    if (opened < 0) {
        const std::string complaint = first_complaint();
        throw Error("no frame of '" + demuxer.name() + "' can be decoded (" +
                    (complaint.empty() ? error_words(opened) : complaint) + ")");
    }
    return context;
}

} // namespace

Decoder::Decoder(const Demuxer & demuxer, int threads) : codec_(make_codec(demuxer, threads)) {}

bool Decoder::send(const AVPacket * packet) {
    const int sent = avcodec_send_packet(codec_.get(), packet);
    if (sent == AVERROR(ENOMEM)) throw std::bad_alloc();
    const bool good = sent >= 0 || sent == AVERROR_EOF;
    damaged_ |= !good;
    return good;
}

FramePtr Decoder::receive() {
    check_interrupt();
    FramePtr frame = make_frame();
    for (int failures = 0; failures < MOST_FAILURES; ++failures) {
        const int got = avcodec_receive_frame(codec_.get(), frame.get());
        if (got == AVERROR(EAGAIN) || got == AVERROR_EOF) return nullptr;
        if (got == AVERROR(ENOMEM)) throw std::bad_alloc();
        if (got >= 0) return frame;
        damaged_ = true; // of one frame; the next may be whole
    }
    return nullptr;
}

void Decoder::flush() {
    avcodec_flush_buffers(codec_.get());
    damaged_ = false;
}

void Decoder::skip_unreferenced(bool skip) { codec_->skip_frame = skip ? AVDISCARD_NONREF : AVDISCARD_DEFAULT; }

bool Decoder::every_packet_alone() const {
    const AVCodecDescriptor * descriptor = avcodec_descriptor_get(codec_->codec_id);
    return descriptor && (descriptor->props & AV_CODEC_PROP_INTRA_ONLY) != 0;
}

} // namespace vidkv::cli
