#include "video/webp.h"

#include <cstring>
#include <fstream>
#include <iterator>
#include <new>

#include <webp/demux.h>

#include "error.h"

namespace vidkv::cli {

namespace {

constexpr size_t HEADER_BYTES = 21; // "RIFF", size, "WEBPVP8X", size, flags
constexpr double MILLISECOND = 1e-3;

using Decoder = std::unique_ptr<WebPAnimDecoder, decltype([](WebPAnimDecoder * d) { WebPAnimDecoderDelete(d); })>;

std::string content_of(const std::string & path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

// What the file says of its frames, none decoded.
Span span_of(const WebPDemuxer & demuxer) {
    Span span{.pictures = WebPDemuxGetI(&demuxer, WEBP_FF_FRAME_COUNT), .steady = true, .measured = true};
    WebPIterator frame;
    for (int found = WebPDemuxGetFrame(&demuxer, 1, &frame); found; found = WebPDemuxNextFrame(&frame)) {
        span.last = span.end;
        span.end += frame.duration * MILLISECOND;
    }
    WebPDemuxReleaseIterator(&frame);
    return span;
}

FramePtr frame_of(const uint8_t * rgba, const WebPAnimInfo & info) {
    FramePtr frame = make_frame();
    frame->format = AV_PIX_FMT_RGBA;
    frame->width = static_cast<int>(info.canvas_width);
    frame->height = static_cast<int>(info.canvas_height);
    if (av_frame_get_buffer(frame.get(), 0) < 0) throw std::bad_alloc();
    const size_t row = size_t(info.canvas_width) * 4;
    for (size_t y = 0; y < info.canvas_height; ++y)
        std::memcpy(frame->data[0] + y * static_cast<size_t>(frame->linesize[0]), rgba + y * row, row);
    return frame;
}

class WebpPictures : public Pictures {
  public:
    WebpPictures(std::string content, const std::string & path) : content_(std::move(content)) {
        const WebPData data = {reinterpret_cast<const uint8_t *>(content_.data()), content_.size()};
        decoder_.reset(WebPAnimDecoderNew(&data, nullptr));
        if (!decoder_ || !WebPAnimDecoderGetInfo(decoder_.get(), &info_))
            throw Error("'" + path + "' is cut off or damaged: get the whole file");
    }

    std::optional<Picture> next(double) override {
        uint8_t * rgba = nullptr;
        int end = 0; // milliseconds at which the next frame follows
        if (failed_ || !WebPAnimDecoderHasMoreFrames(decoder_.get())) return std::nullopt;
        failed_ = !WebPAnimDecoderGetNext(decoder_.get(), &rgba, &end);
        if (failed_) return std::nullopt;
        ++decoded_;
        const double from = shown_until_;
        shown_until_ = end * MILLISECOND;
        return Picture{frame_of(rgba, info_), from, shown_until_ - from};
    }

    std::string damage() const override { return failed_ ? "a frame cannot be decoded" : ""; }
    int64_t decoded() const override { return decoded_; }
    Span span() const { return span_of(*WebPAnimDecoderGetDemuxer(decoder_.get())); }

  private:
    std::string content_;
    Decoder decoder_;
    WebPAnimInfo info_ = {};
    double shown_until_ = 0;
    int64_t decoded_ = 0;
    bool failed_ = false;
};

} // namespace

bool is_animated_webp(const std::string & path) {
    std::string header(HEADER_BYTES, '\0');
    std::ifstream(path, std::ios::binary).read(header.data(), static_cast<std::streamsize>(header.size()));
    return header.starts_with("RIFF") && header.compare(8, 8, "WEBPVP8X") == 0 && (header[20] & 2) != 0;
}

Animation open_animated_webp(const std::string & path) {
    auto pictures = std::make_unique<WebpPictures>(content_of(path), path);
    const Span span = pictures->span();
    return {span, std::move(pictures)};
}

} // namespace vidkv::cli
