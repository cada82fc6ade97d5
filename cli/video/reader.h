// A video's frames, from any source, at the times that are wanted.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>

#include "video/convert.h"
#include "video/frame.h"
#include "video/pictures.h"
#include "video/sampling.h"
#include "video/span.h"

namespace vidkv::cli {

class FrameReader {
  public:
    // Opens what the argument names (source.h). Throws Error with one line if it is missing, empty, not a video, or cut
    // off.
    FrameReader(const std::string & argument, const Sampling & sampling);

    // The next frame, or nothing at the end. Throws Error if the file turns out to be broken.
    std::optional<Frame> next();
    // Frames to come in all, as far as is known; 0 if it is not.
    int64_t expected() const { return expected_; }
    // A file of one picture, or of a few that move, by its name.
    bool is_image() const { return source_.kind == Source::FILE && is_image_name(source_.name); }
    const std::string & name() const { return source_.name; }
    // From the first frame that was taken to the last.
    double shown_seconds() const { return last_taken_ ? *last_taken_ - first_taken_ : 0; }
    // Tells the pictures that next() has given from others; with_times: and their times, to a hundredth of a second.
    std::string fingerprint(bool with_times) const;
    // Packets that were decoded for the frames.
    int64_t decoded() const { return pictures_->decoded(); }

  private:
    void open_images();
    void open_animation();
    void open_video();
    Span measured(std::unique_ptr<Demuxer> & demuxer) const;
    void set_times(double begin, double end, bool known_end);
    void set_both_ends(double begin, double last);
    std::optional<Frame> next_frame();
    std::optional<Frame> take_next();
    void collect_evenly();
    void begin();
    void advance_to(double wanted);
    const Picture * chosen(double wanted) const;
    Frame take(const Picture & picture);
    void check_complete() const;

    Source source_;
    Sampling sampling_;
    std::unique_ptr<Pictures> pictures_;
    Converter converter_;
    WantedTimes times_;
    std::optional<Picture> before_, after_; // the last picture at or before a wanted time, and the one that follows
    std::optional<double> last_taken_;
    double claimed_ = 0, last_seen_ = 0, first_taken_ = 0;
    int64_t expected_ = 0, taken_ = 0;
    uint64_t pictures_seen_ = 0, times_seen_ = 0; // fingerprints
    bool begun_ = false, ended_ = false;
    bool evenly_at_the_end_ = false; // how long the video is shows when it has been read
    std::deque<Frame> collected_;
};

} // namespace vidkv::cli
