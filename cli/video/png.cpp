#include "video/png.h"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <new>

#include "error.h"
#include "interrupt.h"
#include "video/ffmpeg.h"

namespace vidkv::cli {

namespace {

CodecContext png_encoder(const Frame & frame) {
    const AVCodec * codec = avcodec_find_encoder(AV_CODEC_ID_PNG);
    CodecContext context(codec ? avcodec_alloc_context3(codec) : nullptr);
    if (!context) throw Error("the FFmpeg at hand cannot write PNG files");
    context->width = static_cast<int>(frame.width);
    context->height = static_cast<int>(frame.height);
    context->pix_fmt = AV_PIX_FMT_RGB24;
    context->time_base = {1, 1};
    context->thread_count = 1;
    if (avcodec_open2(context.get(), codec, nullptr) < 0) throw Error("a PNG of this size cannot be written");
    return context;
}

FramePtr as_picture(const Frame & frame) {
    FramePtr picture = make_frame();
    picture->width = static_cast<int>(frame.width);
    picture->height = static_cast<int>(frame.height);
    picture->format = AV_PIX_FMT_RGB24;
    if (av_frame_get_buffer(picture.get(), 0) < 0) throw std::bad_alloc();
    const size_t line = size_t(3) * frame.width;
    for (size_t y = 0; y < frame.height; ++y)
        std::memcpy(picture->data[0] + static_cast<std::ptrdiff_t>(y) * picture->linesize[0], &frame.rgb[y * line], line);
    return picture;
}

bool write_file(const std::string & path, const uint8_t * data, size_t n) {
    std::FILE * file = std::fopen(path.c_str(), "wb");
    if (!file) return false;
    const bool written = std::fwrite(data, 1, n, file) == n;
    return std::fclose(file) == 0 && written;
}

} // namespace

void write_png(const Frame & frame, const std::string & path) {
    const CodecContext encoder = png_encoder(frame);
    const FramePtr picture = as_picture(frame);
    const PacketPtr packet = make_packet();
    if (avcodec_send_frame(encoder.get(), picture.get()) < 0 || avcodec_send_frame(encoder.get(), nullptr) < 0 ||
        avcodec_receive_packet(encoder.get(), packet.get()) < 0)
        throw std::bad_alloc();
    const UnfinishedFile part(path + ".part");
    if (write_file(part.path(), packet->data, static_cast<size_t>(packet->size)) &&
        std::rename(part.path().c_str(), path.c_str()) == 0)
        return;
    throw Error("cannot write '" + path + "' (" + std::strerror(errno) + "): free some space, or name another folder");
}

} // namespace vidkv::cli
