#include "video/resize.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace vidkv::cli {

namespace {

constexpr double REACH = 2; // of the cubic, in pixels

double cubic(double x) {
    constexpr double a = -0.5;
    x = std::abs(x);
    if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
    return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

// What a pixel is the weighted sum of.
struct Taps {
    size_t first = 0;
    std::vector<double> weights;
};

// The same with weights of 16 bits, as many of them behind the point as the largest leaves: so torch resizes bytes, and a model
// was taught with what torch makes of them.
struct IntegerTaps {
    struct Pixel {
        size_t first = 0;
        std::vector<int> weights;
    };
    std::vector<Pixel> pixels;
    int bits = 0; // behind the point
};

std::vector<Taps> exact_taps(uint32_t from, uint32_t to) {
    const double scale = static_cast<double>(from) / to, stretch = std::max(scale, 1.0);
    std::vector<Taps> all(to);
    for (uint32_t i = 0; i < to; ++i) {
        const double center = (i + 0.5) * scale;
        const auto first = static_cast<int64_t>(std::max(0.0, center - REACH * stretch + 0.5));
        const auto end = static_cast<int64_t>(std::min<double>(from, center + REACH * stretch + 0.5));
        all[i].first = static_cast<size_t>(first);
        double sum = 0;
        for (int64_t x = first; x < end; ++x) {
            all[i].weights.push_back(cubic((static_cast<double>(x) + 0.5 - center) / stretch));
            sum += all[i].weights.back();
        }
        for (double & weight : all[i].weights) weight /= sum;
    }
    return all;
}

IntegerTaps taps(uint32_t from, uint32_t to) {
    const std::vector<Taps> exact = exact_taps(from, to);
    double largest = 0;
    for (const Taps & pixel : exact)
        largest = std::max(largest, *std::max_element(pixel.weights.begin(), pixel.weights.end()));
    constexpr int most = 22, limit = 1 << 15;
    IntegerTaps out;
    while (out.bits < most && std::lround(largest * (1 << (out.bits + 1))) < limit) ++out.bits;
    for (const Taps & pixel : exact) {
        out.pixels.push_back({pixel.first, {}});
        for (const double weight : pixel.weights)
            out.pixels.back().weights.push_back(static_cast<int>(std::round(weight * (1 << out.bits))));
    }
    return out;
}

// The weighted sum of pixels that lie `stride` bytes apart, as a byte.
unsigned char blend(const unsigned char * pixels, size_t stride, const IntegerTaps::Pixel & pixel, int bits) {
    int sum = 1 << (bits - 1);
    for (size_t i = 0; i < pixel.weights.size(); ++i) sum += pixel.weights[i] * pixels[(pixel.first + i) * stride];
    return static_cast<unsigned char>(std::clamp(sum >> bits, 0, 255));
}

Frame resize_width(const Frame & frame, uint32_t width) {
    if (frame.width == width) return frame;
    const IntegerTaps columns = taps(frame.width, width);
    Frame out{width, frame.height, std::vector<unsigned char>(size_t(3) * width * frame.height)};
    for (size_t y = 0; y < out.height; ++y)
        for (size_t x = 0; x < width; ++x)
            for (size_t c = 0; c < 3; ++c)
                out.rgb[(y * width + x) * 3 + c] =
                    blend(&frame.rgb[y * frame.width * 3 + c], 3, columns.pixels[x], columns.bits);
    return out;
}

Frame resize_height(const Frame & frame, uint32_t height) {
    if (frame.height == height) return frame;
    const IntegerTaps rows = taps(frame.height, height);
    const size_t line = size_t(3) * frame.width;
    Frame out{frame.width, height, std::vector<unsigned char>(line * height)};
    for (size_t y = 0; y < height; ++y)
        for (size_t i = 0; i < line; ++i) out.rgb[y * line + i] = blend(&frame.rgb[i], line, rows.pixels[y], rows.bits);
    return out;
}

} // namespace

Frame resize_bicubic(const Frame & frame, uint32_t width, uint32_t height) {
    return resize_height(resize_width(frame, width), height);
}

} // namespace vidkv::cli
