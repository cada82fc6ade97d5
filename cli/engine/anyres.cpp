#include "engine/anyres.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "video/resize.h"

namespace vidkv::cli {

namespace {

// Where a resized pixel lies between two others.
struct Between {
    size_t low, high;
    float share; // of high
};

Between between(size_t i, size_t from, size_t to) {
    const float scale = static_cast<float>(from) / static_cast<float>(to);
    const float place = std::max(0.0f, (static_cast<float>(i) + 0.5f) * scale - 0.5f);
    const size_t low = std::min(static_cast<size_t>(place), from - 1);
    return {low, std::min(low + 1, from - 1), place - static_cast<float>(low)};
}

// As large as fits, the ratio of the sides kept.
Size fitted(const Frame & picture, Size grid) {
    const double wide = static_cast<double>(grid.width) / picture.width,
                 high = static_cast<double>(grid.height) / picture.height;
    if (wide < high) return {std::min(static_cast<uint32_t>(std::ceil(picture.height * wide)), grid.height), grid.width};
    return {grid.height, std::min(static_cast<uint32_t>(std::ceil(picture.width * high)), grid.width)};
}

// In the middle of black.
Frame padded(const Frame & picture, Size grid) {
    Frame out{grid.width, grid.height, std::vector<unsigned char>(size_t(3) * grid.width * grid.height)};
    const size_t left = (grid.width - picture.width) / 2, top = (grid.height - picture.height) / 2;
    const size_t line = size_t(3) * picture.width;
    for (size_t y = 0; y < picture.height; ++y)
        std::copy_n(&picture.rgb[y * line], line, &out.rgb[((top + y) * grid.width + left) * 3]);
    return out;
}

Frame cut_out(const Frame & picture, size_t top, size_t left, uint32_t side) {
    Frame out{side, side, std::vector<unsigned char>(size_t(3) * side * side)};
    for (size_t y = 0; y < side; ++y)
        std::copy_n(&picture.rgb[((top + y) * picture.width + left) * 3], size_t(3) * side, &out.rgb[y * side * 3]);
    return out;
}

Map cropped(const Map & map, size_t top, size_t left) {
    Map out{map.height - 2 * top, map.width - 2 * left, map.channels, {}};
    for (size_t y = 0; y < out.height; ++y)
        out.values.insert(out.values.end(), map.at(top + y, left), map.at(top + y, left) + out.width * map.channels);
    return out;
}

// Whole embeddings of a side of the picture; what is off by less than 1e-7 is rounding.
size_t covered(uint32_t pixels, double scale) { return static_cast<size_t>(std::round(pixels * scale * 1e7) / 1e7); }

} // namespace

Size best_grid(const Frame & picture, const std::vector<Size> & grids) {
    Size best;
    int64_t most_kept = 0, least_wasted = std::numeric_limits<int64_t>::max();
    for (const Size grid : grids) {
        const double scale =
            std::min(static_cast<double>(grid.width) / picture.width, static_cast<double>(grid.height) / picture.height);
        const int64_t shown = static_cast<int64_t>(picture.width * scale) * static_cast<int64_t>(picture.height * scale);
        const int64_t kept = std::min(shown, int64_t(picture.width) * picture.height);
        const int64_t wasted = int64_t(grid.width) * grid.height - kept;
        if (kept < most_kept || (kept == most_kept && wasted >= least_wasted)) continue;
        most_kept = kept;
        least_wasted = wasted;
        best = grid;
    }
    return best;
}

std::vector<Frame> tiles_of(const Frame & picture, Size grid, uint32_t side) {
    const Size size = fitted(picture, grid);
    const Frame whole = padded(resize_bicubic(picture, size.width, size.height), grid);
    std::vector<Frame> tiles;
    for (size_t top = 0; top < grid.height; top += side)
        for (size_t left = 0; left < grid.width; left += side) tiles.push_back(cut_out(whole, top, left, side));
    return tiles;
}

Map joined(const std::vector<Map> & tiles, size_t columns) {
    const Map & first = tiles.front();
    Map out{first.height * (tiles.size() / columns), first.width * columns, first.channels, {}};
    out.values.resize(out.height * out.width * out.channels);
    for (size_t y = 0; y < out.height; ++y)
        for (size_t column = 0; column < columns; ++column)
            std::copy_n(tiles[y / first.height * columns + column].at(y % first.height, 0), first.width * first.channels,
                        out.at(y, column * first.width));
    return out;
}

Map without_margins(const Map & map, Size picture) {
    const double own = static_cast<double>(picture.width) / picture.height,
                 shown = static_cast<double>(map.width) / static_cast<double>(map.height);
    if (own > shown) {
        const size_t height = covered(picture.height, static_cast<double>(map.width) / picture.width);
        return cropped(map, (map.height - height) / 2, 0);
    }
    const size_t width = covered(picture.width, static_cast<double>(map.height) / picture.height);
    return cropped(map, 0, (map.width - width) / 2);
}

Map resized(const Map & map, size_t height, size_t width) {
    Map out{height, width, map.channels, std::vector<float>(height * width * map.channels)};
    for (size_t y = 0; y < height; ++y) {
        const Between row = between(y, map.height, height);
        for (size_t x = 0; x < width; ++x) {
            const Between column = between(x, map.width, width);
            const float *a = map.at(row.low, column.low), *b = map.at(row.low, column.high),
                        *c = map.at(row.high, column.low), *d = map.at(row.high, column.high);
            for (size_t i = 0; i < map.channels; ++i) {
                const float upper = a[i] + (b[i] - a[i]) * column.share, lower = c[i] + (d[i] - c[i]) * column.share;
                out.at(y, x)[i] = upper + (lower - upper) * row.share;
            }
        }
    }
    return out;
}

Map at_most(Map map, size_t most) {
    constexpr double MUCH_MORE = 1.1; // a little more is left as it is
    const double ratio = std::sqrt(static_cast<double>(map.height * map.width) / static_cast<double>(most));
    if (ratio <= MUCH_MORE) return map;
    return resized(map, static_cast<size_t>(static_cast<double>(map.height) / ratio),
                   static_cast<size_t>(static_cast<double>(map.width) / ratio));
}

} // namespace vidkv::cli
