#include "codec/layer_bits.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstring>
#include <fstream>
#include <queue>

#include "base/error.h"
#include "codec/presets.h"

namespace vidkv {

namespace {

// Divergence with so many bits, as a share of that with 1.5, measured on keys alone and on values alone (docs/experiments.md, "Bits by
// layer").
struct Point {
    float bits;
    double loss;
};
constexpr std::array<Point, 7> key_curve = {
    {{0.5f, 4.6}, {1.0f, 2.1}, {1.5f, 1.0}, {2.0625f, 0.47}, {3.125f, 0.13}, {4.125f, 0.045}, {5.0f, 0.02}}};
constexpr std::array<Point, 5> value_curve = {{{1.0f, 2.2}, {1.5f, 1.0}, {2.0f, 0.47}, {3.0f, 0.13}, {4.0f, 0.04}}};
constexpr float key_step = 1.0f / 16;
constexpr float least_share = 0.5f; // of the preset's bits: what no text needed so far, another may need

// Straight between two points in the logarithm of the loss.
double key_loss(float bits) {
    size_t i = 1;
    while (i + 1 < key_curve.size() && bits > key_curve[i].bits) ++i;
    const Point &a = key_curve[i - 1], &b = key_curve[i];
    return a.loss * std::pow(b.loss / a.loss, static_cast<double>((bits - a.bits) / (b.bits - a.bits)));
}

// One side of a layer: the bits that it may have, in rising order, and what it loses with each.
struct Side {
    std::vector<Point> choices;
    size_t chosen = 0;
    float bits() const { return choices[chosen].bits; }
};

Side key_side(const vidkv_params & params, double loss) {
    if (params.key_bits == 16.0f) return {{{16.0f, 0}}};
    Side side;
    const float least = std::max(key_curve.front().bits, std::ceil(params.key_bits * least_share / key_step) * key_step);
    for (float bits = least; bits <= key_curve.back().bits; bits += key_step)
        side.choices.push_back({bits, loss * key_loss(bits)});
    return side;
}

Side value_side(const vidkv_params & params, double loss) {
    if (params.value_bits == 16.0f) return {{{16.0f, 0}}};
    Side side;
    for (const Point & point : value_curve) {
        if (point.bits >= params.value_bits * least_share) side.choices.push_back({point.bits, loss * point.loss});
    }
    return side;
}

// The next choice of a side that gains most for each bit beyond its present one.
struct Step {
    double gain; // for each bit
    size_t side, to;
    bool operator<(const Step & other) const { return gain != other.gain ? gain < other.gain : side > other.side; }
};

bool best_step(const std::vector<Side> & sides, size_t at, float left, Step & out) {
    const Side & side = sides[at];
    const Point & now = side.choices[side.chosen];
    out = {-1, at, side.chosen};
    for (size_t to = side.chosen + 1; to < side.choices.size() && side.choices[to].bits - now.bits <= left; ++to) {
        const double gain = (now.loss - side.choices[to].loss) / static_cast<double>(side.choices[to].bits - now.bits);
        if (gain > out.gain) out = {gain, at, to};
    }
    return out.to > side.chosen;
}

// Greedy by gain for each bit, which is the least sum but for the last steps. All bits are multiples of a sixteenth: sums are exact.
void spend(std::vector<Side> & sides, float left) {
    std::priority_queue<Step> steps;
    Step step{};
    for (size_t i = 0; i < sides.size(); ++i) {
        if (best_step(sides, i, left, step)) steps.push(step);
    }
    while (!steps.empty()) {
        const Step best = steps.top();
        steps.pop();
        Side & side = sides[best.side];
        const float cost = side.choices[best.to].bits - side.bits();
        if (cost <= left) {
            side.chosen = best.to;
            left -= cost;
        }
        if (best_step(sides, best.side, left, step)) steps.push(step);
    }
}

bool is_sound(const vidkv_layer_loss & each) {
    return each.layer >= 0 && each.keys >= 0 && each.values >= 0 && std::isfinite(each.keys + each.values);
}

vidkv_status check(const vidkv_params & params, const std::vector<vidkv_layer_loss> & losses) {
    if (vidkv_status status = check_params(params, 0)) return status;
    if ((params.key_bits != 16.0f && params.key_codec != VIDKV_CODEC_TRELLIS) ||
        (params.value_bits != 16.0f && params.value_codec != VIDKV_CODEC_TRELLIS))
        return fail(VIDKV_E_ARGUMENT, "bits by layer need a preset with trellis codes, such as t1.65");
    if (params.protect > 0) return fail(VIDKV_E_ARGUMENT, "bits by layer do not go with protected tokens (-stp)");
    for (const vidkv_layer_loss & each : losses) {
        if (!is_sound(each))
            return fail(VIDKV_E_ARGUMENT,
                        "the losses of layer " + std::to_string(each.layer) + " are no numbers of 0 or more");
    }
    return VIDKV_OK;
}

// Of keys and values; keys are rounded down, as those of few channels are.
float usual_bits(const vidkv_params & params) {
    return std::floor(params.key_bits / key_step) * key_step + params.value_bits;
}

// A hundredth of the mean: no layer is free.
double least_loss(const std::vector<vidkv_layer_loss> & losses) {
    double sum = 0;
    for (const vidkv_layer_loss & each : losses) sum += each.keys + each.values;
    return sum > 0 ? 0.005 * sum / static_cast<double>(losses.size()) : 1;
}

// "0 0.00024 0.00001"
bool parse_line(const std::string & line, vidkv_layer_loss & out) {
    const char *at = line.data(), *end = at + line.size();
    const auto skip = [&] {
        while (at < end && std::strchr(" \t\r", *at)) ++at;
        return true;
    };
    const auto number = [&](auto & to) {
        skip();
        const auto read = std::from_chars(at, end, to); // not a stream: its point is the locale's
        at = read.ptr;
        return read.ec == std::errc();
    };
    return number(out.layer) && number(out.keys) && number(out.values) && skip() && at == end;
}

} // namespace

vidkv_status read_layer_losses(const std::string & path, std::vector<vidkv_layer_loss> & out) {
    constexpr size_t most_layers = 1 << 16;
    std::ifstream file(path);
    if (!file) return fail(VIDKV_E_IO, "cannot open the layers file '" + path + "': " + std::strerror(errno));
    std::string line;
    for (int number = 1; std::getline(file, line); ++number) {
        if (line.find_first_not_of(" \t\r") == std::string::npos || line[0] == '#') continue;
        vidkv_layer_loss each{};
        const bool is_good = parse_line(line, each) && is_sound(each) && out.size() < most_layers;
        if (!is_good || (!out.empty() && each.layer <= out.back().layer))
            return fail(
                VIDKV_E_FORMAT,
                "'" + path + "', line " + std::to_string(number) +
                    ": a line of a layers file has a layer, in rising order, and the losses of its keys and values, as in 0 0.00024 0.00001");
        out.push_back(each);
    }
    if (file.bad()) return fail(VIDKV_E_IO, "cannot read the layers file '" + path + "'");
    if (out.empty()) return fail(VIDKV_E_FORMAT, "'" + path + "' has no layers in it: it is no layers file");
    return VIDKV_OK;
}

vidkv_status spread_bits(const vidkv_params & params, const std::vector<vidkv_layer_loss> & losses,
                         std::vector<vidkv_layer_bits> & out) {
    if (vidkv_status status = check(params, losses)) return status;
    std::vector<Side> sides;
    float left = 0;
    const double least = least_loss(losses);
    for (const vidkv_layer_loss & each : losses) {
        sides.push_back(key_side(params, std::max(each.keys, least)));
        sides.push_back(value_side(params, std::max(each.values, least)));
        left += usual_bits(params) - sides[sides.size() - 2].bits() - sides.back().bits();
    }
    spend(sides, left);
    for (size_t i = 0; i < losses.size(); ++i)
        out.push_back({losses[i].layer, sides[2 * i].bits(), sides[2 * i + 1].bits()});
    return VIDKV_OK;
}

} // namespace vidkv
