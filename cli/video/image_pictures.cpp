// Images that follow each other, taken for a video.
#include "error.h"
#include "video/pictures.h"

namespace vidkv::cli {

namespace {

class ImagePictures : public Pictures {
  public:
    ImagePictures(const Source & source, double seconds_each) : source_(source), seconds_each_(seconds_each) {}

    std::optional<Picture> next(double wanted) override {
        while (at_ + 1 < source_.images.size() && static_cast<double>(at_ + 1) * seconds_each_ < wanted) ++at_;
        if (at_ >= source_.images.size()) return std::nullopt;
        const std::string & path = source_.images[at_];
        image_ = pictures_of_video(std::make_unique<Demuxer>(find_source(path)), 1, false);
        std::optional<Picture> picture = image_->next(0);
        if (!picture) throw Error("no frame of '" + path + "' can be decoded (" + because() + ")");
        if (damage_.empty()) damage_ = image_->damage();
        picture->seconds = static_cast<double>(at_++) * seconds_each_;
        picture->duration = seconds_each_;
        ++decoded_;
        return picture;
    }

    std::string damage() const override { return damage_; }
    const int32_t * display_matrix() const override { return image_ ? image_->display_matrix() : nullptr; }
    int64_t decoded() const override { return decoded_; }

  private:
    static std::string because() {
        const std::string complaint = first_complaint();
        return complaint.empty() ? "no picture in it" : complaint;
    }

    Source source_;
    double seconds_each_;
    size_t at_ = 0;
    std::unique_ptr<Pictures> image_; // the last one
    std::string damage_;
    int64_t decoded_ = 0;
};

} // namespace

std::unique_ptr<Pictures> pictures_of_images(const Source & source, double seconds_each) {
    return std::make_unique<ImagePictures>(source, seconds_each);
}

} // namespace vidkv::cli
