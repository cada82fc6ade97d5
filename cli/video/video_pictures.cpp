// Pictures of a video stream: decodes in order, and jumps where the next wanted time is far.
#include <algorithm>
#include <utility>

#include "interrupt.h"
#include "video/clock.h"
#include "video/decoder.h"
#include "video/pictures.h"

namespace vidkv::cli {

namespace {

constexpr double LEAST_JUMP = 1;        // seconds ahead for which a seek pays
constexpr double KEY_GAPS_A_JUMP = 1.5; // a jump must be longer than this many distances between key frames
constexpr double SKIP_MARGIN = 0.5;     // seconds before a wanted time in which every picture is decoded
constexpr int MOST_TRIES = 4;           // of a seek that lands too late

class VideoPictures : public Pictures {
  public:
    VideoPictures(std::unique_ptr<Demuxer> demuxer, int threads, bool seek)
        : demuxer_(std::move(demuxer)), decoder_(*demuxer_, threads), can_seek_(seek),
          clock_(demuxer_->frame_seconds(), demuxer_->jumps_mean_nothing()), packet_(make_packet()) {}

    std::optional<Picture> next(double wanted) override;
    std::string damage() const override;
    const int32_t * display_matrix() const override;
    int64_t decoded() const override { return decoded_; }

  private:
    bool jump_pays(double wanted) const;
    void jump(double wanted);
    void take_from_start();
    void restart();
    std::optional<Picture> decode_next();
    void feed();
    bool is_awaited(const AVPacket & packet);
    void learn_key_gap(double seconds);
    bool far_before(const AVPacket & packet) const;
    std::optional<Picture> timed(FramePtr frame);
    double usual_length(double seconds);

