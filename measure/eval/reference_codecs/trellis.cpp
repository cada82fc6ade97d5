// Plain trellis codes, without any weighting, after turbo2_tcq and turbo1_tcq of spiritbuun's fork of llama.cpp (github.com/spiritbuun/buun-llama-cpp):
// blocks of 128 channels of a token are normalised (f16 norm) and turned by signs and a Hadamard matrix; a shift register of
// 8 bits, which takes in 2 (or 1) for each channel and may start anywhere, chooses among 256 levels, and the path nearest to the block
// is searched for. The norm is corrected to that of what the levels say; of values it is 1.04 times that. The levels are
// our own, trained in the same way (generalised Lloyd), on Gaussian numbers instead of one model's rows.
#include <algorithm>
#include <array>
#include <cmath>
#include <random>

#include "eval/reference_codecs/reference_codec.h"
#include "eval/reference_codecs/trellis_levels.h"

namespace vidkv::cli {

namespace {

constexpr uint32_t SEED = 42;
constexpr int STATES = 256, MOST_CHANNELS = 128;
constexpr float VALUE_SCALE = 1.04F;

int block_of(int head_dim) { return head_dim % MOST_CHANNELS == 0 ? MOST_CHANNELS : head_dim; }

// A norm, the register's first bits (8 less those of a channel), codes; filled up to 16 bits.
template <int BITS> double bits(vidkv_side, int, int head_dim) {
    const int n = block_of(head_dim), words = (8 - BITS + BITS * n + 15) / 16;
    return 16.0 * (1 + words) / n;
}

template <int BITS> class Search {
  public:
    // x: n numbers of deviation one, replaced by the levels of the nearest path.
    void operator()(float * x, int n, const std::array<float, STATES> & levels) {
        costs_.fill(0);
        from_.resize(static_cast<size_t>(n));
        for (int i = 0; i < n; ++i) step(x[i], levels, from_[static_cast<size_t>(i)]);
        auto state = static_cast<size_t>(std::min_element(costs_.begin(), costs_.end()) - costs_.begin());
        for (int i = n - 1; i >= 0; --i) {
            x[i] = levels[state];
            state = (state % KEPT) << BITS | from_[static_cast<size_t>(i)][state % KEPT];
        }
    }

  private:
    static constexpr size_t KEPT = STATES >> BITS; // states that differ in the newest bits alone have the same predecessors

    void step(float x, const std::array<float, STATES> & levels, std::array<uint8_t, KEPT> & from) {
        std::array<float, KEPT> least;
        for (size_t i = 0; i < KEPT; ++i) {
            const float * first = costs_.data() + (i << BITS);
            const float * best = std::min_element(first, first + (1 << BITS));
            least[i] = *best;
            from[i] = static_cast<uint8_t>(best - first);
        }
        for (size_t state = 0; state < STATES; ++state) {
            const float off = x - levels[state];
            costs_[state] = least[state % KEPT] + off * off;
        }
    }

    std::array<float, STATES> costs_;
    std::vector<std::array<uint8_t, KEPT>> from_;
};

float norm(const float * x, int n) {
    double sum = 0;
    for (int i = 0; i < n; ++i) sum += double{x[i]} * x[i];
    return static_cast<float>(std::sqrt(sum));
}

std::vector<float> random_signs(int n) {
    std::mt19937 random(SEED);
    std::vector<float> signs(static_cast<size_t>(n));
    for (float & sign : signs) sign = (random() & 1) != 0 ? 1.0F : -1.0F;
    return signs;
}

void multiply(float * x, const std::vector<float> & by) {
    for (const float each : by) *x++ *= each;
}

template <int BITS> void round_trip(const ReferenceRows & rows, vidkv_side side) {
    const int n = block_of(rows.head_dim), whole = n & -n;
    const std::vector<float> signs = random_signs(n);
    const int64_t blocks = rows.tokens * rows.heads * rows.head_dim / n;
    Search<BITS> search;
    for (int64_t block = 0; block < blocks; ++block) {
        float * x = rows.data + block * n;
        const float length = norm(x, n), unit = std::sqrt(static_cast<float>(n)) / length;
        if (!(length > 0)) continue;
        for (int i = 0; i < n; ++i) x[i] *= unit;
        multiply(x, signs);
        hadamard(x, n, whole);
        search(x, n, BITS == 2 ? LEVELS_2_BITS : LEVELS_1_BIT);
        const float scale = to_half((side == VIDKV_VALUES ? VALUE_SCALE : 1) * length / norm(x, n));
        for (int i = 0; i < n; ++i) x[i] *= scale;
        hadamard(x, n, whole);
        multiply(x, signs);
    }
}

template <int BITS> ReferenceCodec peer(const char * name) {
    return {name, "plain trellis codes, after github.com/spiritbuun/buun-llama-cpp", bits<BITS>, round_trip<BITS>};
}

} // namespace

ReferenceCodec trellis2_reference() { return peer<2>("trellis2"); }
ReferenceCodec trellis1_reference() { return peer<1>("trellis1"); }

} // namespace vidkv::cli
