// A file, pipe or URL opened: the packets of its picture stream.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "video/ffmpeg.h"
#include "video/source.h"
#include "video/spool.h"

namespace vidkv::cli {

class Demuxer {
  public:
    // Throws Error with one line if it cannot be opened, or holds no picture stream. source: no IMAGES. spool: of an
    // earlier Demuxer of the same source, whose bytes do not come again.
    explicit Demuxer(const Source & source, std::shared_ptr<Spool> spool = nullptr);

    const AVStream & stream() const { return *stream_; }
    const AVFormatContext & format() const { return *format_; }
    const std::string & name() const { return name_; }

    // The next packet of the picture stream; false at the end, or where reading fails (failed()).
    bool read(AVPacket & packet);
    // Goes to the last key frame at or before a time, as the file's index has it. False if the file cannot be sought in.
    bool seek(double seconds);

    // Times count from the start of the file, sound included. Of a packet or a frame; nothing if it has no time.
    std::optional<double> seconds(int64_t stamp) const;
    std::optional<double> start() const { return start_; }
    std::optional<double> told_frame_seconds() const; // how long a frame lasts on average, if the file tells
    double frame_seconds() const;                     // or else a usual length
    double claimed_seconds() const;                   // how long the pictures last, as the file says; 0: it does not
    bool can_seek() const;
    int64_t bytes() const; // of the file; < 0: not known
    const std::shared_ptr<Spool> & spool() const { return spool_; }
    // A recording of a broadcast: times may jump.
    bool jumps_mean_nothing() const;
    // The file has time stamps and an index of its own, so that a seek lands where it should.
    bool has_index() const;

    // What ended the reading before the end of the file, or "".
    const std::string & failed() const { return failed_; }
    // What FFmpeg complained of when it was opened, or "".
    const std::string & opening_complaint() const { return opening_complaint_; }

  private:
    bool seek_to(int64_t stamp);
    bool is_gif() const;
    bool ends_with_an_error() const;
    bool ends_within_a_frame() const;
    void note_end(int error);
    void note_packet(const AVPacket & packet);
    void open(const Source & source);
    void choose_stream();
    [[noreturn]] void refuse(const Source & source, int error) const;

    std::string name_;
    std::shared_ptr<Spool> spool_;
    int64_t last_dts_ = AV_NOPTS_VALUE, last_end_ = -1; // of the last packet; its last byte in the file
    FormatContext format_;
    AVStream * stream_ = nullptr;
    std::optional<double> start_;
    std::string failed_, opening_complaint_;
    bool last_is_cut_ = false;
};

} // namespace vidkv::cli
