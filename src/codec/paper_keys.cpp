// Keys as the paper has them, corrected (section 3.2): anomalous channels as 2-bit codes between minimum and maximum, the
// others through a real DFT over the channels and then sign and mean magnitude.
#include <vector>

#include "base/bytes.h"
#include "codec/two_bit.h"
#include "codec/key_page.h"
#include "codec/real_dft.h"

namespace vidkv {

namespace {

// One anomalous channel of one group: range over the tokens in use, then 2-bit levels. levels: every fourth byte.
TwoBit encode_wide(const float * x, const uint8_t * use, int tokens, uint8_t * levels) {
    float low = 0, high = 0;
    bool first = true;
    for (int t = 0; t < tokens; ++t) {
        if (!use[t]) continue;
        const float v = sanitize(x[t]);
        low = first ? v : std::min(low, v);
        high = first ? v : std::max(high, v);
        first = false;
    }
    const TwoBit affine = TwoBit::between(low, high);
    for (int t = 0; t < tokens; ++t) levels[4 * t] = affine.code(sanitize(x[t]));
    return affine;
}

// One DFT coefficient of one group: its mean magnitude over the tokens in use.
float mean_magnitude(const float * y, const uint8_t * use, int tokens) {
    float sum = 0;
    int count = 0;
    for (int t = 0; t < tokens; ++t) {
        if (!use[t]) continue;
        sum += std::fabs(y[t]);
        ++count;
    }
    return count ? std::min(sum / static_cast<float>(count), half_max) : 0.0f;
}

// Scales of a group's coefficients are multiples of a power of two, 1/512 to 1/256 of the largest one. Decoded rows are
// rounded to f16, and packed again they give each magnitude with some noise, far below half a step: so every scale is found
// again.
class ScaleGrid {
  public:
    explicit ScaleGrid(float largest) : step_(step_for(largest)) { step_ = step_for(round(largest)); }
    float round(float scale) const { return std::min(std::nearbyint(scale / step_) * step_, half_max); }

  private:
    static float step_for(float largest) {
        int exponent;
        std::frexp(largest, &exponent);
        return std::ldexp(1.0f, std::max(exponent - 9, -22)); // rows have steps of 2^-24 at least
    }
    float step_;
};

} // namespace

void encode_paper_keys(const KeyLayout & layout, const ChannelPlan & plan, const float * x, const uint8_t * use,
                       uint8_t * codes, uint8_t * meta) {
    const int wide = layout.wide, narrow = layout.narrow, group = layout.group;
    const size_t group_meta = static_cast<size_t>(2 * (2 * wide + narrow));
    uint8_t levels[4 * page_tokens];
    for (int c = 0; c < wide; ++c) {
        const float * row = x + plan.order[c] * page_tokens;
        for (int g = 0; g < layout.groups(); ++g) {
            const int first = g * group;
            const TwoBit affine = encode_wide(row + first, use + first, group, levels + 4 * first + c % 4);
            store_at(meta + g * group_meta, c, affine.scale);
            store_at(meta + g * group_meta + 2 * wide, c, affine.minimum);
        }
        if (c % 4 == 3) {
            pack_uniform(QuadCode::uniform2, levels, page_tokens, codes);
            codes += quad_bytes(QuadCode::uniform2, page_tokens);
        }
    }
    if (narrow == 0) return;
    const size_t elements = static_cast<size_t>(narrow) * page_tokens;
    std::vector<float> gathered(elements), coefficients(elements);
    for (int c = 0; c < narrow; ++c) {
        const float * row = x + plan.order[wide + c] * page_tokens;
        for (int t = 0; t < page_tokens; ++t) gathered[c * page_tokens + t] = sanitize(row[t]);
    }
    real_dft(narrow)->forward_columns(gathered.data(), coefficients.data(), page_tokens);
    std::vector<float> scales(static_cast<size_t>(layout.groups() * narrow));
    for (int g = 0; g < layout.groups(); ++g) {
        float * of_group = &scales[g * narrow];
        for (int c = 0; c < narrow; ++c)
            of_group[c] = mean_magnitude(&coefficients[c * page_tokens + g * group], use + g * group, group);
        const ScaleGrid grid(*std::max_element(of_group, of_group + narrow));
        for (int c = 0; c < narrow; ++c) {
            of_group[c] = grid.round(of_group[c]);
            store_at(meta + g * group_meta + 4 * wide, c, float_to_half(of_group[c]));
        }
    }
    for (int c = 0; c < narrow; ++c) {
        for (int t = 0; t < page_tokens; ++t) { // 1 is +, and stands where there is no sign
            levels[4 * t + c % 4] = coefficients[c * page_tokens + t] >= 0.0f || scales[t / group * narrow + c] == 0.0f;
        }
        if (c % 4 == 3) {
            pack_uniform(QuadCode::uniform1, levels, page_tokens, codes);
            codes += quad_bytes(QuadCode::uniform1, page_tokens);
        }
    }
}

} // namespace vidkv
