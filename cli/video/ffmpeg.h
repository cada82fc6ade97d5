// FFmpeg's libraries in C++: owners of their objects, their words for errors, and what they complain of.
#pragma once

#include <memory>
#include <string>

extern "C" {
#include <libavcodec/avcodec.h>
#include <libavfilter/avfilter.h>
#include <libavformat/avformat.h>
#include <libavutil/dict.h>
#include <libavutil/frame.h>
}

namespace vidkv::cli {

// For FFmpeg's functions that free an object and forget it: `void free(T **)`.
template <auto Free> struct FreeByAddress {
    template <typename T> void operator()(T * object) const { Free(&object); }
};

using FormatContext = std::unique_ptr<AVFormatContext, FreeByAddress<avformat_close_input>>;
using CodecContext = std::unique_ptr<AVCodecContext, FreeByAddress<avcodec_free_context>>;
using FilterGraph = std::unique_ptr<AVFilterGraph, FreeByAddress<avfilter_graph_free>>;
using FramePtr = std::unique_ptr<AVFrame, FreeByAddress<av_frame_free>>;
using PacketPtr = std::unique_ptr<AVPacket, FreeByAddress<av_packet_free>>;

// Options of FFmpeg by name.
class Dictionary {
  public:
    Dictionary() = default;
    ~Dictionary() { av_dict_free(&entries_); }
    Dictionary(const Dictionary &) = delete;
    Dictionary & operator=(const Dictionary &) = delete;

    void set(const char * key, const char * value) { av_dict_set(&entries_, key, value, 0); }
    AVDictionary ** address() { return &entries_; }

  private:
    AVDictionary * entries_ = nullptr;
};

// How files and servers are opened: a server that keeps silent is given up.
void set_open_options(Dictionary & options);
// Ends FFmpeg's waiting on Ctrl-C.
AVIOInterruptCB interrupt_of_ffmpeg();

// These throw std::bad_alloc instead of returning nothing.
FramePtr make_frame();
PacketPtr make_packet();

// "Invalid data found when processing input" and the like.
std::string error_words(int error);

// FFmpeg's libraries write to standard error by themselves: from now on the first error is kept instead.
void keep_complaints();
// The first error since the last forget_complaints(), or "".
std::string first_complaint();
void forget_complaints();

} // namespace vidkv::cli