    std::unique_ptr<Demuxer> demuxer_;
    Decoder decoder_;
    bool can_seek_;
    Clock clock_;
    PacketPtr packet_;
    double wanted_ = 0;
    double position_ = 0;              // of the last picture
    std::optional<Picture> landed_;    // the first picture after a jump
    std::optional<double> timed_last_; // when the picture that was decoded last is shown
    bool awaiting_key_ = false, jumped_ = false;
    std::optional<double> first_key_, last_key_; // of this run; frames before the first belong to what was jumped over
    double key_gap_ = 0;                         // the longest seen
    int64_t decoded_ = 0, shown_ = 0;
    bool drained_ = false, corrupt_ = false;
    std::string earlier_damage_;
};

std::optional<Picture> VideoPictures::next(double wanted) {
    wanted_ = wanted;
    if (jump_pays(wanted)) jump(wanted);
    std::optional<Picture> picture = std::exchange(landed_, std::nullopt);
    if (!picture) picture = decode_next();
    if (picture) position_ = picture->seconds;
    return picture;
}

bool VideoPictures::jump_pays(double wanted) const {
    return can_seek_ && !clock_.broken() && !drained_ &&
           wanted - position_ > std::max(LEAST_JUMP, KEY_GAPS_A_JUMP * key_gap_);
}

// Indexes go by the time of decoding, so that a seek may land behind what is wanted: then from further back, at last from
// the start.
void VideoPictures::jump(double wanted) {
    double target = wanted, step = LEAST_JUMP;
    for (int tries = 1; tries <= MOST_TRIES; ++tries, step *= 4) {
        if (tries == MOST_TRIES) target = 0;
        if (!demuxer_->seek(std::max(0.0, target))) {
            can_seek_ = false; // and where reading goes on is not known
            demuxer_->seek(0);
            restart();
            return;
        }
        restart();
        landed_ = decode_next();
        if (landed_ && (landed_->seconds <= wanted || target <= 0)) break;
        target = std::min(target, landed_ ? landed_->seconds : target) - step;
    }
    if (!landed_) take_from_start();
    if (landed_ && landed_->seconds <= position_) key_gap_ = std::max(key_gap_, wanted - landed_->seconds);
}

// Where no jump finds a key frame: all that the decoder makes of the file, in order.
void VideoPictures::take_from_start() {
    can_seek_ = false;
    demuxer_->seek(0);
    restart();
    awaiting_key_ = jumped_ = false;
    landed_ = decode_next();
}

void VideoPictures::restart() {
    if (shown_ > 0) earlier_damage_ = damage();
    decoder_.flush();
    clock_.forget_last();
    forget_complaints();
    landed_.reset();
    first_key_.reset();
    last_key_.reset();
    awaiting_key_ = jumped_ = true;
    drained_ = corrupt_ = false;
    shown_ = 0;
}

std::optional<Picture> VideoPictures::decode_next() {
    for (;;) {
        if (FramePtr frame = decoder_.receive()) {
            if (std::optional<Picture> picture = timed(std::move(frame))) return picture;
            continue;
        }
        if (drained_) return std::nullopt;
        feed();
    }
}

void VideoPictures::feed() {
    if (!demuxer_->read(*packet_)) {
        drained_ = true;
        decoder_.send(nullptr);
        return;
    }
    if (!is_awaited(*packet_)) return;
    const bool skip = far_before(*packet_);
    if (skip && decoder_.every_packet_alone()) return;
    decoder_.skip_unreferenced(skip);
    decoder_.send(packet_.get());
    ++decoded_;
}

// After a jump nothing before the first key frame can be decoded.
bool VideoPictures::is_awaited(const AVPacket & packet) {
    if (packet.flags & AV_PKT_FLAG_KEY) {
        if (const auto seconds = demuxer_->seconds(packet.pts)) learn_key_gap(*seconds);
        awaiting_key_ = false;
    }
    return !awaiting_key_;
}

void VideoPictures::learn_key_gap(double seconds) {
    if (awaiting_key_) first_key_ = seconds;
    if (last_key_) key_gap_ = std::max(key_gap_, seconds - *last_key_);
    last_key_ = seconds;
}

// True if another picture follows this one well before the wanted time.
bool VideoPictures::far_before(const AVPacket & packet) const {
    const auto seconds = demuxer_->seconds(packet.pts);
    if (!seconds || packet.duration <= 0 || !demuxer_->has_index()) return false;
    return *seconds + static_cast<double>(packet.duration) * av_q2d(demuxer_->stream().time_base) < wanted_ - SKIP_MARGIN;
}

std::optional<Picture> VideoPictures::timed(FramePtr frame) {
    const std::optional<double> stamp = demuxer_->seconds(frame->best_effort_timestamp);
    if (first_key_ && stamp && *stamp < *first_key_) return std::nullopt;
    if (!stamp && jumped_ && shown_ == 0) return std::nullopt; // where the jump went is not known yet
    corrupt_ |= (frame->flags & AV_FRAME_FLAG_CORRUPT) != 0 || frame->decode_error_flags != 0;
    if (shown_++ == 0) forget_complaints(); // a recording may begin between two key frames
    const double length = static_cast<double>(frame->pkt_duration) * av_q2d(demuxer_->stream().time_base);
    const double seconds = clock_.next(stamp);
    const double usual = usual_length(seconds);
    return Picture{std::move(frame), seconds, length > 0 ? length : usual};
}

// Of a picture that does not tell how long it lasts: the file's rate, or else as long as the one before it.
double VideoPictures::usual_length(double seconds) {
    const std::optional<double> before = std::exchange(timed_last_, seconds);
    if (const auto told = demuxer_->told_frame_seconds()) return *told;
    return before && *before < seconds ? std::min(seconds - *before, demuxer_->frame_seconds()) : demuxer_->frame_seconds();
}

std::string VideoPictures::damage() const {
    if (!earlier_damage_.empty()) return earlier_damage_;
    if (!demuxer_->failed().empty()) return demuxer_->failed();
    if (shown_ == 0) return demuxer_->opening_complaint();
    std::string complaint = first_complaint();
    if (!complaint.empty()) return complaint;
    return corrupt_ || decoder_.damaged() ? "a frame cannot be decoded" : "";
}

const int32_t * VideoPictures::display_matrix() const {
    size_t size = 0;
    const uint8_t * data = av_stream_get_side_data(&demuxer_->stream(), AV_PKT_DATA_DISPLAYMATRIX, &size);
    return size >= 9 * sizeof(int32_t) ? reinterpret_cast<const int32_t *>(data) : nullptr;
}

} // namespace

std::unique_ptr<Pictures> pictures_of_video(std::unique_ptr<Demuxer> demuxer, int threads, bool seek) {
    return std::make_unique<VideoPictures>(std::move(demuxer), threads, seek);
}

} // namespace vidkv::cli
