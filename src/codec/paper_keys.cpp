// Keys as the paper has them, corrected (section 3.2): anomalous channels as 2-bit codes between minimum and maximum, the others
// through a real DFT over the channels and then sign and mean magnitude.
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

// One DFT coefficient of one group: its mean magnitude over the tokens in use, then signs (1 is +).
uint16_t encode_narrow(const float * y, const uint8_t * use, int tokens, uint8_t * levels) {
    float sum = 0;
    int count = 0;
    for (int t = 0; t < tokens; ++t) {
        if (!use[t]) continue;
        sum += std::fabs(y[t]);
        ++count;
    }
    for (int t = 0; t < tokens; ++t) levels[4 * t] = y[t] >= 0.0f;
    return float_to_half(count ? std::min(sum / static_cast<float>(count), half_max) : 0.0f);
}

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
    for (int c = 0; c < narrow; ++c) {
        for (int g = 0; g < layout.groups(); ++g) {
            const int first = g * group;
            const uint16_t scale = encode_narrow(&coefficients[c * page_tokens + first], use + first, group, levels + 4 * first + c % 4);
            store_at(meta + g * group_meta + 4 * wide, c, scale);
        }
        if (c % 4 == 3) {
            pack_uniform(QuadCode::uniform1, levels, page_tokens, codes);
            codes += quad_bytes(QuadCode::uniform1, page_tokens);
        }
    }
}

} // namespace vidkv
