#include "video/convert.h"

#include <array>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <new>

#include "error.h"

extern "C" {
#include <libavfilter/buffersink.h>
#include <libavfilter/buffersrc.h>
#include <libavutil/display.h>
#include <libavutil/pixdesc.h>
}

namespace vidkv::cli {

namespace {

constexpr double LEAST_ASPECT = 0.1, MOST_ASPECT = 10; // of a pixel; what is beyond is a damaged header
constexpr double SQUARE_ENOUGH = 0.01;                 // less is rounding

// Light that HDR videos mean, brought into what a screen without HDR shows.
constexpr const char * TONEMAP = "zscale=t=linear:npl=203:tin=%s:pin=%s:min=%s:rin=%s,format=gbrpf32le,zscale=p=bt709,"
                                 "tonemap=mobius:desat=0,zscale=t=bt709:m=bt709:r=limited,format=yuv444p,";

std::string printed(const char * format, auto... values) {
    std::array<char, 512> text = {};
    std::snprintf(text.data(), text.size(), format, values...);
    return text.data();
}

// FFmpeg stores what a file says, which need not be one of the enumeration's values.
template <typename Enumeration> int number(const Enumeration & value) {
    static_assert(sizeof(value) == sizeof(int));
    int plain = 0;
    std::memcpy(&plain, &value, sizeof(plain));
    return plain;
}

bool is_hdr(const AVFrame & picture) {
    return number(picture.color_trc) == AVCOL_TRC_SMPTE2084 || number(picture.color_trc) == AVCOL_TRC_ARIB_STD_B67;
}

std::string tonemapping(const AVFrame & picture) {
    if (!is_hdr(picture)) return "";
    const bool rgb = (av_pix_fmt_desc_get(static_cast<AVPixelFormat>(picture.format))->flags & AV_PIX_FMT_FLAG_RGB) != 0;
    const char * curve = number(picture.color_trc) == AVCOL_TRC_SMPTE2084 ? "smpte2084" : "arib-std-b67";
    const char * primaries = number(picture.color_primaries) == AVCOL_PRI_BT709 ? "bt709" : "bt2020";
    const char * matrix = rgb ? "gbr" : number(picture.colorspace) == AVCOL_SPC_BT709 ? "bt709" : "bt2020nc";
    const char * range = rgb || number(picture.color_range) == AVCOL_RANGE_JPEG ? "full" : "limited";
    return printed(TONEMAP, curve, primaries, matrix, range);
}

// One field with its lines twice: two moments in one picture would look like a comb.
std::string deinterlacing(const AVFrame & picture) {
    if (!picture.interlaced_frame || picture.height < 4) return "";
    return printed("field=type=%s,scale=%d:%d:flags=bicubic,", picture.top_field_first ? "top" : "bottom", picture.width,
                   picture.height);
}

// Pixels that are no squares: the shorter side grows.
std::string squaring(const AVFrame & picture) {
    const AVRational aspect = picture.sample_aspect_ratio;
    const double ratio = aspect.num > 0 && aspect.den > 0 ? av_q2d(aspect) : 1;
    if (std::fabs(ratio - 1) < SQUARE_ENOUGH || ratio < LEAST_ASPECT || ratio > MOST_ASPECT) return "";
    const long width = ratio > 1 ? std::lround(picture.width * ratio) : picture.width;
    const long height = ratio < 1 ? std::lround(picture.height / ratio) : picture.height;
    return printed("scale=%ld:%ld:flags=bicubic,setsar=1,", width, height);
}

const int32_t * matrix_of(const AVFrame & picture) {
    const AVFrameSideData * own = av_frame_get_side_data(&picture, AV_FRAME_DATA_DISPLAYMATRIX);
    return own && own->size >= 9 * sizeof(int32_t) ? reinterpret_cast<const int32_t *>(own->data) : nullptr;
}

// Mirrored first, then turned; quarters are exact.
std::string turning(const int32_t * matrix) {
    if (!matrix) return "";
    std::array<int32_t, 9> upright;
    std::memcpy(upright.data(), matrix, sizeof(upright));
    const double determinant = double(upright[0]) * upright[4] - double(upright[1]) * upright[3];
    std::string filters;
    if (determinant < 0) {
        filters = "hflip,";
        av_display_matrix_flip(upright.data(), 1, 0);
    }
    const double angle = -av_display_rotation_get(upright.data()); // clockwise
    if (!std::isfinite(angle)) return "";
    const long quarters = std::lround(angle / 90);
    if (std::fabs(angle - 90.0 * static_cast<double>(quarters)) > 1)
        return filters + printed("rotate=%f*PI/180:ow=rotw(%f*PI/180):oh=roth(%f*PI/180),", angle, angle, angle);
    constexpr std::array<const char *, 4> TURNS = {"", "transpose=clock,", "hflip,vflip,", "transpose=cclock,"};
    return filters + TURNS[static_cast<size_t>((quarters % 4 + 4) % 4)];
}

std::string source_arguments(const AVFrame & picture) {
    return printed("video_size=%dx%d:pix_fmt=%d:time_base=1/1000:pixel_aspect=1/1", picture.width, picture.height,
                   picture.format);
}

// A graph keeps the colours of its first picture.
std::string colours(const AVFrame & picture) {
    return printed(" %d %d %d", number(picture.colorspace), number(picture.color_range), number(picture.color_trc));
}

void check(int status, const char * what) {
    if (status == AVERROR(ENOMEM)) throw std::bad_alloc();
    if (status < 0)
        throw Error(std::string("a frame cannot be turned into RGB (") + what + ": " + error_words(status) + ")");
}

struct Ends {
    ~Ends() {
        avfilter_inout_free(&in);
        avfilter_inout_free(&out);
    }
    AVFilterInOut * in = avfilter_inout_alloc();
    AVFilterInOut * out = avfilter_inout_alloc();
};

Frame copy_rgb(const AVFrame & picture) {
    Frame frame;
    frame.width = static_cast<uint32_t>(picture.width);
    frame.height = static_cast<uint32_t>(picture.height);
    const size_t line = size_t(3) * frame.width;
    frame.rgb.resize(line * frame.height);
    for (size_t y = 0; y < frame.height; ++y)
        std::memcpy(&frame.rgb[y * line], picture.data[0] + static_cast<std::ptrdiff_t>(y) * picture.linesize[0], line);
    return frame;
}

} // namespace

void Converter::rebuild(const AVFrame & picture, const std::string & filters) {
    graph_.reset(avfilter_graph_alloc());
    if (!graph_) throw std::bad_alloc();
    graph_->nb_threads = 1;
    check(avfilter_graph_create_filter(&in_, avfilter_get_by_name("buffer"), "in", source_arguments(picture).c_str(),
                                       nullptr, graph_.get()),
          "source");
    check(avfilter_graph_create_filter(&out_, avfilter_get_by_name("buffersink"), "out", nullptr, nullptr, graph_.get()),
          "sink");
    Ends ends;
    if (!ends.in || !ends.out) throw std::bad_alloc();
    *ends.out = {av_strdup("in"), in_, 0, nullptr};
    *ends.in = {av_strdup("out"), out_, 0, nullptr};
    check(avfilter_graph_parse_ptr(graph_.get(), filters.c_str(), &ends.in, &ends.out, nullptr), "filters");
    check(avfilter_graph_config(graph_.get(), nullptr), "filters");
}

Frame Converter::convert(const AVFrame & picture, const int32_t * matrix) {
    const int32_t * own = matrix_of(picture);
    const std::string filters = deinterlacing(picture) + tonemapping(picture) + squaring(picture) +
                                turning(own ? own : matrix) + "scale=flags=bicubic,format=rgb24";
    const std::string kind = source_arguments(picture) + colours(picture) + filters;
    if (kind != built_for_) {
        built_for_.clear();
        rebuild(picture, filters);
        built_for_ = kind;
    }
    FramePtr given = make_frame();
    check(av_frame_ref(given.get(), &picture), "reference");
    given->pts = fed_++;
    given->sample_aspect_ratio = {1, 1};
    av_frame_remove_side_data(given.get(), AV_FRAME_DATA_DISPLAYMATRIX);
    const FramePtr result = make_frame();
    check(av_buffersrc_add_frame(in_, given.get()), "filters");
    check(av_buffersink_get_frame(out_, result.get()), "filters");
    return copy_rgb(*result);
}

} // namespace vidkv::cli
