// After TurboQuant (arXiv 2504.19874): each token's head vector is normalised (f16 norm), rotated at random (signs, then a
// Hadamard matrix), and its coordinates, near to Gaussian by then, take the nearest level of a Lloyd-Max code.
#include <array>
#include <cmath>
#include <random>
#include <span>

#include "eval/reference_codecs/reference_codec.h"

namespace vidkv::cli {

namespace {

constexpr uint32_t SEED = 7;

// Lloyd-Max levels of N(0, 1), the positive half.
constexpr std::array<float, 2> LEVELS_2 = {0.4527800F, 1.5104176F};
constexpr std::array<float, 4> LEVELS_3 = {0.2450942F, 0.7560053F, 1.3439093F, 2.1519457F};

template <int BITS> double bits(vidkv_side, int, int head_dim) { return BITS + 16.0 / head_dim; }

std::vector<float> random_signs(int n) {
    std::mt19937 random(SEED);
    std::vector<float> signs(static_cast<size_t>(n));
    for (float & sign : signs) sign = (random() & 1) != 0 ? 1.0F : -1.0F;
    return signs;
}

float nearest(std::span<const float> levels, float x) {
    const float size = std::fabs(x);
    size_t best = 0;
    while (best + 1 < levels.size() && size > (levels[best] + levels[best + 1]) / 2) ++best;
    return std::copysign(levels[best], x);
}

void vector_round_trip(float * x, int n, const std::vector<float> & signs, std::span<const float> levels) {
    double sum = 0;
    for (int i = 0; i < n; ++i) sum += double{x[i]} * x[i];
    const float deviation = to_half(static_cast<float>(std::sqrt(sum))) / std::sqrt(static_cast<float>(n));
    for (int i = 0; i < n; ++i) x[i] *= signs[static_cast<size_t>(i)];
    hadamard(x, n, n & -n);
    for (int i = 0; i < n; ++i) x[i] = deviation > 0 ? deviation * nearest(levels, x[i] / deviation) : 0;
    hadamard(x, n, n & -n);
    for (int i = 0; i < n; ++i) x[i] *= signs[static_cast<size_t>(i)];
}

template <int BITS> void round_trip(const ReferenceRows & rows, vidkv_side) {
    const std::vector<float> signs = random_signs(rows.head_dim);
    const std::span<const float> levels = BITS == 2 ? std::span<const float>(LEVELS_2) : std::span<const float>(LEVELS_3);
    for (int64_t token = 0; token < rows.tokens; ++token)
        for (int head = 0; head < rows.heads; ++head)
            vector_round_trip(&rows.at(token, head, 0), rows.head_dim, signs, levels);
}

} // namespace

ReferenceCodec turbo2_reference() {
    return {"turbo2", "after TurboQuant, arXiv 2504.19874, 2 bits", bits<2>, round_trip<2>};
}
ReferenceCodec turbo3_reference() {
    return {"turbo3", "after TurboQuant, arXiv 2504.19874, 3 bits", bits<3>, round_trip<3>};
}

} // namespace vidkv::cli
