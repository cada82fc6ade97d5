// VidKV's released code (arXiv 2503.16257) at 1.5 / 1.58 bits, its defects included: the 1-bit keys decode to {0, s}, the
// transform is a complex FFT (two numbers per channel), the ternary values come back without their scale, and every group
// carries an f16 scale and an f16 minimum. VidKV's own preset k1.5v1.58 is the paper's formulas, corrected.
#include <algorithm>
#include <cmath>
#include <complex>
#include <numbers>
#include <numeric>

#include "eval/reference_codecs/reference_codec.h"

namespace vidkv::cli {

namespace {

constexpr int GROUP = 32;
constexpr double METADATA = 32.0 / GROUP; // two f16 per group
constexpr double PLAIN_SHARE = 0.5;       // of the channels: the anomalous ones, at 2 bits

using Complex = std::complex<float>;

double bits(vidkv_side side, int, int) {
    const double plain = 2 + METADATA, transformed = 2 * (1 + METADATA);
    return side == VIDKV_VALUES ? 2 + METADATA : PLAIN_SHARE * plain + (1 - PLAIN_SHARE) * transformed;
}

// Channels by falling range over tokens and heads.
std::vector<int> by_range(const ReferenceRows & rows) {
    std::vector<float> low(static_cast<size_t>(rows.head_dim), INFINITY),
        high(static_cast<size_t>(rows.head_dim), -INFINITY);
    for (int64_t token = 0; token < rows.tokens; ++token)
        for (int head = 0; head < rows.heads; ++head)
            for (int channel = 0; channel < rows.head_dim; ++channel) {
                const auto c = static_cast<size_t>(channel);
                low[c] = std::min(low[c], rows.at(token, head, channel));
                high[c] = std::max(high[c], rows.at(token, head, channel));
            }
    std::vector<int> order(static_cast<size_t>(rows.head_dim));
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
        const auto i = static_cast<size_t>(a), j = static_cast<size_t>(b);
        return high[i] - low[i] > high[j] - low[j];
    });
    return order;
}

// sum over k of x[k] exp(sign 2 pi i jk / n), for all j.
std::vector<Complex> dft(const std::vector<Complex> & x, const std::vector<Complex> & roots, bool inverse) {
    const size_t n = x.size();
    std::vector<Complex> out(n);
    for (size_t j = 0; j < n; ++j) {
        for (size_t k = 0; k < n; ++k) {
            const Complex root = roots[j * k % n];
            out[j] += x[k] * (inverse ? std::conj(root) : root);
        }
        if (inverse) out[j] /= static_cast<float>(n);
    }
    return out;
}

std::vector<Complex> unit_roots(size_t n) {
    std::vector<Complex> roots(n);
    for (size_t i = 0; i < n; ++i) {
        const double angle = -2 * std::numbers::pi * static_cast<double>(i) / static_cast<double>(n);
        roots[i] = {static_cast<float>(std::cos(angle)), static_cast<float>(std::sin(angle))};
    }
    return roots;
}

// One bit that decodes to 0 or the mean size.
void one_bit_round_trip(float * x, int64_t n, int64_t stride) {
    float sum = 0;
    for (int64_t i = 0; i < n; ++i) sum += std::fabs(x[i * stride]);
    const float scale = to_half(sum / static_cast<float>(n));
    for (int64_t i = 0; i < n; ++i) x[i * stride] = x[i * stride] >= 0 ? scale : 0;
}

void transformed_head(const ReferenceRows & rows, int head, const std::vector<int> & channels) {
    const size_t n = channels.size();
    const std::vector<Complex> roots = unit_roots(n);
    std::vector<Complex> spectrum(static_cast<size_t>(rows.tokens) * n), row(n);
    for (int64_t token = 0; token < rows.tokens; ++token) {
        for (size_t i = 0; i < n; ++i) row[i] = rows.at(token, head, channels[i]);
        std::ranges::copy(dft(row, roots, false), &spectrum[static_cast<size_t>(token) * n]);
    }
    auto * numbers = reinterpret_cast<float *>(spectrum.data());
    const auto stride = static_cast<int64_t>(2 * n);
    for (int64_t first = 0; first < rows.tokens; first += GROUP)
        for (int64_t i = 0; i < stride; ++i)
            one_bit_round_trip(numbers + first * stride + i, std::min<int64_t>(GROUP, rows.tokens - first), stride);
    for (int64_t token = 0; token < rows.tokens; ++token) {
        std::copy_n(&spectrum[static_cast<size_t>(token) * n], n, row.begin());
        const std::vector<Complex> back = dft(row, roots, true);
        for (size_t i = 0; i < n; ++i) rows.at(token, head, channels[i]) = back[i].real();
    }
}

void keys(const ReferenceRows & rows) {
    const std::vector<int> order = by_range(rows);
    const auto middle = order.begin() + static_cast<int64_t>(PLAIN_SHARE * rows.head_dim);
    std::vector<int> transformed(middle, order.end());
    std::sort(transformed.begin(), transformed.end());
    const int64_t row = int64_t{rows.heads} * rows.head_dim;
    for (int head = 0; head < rows.heads; ++head) {
        for (int64_t first = 0; first < rows.tokens; first += GROUP)
            for (auto channel = order.begin(); channel != middle; ++channel)
                min_max_round_trip(&rows.at(first, head, *channel), std::min<int64_t>(GROUP, rows.tokens - first), row, 2);
        transformed_head(rows, head, transformed);
    }
}

// -1, 0 or 1: the scale decides the threshold, and is lost.
void values(const ReferenceRows & rows) {
    const int64_t row = int64_t{rows.heads} * rows.head_dim;
    for (int64_t first = 0; first < rows.tokens; first += GROUP) {
        const int64_t n = std::min<int64_t>(GROUP, rows.tokens - first);
        for (int64_t channel = 0; channel < row; ++channel) {
            float * x = rows.data + first * row + channel;
            float sum = 0;
            for (int64_t i = 0; i < n; ++i) sum += std::fabs(x[i * row]);
            const float threshold = 0.5F * sum / static_cast<float>(n);
            for (int64_t i = 0; i < n; ++i)
                x[i * row] = x[i * row] > threshold ? 1.0F : x[i * row] < -threshold ? -1.0F : 0.0F;
        }
    }
}

void round_trip(const ReferenceRows & rows, vidkv_side side) { side == VIDKV_KEYS ? keys(rows) : values(rows); }

} // namespace

ReferenceCodec vidkv_released_reference() {
    return {"vidkv-released", "VidKV's released code, arXiv 2503.16257", bits, round_trip};
}

} // namespace vidkv::cli
