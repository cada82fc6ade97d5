// KVarN (arXiv 2606.03458, section 3, and the authors' vLLM backend) at 2 bits for keys and values: tiles of 128 tokens of one head,
// turned by a Hadamard matrix, are divided by a scale for each column and each row until all have like deviations; then
// keys are rounded per channel, values per token, asymmetrically.
#include <algorithm>
#include <cmath>
#include <vector>

#include "eval/reference_codecs/reference_codec.h"

namespace vidkv::cli {

namespace {

constexpr int BITS = 2;
constexpr int64_t TILE = 128;
constexpr int ITERATIONS = 16;
constexpr float LEAST_DEVIATION = 1e-3F, MOST_DEVIATION = 1e3F, LEAST_LOG = -0.3F, MOST_LOG = 10;

// The rounded direction has a scale and a minimum, the other one a scale, all in f16.
double bits(vidkv_side side, int, int head_dim) {
    const double per_channel = 16.0 / TILE, per_token = 16.0 / head_dim;
    return BITS + (side == VIDKV_KEYS ? 2 * per_channel + per_token : 2 * per_token + per_channel);
}

// A matrix whose rows are rounded: channels of keys, tokens of values.
struct Tile {
    int64_t rows, columns;
    std::vector<float> data;

    Tile(int64_t n, int64_t m) : rows(n), columns(m), data(static_cast<size_t>(n * m)) {}
    float & at(int64_t row, int64_t column) { return data[static_cast<size_t>(row * columns + column)]; }
};

// Of n numbers, `stride` apart.
float deviation(const float * x, int64_t n, int64_t stride) {
    double sum = 0, squares = 0;
    for (int64_t i = 0; i < n; ++i) sum += x[i * stride];
    const double mean = sum / static_cast<double>(n);
    for (int64_t i = 0; i < n; ++i) squares += (x[i * stride] - mean) * (x[i * stride] - mean);
    return static_cast<float>(std::sqrt(squares / static_cast<double>(std::max<int64_t>(1, n - 1))));
}

std::vector<float> row_deviations(Tile & tile) {
    std::vector<float> of(static_cast<size_t>(tile.rows));
    for (int64_t row = 0; row < tile.rows; ++row)
        of[static_cast<size_t>(row)] = deviation(&tile.at(row, 0), tile.columns, 1);
    return of;
}

std::vector<float> column_deviations(Tile & tile) {
    std::vector<float> of(static_cast<size_t>(tile.columns));
    for (int64_t column = 0; column < tile.columns; ++column)
        of[static_cast<size_t>(column)] = deviation(&tile.at(0, column), tile.rows, tile.columns);
    return of;
}

float spread(const std::vector<float> & deviations) {
    const auto [least, most] = std::minmax_element(deviations.begin(), deviations.end());
    return *most / std::max(*least, 1e-8F);
}

float imbalance(Tile & tile) { return spread(column_deviations(tile)) + spread(row_deviations(tile)); }

void add_logs(std::vector<float> & logs, const std::vector<float> & deviations) {
    for (size_t i = 0; i < logs.size(); ++i) {
        const float more = std::log(std::clamp(deviations[i], LEAST_DEVIATION, MOST_DEVIATION));
        logs[i] = std::clamp(logs[i] + more, LEAST_LOG, MOST_LOG);
    }
}

std::vector<float> exponentials(std::vector<float> logs) {
    for (float & log : logs) log = std::exp(log);
    return logs;
}

Tile divided(Tile tile, const std::vector<float> & row_scales, const std::vector<float> & column_scales) {
    for (int64_t row = 0; row < tile.rows; ++row)
        for (int64_t column = 0; column < tile.columns; ++column)
            tile.at(row, column) /= column_scales[static_cast<size_t>(column)] * row_scales[static_cast<size_t>(row)];
    return tile;
}

// The columns' scales of the best balance on the way. The rows' are part of the steps and minima that rounding gives them.
std::vector<float> balanced_columns(const Tile & tile) {
    std::vector<float> rows(static_cast<size_t>(tile.rows)), columns(static_cast<size_t>(tile.columns)), kept = columns;
    Tile now = tile;
    float best = imbalance(now);
    for (int i = 0; i < ITERATIONS; ++i) {
        add_logs(columns, column_deviations(now));
        now = divided(tile, exponentials(rows), exponentials(columns));
        add_logs(rows, row_deviations(now));
        now = divided(tile, exponentials(rows), exponentials(columns));
        if (const float reached = imbalance(now); reached <= best) {
            best = reached;
            kept = columns;
        }
    }
    return exponentials(kept);
}

void round_trip_tile(Tile & tile) {
    const std::vector<float> scales = balanced_columns(tile);
    for (int64_t row = 0; row < tile.rows; ++row) {
        for (int64_t column = 0; column < tile.columns; ++column)
            tile.at(row, column) /= scales[static_cast<size_t>(column)];
        min_max_round_trip(&tile.at(row, 0), tile.columns, 1, BITS);
        for (int64_t column = 0; column < tile.columns; ++column)
            tile.at(row, column) *= to_half(scales[static_cast<size_t>(column)]);
    }
}

void round_trip_tile(const ReferenceRows & rows, int64_t first, int64_t n, int head, bool keys) {
    Tile tile(keys ? rows.head_dim : n, keys ? n : rows.head_dim);
    const auto each = [&](const auto & act) {
        for (int64_t token = 0; token < n; ++token)
            for (int channel = 0; channel < rows.head_dim; ++channel)
                act(rows.at(first + token, head, channel), keys ? tile.at(channel, token) : tile.at(token, channel));
    };
    each([](float & row, float & cell) { cell = row; });
    round_trip_tile(tile);
    each([](float & row, float & cell) { row = cell; });
}

void round_trip(const ReferenceRows & rows, vidkv_side side) {
    turn_heads(rows);
    for (int64_t first = 0; first < rows.tokens; first += TILE)
        for (int head = 0; head < rows.heads; ++head)
            round_trip_tile(rows, first, std::min(TILE, rows.tokens - first), head, side == VIDKV_KEYS);
    turn_heads(rows);
}

} // namespace

ReferenceCodec kvarn2_reference() { return {"kvarn2", "KVarN k2v2, arXiv 2606.03458", bits, round_trip}; }

} // namespace vidkv::cli
