// Values as the paper has them (section 3.3): per channel and group, 2-bit between minimum and maximum, or ternary {-s, 0,
// +s}.
#include <cmath>
#include <vector>

#include "base/bytes.h"
#include "base/half.h"
#include "codec/trit.h"
#include "codec/two_bit.h"
#include "codec/value_page.h"

namespace vidkv {

namespace {

void encode_two_bit(const ValueLayout & layout, const float * x, const uint8_t * use, uint8_t * levels, uint8_t * meta) {
    const int head_dim = layout.head_dim;
    for (int c = 0; c < head_dim; ++c) {
        float low = 0, high = 0;
        bool first = true;
        for (int t = 0; t < layout.group; ++t) {
            if (!use[t]) continue;
            const float v = sanitize(x[t * head_dim + c]);
            low = first ? v : std::min(low, v);
            high = first ? v : std::max(high, v);
            first = false;
        }
        const TwoBit affine = TwoBit::between(low, high);
        store_at(meta, c, affine.scale);
        store_at(meta + 2 * head_dim, c, affine.minimum);
        for (int t = 0; t < layout.group; ++t)
            level_at(levels, head_dim, t, c) = affine.code(sanitize(x[t * head_dim + c]));
    }
}

// The mean magnitude of the used elements of a channel that lie beyond a threshold; 0 if there are none.
float mean_beyond(float threshold, const float * column, int stride, const uint8_t * use, int n) {
    float sum = 0;
    int count = 0;
    for (int t = 0; t < n; ++t) {
        const float magnitude = std::fabs(sanitize(column[t * stride]));
        if (!use[t] || !(magnitude > threshold)) continue;
        sum += magnitude;
        ++count;
    }
    return count ? sum / static_cast<float>(count) : 0.0f;
}

// The paper's threshold, half of the mean magnitude. The scale is the mean magnitude of the tokens beyond it: the least
// squares fit, and found again in what was decoded. The mean of all tokens, those coded 0 too, would shrink at every
// packing.
void encode_ternary(const ValueLayout & layout, const float * x, const uint8_t * use, uint8_t * levels, uint8_t * meta) {
    const int head_dim = layout.head_dim, group = layout.group;
    for (int c = 0; c < head_dim; ++c) {
        const float threshold = 0.5f * mean_beyond(-1.0f, x + c, head_dim, use, group);
        const uint16_t scale = float_to_half(mean_beyond(threshold, x + c, head_dim, use, group));
        store_at(meta, c, scale);
        for (int t = 0; t < group; ++t) {
            const float v = sanitize(x[t * head_dim + c]);
            const bool zero = scale == 0 || !use[t] || !(std::fabs(v) > threshold);
            level_at(levels, head_dim, t, c) = zero ? 1 : v > 0.0f ? 2 : 0;
        }
    }
}

// n digits into ceil(n / 5) = p bytes: byte j takes digits j, j + p, .., j + 4 p; those past the end are 1.
void pack_ternary(const uint8_t * levels, size_t n, uint8_t * packed) {
    const size_t p = (n + 4) / 5;
    for (size_t j = 0; j < p; ++j) {
        uint8_t digits[5];
        for (size_t d = 0; d < 5; ++d) digits[d] = j + d * p < n ? levels[j + d * p] : 1;
        packed[j] = pack_trits(digits);
    }
}

} // namespace

void encode_paper_values(const ValueLayout & layout, const float * x, const uint8_t * use, int units, uint8_t * codes,
                         uint8_t * meta) {
    const int head_dim = layout.head_dim, group = layout.group;
    const size_t quad = quad_bytes(QuadCode::uniform2, head_dim);
    std::vector<uint8_t> levels(static_cast<size_t>(group) * head_dim);
    for (int g = 0; g < layout.groups(); ++g) {
        const bool ternary = layout.is_ternary(g, units);
        const float * rows = x + static_cast<size_t>(g) * group * head_dim;
        if (ternary) {
            encode_ternary(layout, rows, use + g * group, levels.data(), meta);
            pack_ternary(levels.data(), levels.size(), codes);
        } else {
            encode_two_bit(layout, rows, use + g * group, levels.data(), meta);
            for (int q = 0; q < group / 4; ++q)
                pack_uniform(QuadCode::uniform2, &levels[q * head_dim * 4], head_dim, codes + q * quad);
        }
        codes += layout.group_codes(ternary);
        meta += layout.group_meta(ternary);
    }
}

} // namespace vidkv
