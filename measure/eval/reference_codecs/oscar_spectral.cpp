// OSCAR, "Offline Spectral Covariance-Aware Rotation" (arXiv 2605.17757, section 3, and the authors' code) at 2 bits, with a rotation for
// each head: rows are turned by E H P, where E holds the eigenvectors of the queries' second moments (keys), or of the values' own,
// each token weighted by its key's energy under those moments (values); H is a Hadamard matrix, and P spreads the
// directions over groups by falling eigenvalue. Then each row is clipped at a quantile of its sizes and rounded in
// groups of 128 channels, asymmetrically. The authors calibrate on other texts; here the window's own queries and keys serve.
#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>

#include "eval/reference_codecs/eigenvectors.h"
#include "eval/reference_codecs/reference_codec.h"

namespace vidkv::cli {

namespace {

constexpr int BITS = 2;
constexpr int GROUP = 128;
constexpr float KEY_CLIP = 0.96F, VALUE_CLIP = 0.92F;

double bits(vidkv_side, int, int head_dim) { return BITS + 32.0 / std::min(GROUP, head_dim); }

// sums += weight x x^T
void add_moments(std::vector<double> & sums, const float * x, int n, double weight) {
    for (int i = 0; i < n; ++i)
        for (int j = 0; j < n; ++j) sums[static_cast<size_t>(i * n + j)] += weight * x[i] * x[j];
}

// Of the queries that read a KV head.
std::vector<double> query_moments(const ReferenceRows & rows, int head) {
    const Calibration & from = *rows.calibration;
    const int n = rows.head_dim, group = from.query_heads / rows.heads;
    const auto queries = static_cast<int64_t>(from.queries.size()) / (int64_t{from.query_heads} * n);
    std::vector<double> sums(static_cast<size_t>(n) * static_cast<size_t>(n));
    for (int64_t token = 0; token < queries; ++token)
        for (int i = head * group; i < (head + 1) * group; ++i)
            add_moments(sums, &from.queries[static_cast<size_t>((token * from.query_heads + i) * n)], n,
                        1.0 / static_cast<double>(queries * group));
    return sums;
}

// x^T moments x
double energy(const std::vector<double> & moments, const float * x, int n) {
    double sum = 0;
    for (int i = 0; i < n; ++i) {
        double row = 0;
        for (int j = 0; j < n; ++j) row += moments[static_cast<size_t>(i * n + j)] * x[j];
        sum += x[i] * row;
    }
    return sum;
}

std::vector<double> value_moments(const ReferenceRows & rows, int head) {
    const std::vector<double> queries = query_moments(rows, head);
    const int n = rows.head_dim;
    std::vector<double> sums(queries.size());
    for (int64_t token = 0; token < rows.tokens; ++token) {
        const float * key = &rows.calibration->keys[static_cast<size_t>((token * rows.heads + head) * n)];
        add_moments(sums, &rows.at(token, head, 0), n, energy(queries, key, n));
    }
    return sums;
}

int bits_reversed(int i, int n) {
    int reversed = 0;
    for (int bit = 1; bit < n; bit *= 2) reversed = 2 * reversed + ((i & bit) != 0 ? 1 : 0);
    return reversed;
}

// Column i of the result of E H that comes to place[i].
std::vector<int> spread_places(const std::vector<double> & eigenvalues) {
    const int n = static_cast<int>(eigenvalues.size());
    std::vector<int> order(eigenvalues.size()), places(eigenvalues.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
        return eigenvalues[static_cast<size_t>(a)] > eigenvalues[static_cast<size_t>(b)];
    });
    for (int i = 0; i < n; ++i) places[static_cast<size_t>(order[static_cast<size_t>(i)])] = bits_reversed(i, n);
    return places;
}

void clip(float * x, int n, float quantile) {
    std::vector<float> sizes(static_cast<size_t>(n));
    std::transform(x, x + n, sizes.begin(), [](float each) { return std::fabs(each); });
    const auto at = sizes.begin() + std::min(n - 1, static_cast<int>(quantile * static_cast<float>(n)));
    std::nth_element(sizes.begin(), at, sizes.end());
    const float bound = *at;
    for (int i = 0; i < n; ++i) x[i] = std::clamp(x[i], -bound, bound);
}

void code_round_trip(float * x, int n, float quantile) {
    clip(x, n, quantile);
    for (int i = 0; i < n; i += GROUP) min_max_round_trip(x + i, std::min(GROUP, n - i), 1, BITS);
}

void round_trip_head(const ReferenceRows & rows, int head, vidkv_side side) {
    const int n = rows.head_dim, whole = n & -n;
    const Eigenvectors turn = eigenvectors(side == VIDKV_KEYS ? query_moments(rows, head) : value_moments(rows, head), n);
    const std::vector<int> places = spread_places(turn.values);
    std::vector<float> turned(static_cast<size_t>(n)), spread(static_cast<size_t>(n));
    for (int64_t token = 0; token < rows.tokens; ++token) {
        float * x = &rows.at(token, head, 0);
        for (int i = 0; i < n; ++i) turned[static_cast<size_t>(i)] = turn.along(i, x);
        hadamard(turned.data(), n, whole);
        for (int i = 0; i < n; ++i)
            spread[static_cast<size_t>(places[static_cast<size_t>(i)])] = turned[static_cast<size_t>(i)];
        code_round_trip(spread.data(), n, side == VIDKV_KEYS ? KEY_CLIP : VALUE_CLIP);
        for (int i = 0; i < n; ++i)
            turned[static_cast<size_t>(i)] = spread[static_cast<size_t>(places[static_cast<size_t>(i)])];
        hadamard(turned.data(), n, whole);
        turn.sum(turned, x);
    }
}

void round_trip(const ReferenceRows & rows, vidkv_side side) {
    for (int head = 0; head < rows.heads; ++head) round_trip_head(rows, head, side);
}

} // namespace

ReferenceCodec oscar_spectral2_reference() {
    return {"oscar-spectral2", "OSCAR INT2, a rotation per head, arXiv 2605.17757", bits, round_trip, true};
}

} // namespace vidkv::cli
