#include "codec/key_codec.h"

#include <vector>

#include "base/bytes.h"
#include "codec/affine2.h"
#include "codec/real_dft.h"

namespace vidkv {

namespace {

// One anomalous channel: range over the tokens in use, then 2-bit codes, four tokens to a byte.
void encode_wide(const float * x, const uint8_t * use, int tokens, Affine2 & affine, uint8_t * codes) {
    float low = 0, high = 0;
    bool first = true;
    for (int t = 0; t < tokens; ++t) {
        if (!use[t]) continue;
        const float v = sanitize(x[t]);
        low = first ? v : std::min(low, v);
        high = first ? v : std::max(high, v);
        first = false;
    }
    affine = Affine2::between(low, high);
    for (int t = 0; t < tokens; t += 4) {
        unsigned byte = 0;
        for (int i = 0; i < 4; ++i) byte |= static_cast<unsigned>(affine.code(sanitize(x[t + i]))) << (2 * i);
        codes[t / 4] = static_cast<uint8_t>(byte);
    }
}

// One DFT coefficient: mean magnitude over the tokens in use, then signs (1 is +), eight tokens to a byte.
void encode_narrow(const float * y, const uint8_t * use, int tokens, uint16_t & scale, uint8_t * signs) {
    float sum = 0;
    int count = 0;
    for (int t = 0; t < tokens; ++t) {
        if (!use[t]) continue;
        sum += std::fabs(y[t]);
        ++count;
    }
    scale = float_to_half(count ? std::min(sum / static_cast<float>(count), half_max) : 0.0f);
    for (int t = 0; t < tokens; t += 8) {
        unsigned byte = 0;
        for (int i = 0; i < 8; ++i) byte |= static_cast<unsigned>(y[t + i] >= 0.0f) << i;
        signs[t / 8] = static_cast<uint8_t>(byte);
    }
}

} // namespace

void encode_keys(const KeyLayout & layout, const ChannelPlan & plan, const float * x, const uint8_t * use, uint8_t * block) {
    const int tokens = layout.tokens;
    const size_t width = static_cast<size_t>(tokens);
    for (int j = 0; j < layout.wide; ++j) {
        Affine2 affine;
        encode_wide(x + plan.order[j] * width, use, tokens, affine, block + layout.codes + j * width / 4);
        store_at(block + layout.wide_scale, j, affine.scale);
        store_at(block + layout.wide_min, j, affine.minimum);
    }
    if (layout.narrow == 0) return;
    const size_t elements = static_cast<size_t>(layout.narrow) * width;
    std::vector<float> gathered(elements), coefficients(elements);
    for (int j = 0; j < layout.narrow; ++j) {
        const float * channel = x + plan.order[layout.wide + j] * width;
        for (size_t t = 0; t < width; ++t) gathered[j * width + t] = sanitize(channel[t]);
    }
    real_dft(layout.narrow)->forward_columns(gathered.data(), coefficients.data(), tokens);
    for (int j = 0; j < layout.narrow; ++j) {
        uint16_t scale;
        encode_narrow(&coefficients[j * width], use, tokens, scale, block + layout.signs + j * width / 8);
        store_at(block + layout.narrow_scale, j, scale);
    }
}

void decode_keys(const KeyLayout & layout, const uint8_t * block, float * tile) {
    const size_t tokens = static_cast<size_t>(layout.tokens);
    for (int j = 0; j < layout.wide; ++j) {
        const Affine2 affine{load_at<uint16_t>(block + layout.wide_scale, j), load_at<uint16_t>(block + layout.wide_min, j)};
        const uint8_t * codes = block + layout.codes + j * tokens / 4;
        for (size_t t = 0; t < tokens; ++t) *tile++ = affine.value(codes[t / 4] >> (2 * (t % 4)) & 3u);
    }
    for (int j = 0; j < layout.narrow; ++j) {
        const float scale = half_to_float(load_at<uint16_t>(block + layout.narrow_scale, j));
        const uint8_t * signs = block + layout.signs + j * tokens / 8;
        for (size_t t = 0; t < tokens; ++t) *tile++ = signs[t / 8] >> (t % 8) & 1u ? scale : -scale;
    }
}

void plan_query(const KeyLayout & layout, const ChannelPlan & plan, const float * q, float * out) {
    for (int j = 0; j < layout.wide; ++j) out[j] = q[plan.order[j]];
    if (layout.narrow == 0) return;
    float gathered[512];
    for (int j = 0; j < layout.narrow; ++j) gathered[j] = q[plan.order[layout.wide + j]];
    real_dft(layout.narrow)->forward(gathered, out + layout.wide);
}

void restore_keys(const KeyLayout & layout, const ChannelPlan & plan, const float * tile, float * x) {
    const size_t tokens = static_cast<size_t>(layout.tokens);
    for (int j = 0; j < layout.wide; ++j) std::copy_n(tile + j * tokens, tokens, x + plan.order[j] * tokens);
    if (layout.narrow == 0) return;
    std::vector<float> natural(static_cast<size_t>(layout.narrow) * tokens);
    real_dft(layout.narrow)->inverse_columns(tile + layout.wide * tokens, natural.data(), layout.tokens);
    for (int j = 0; j < layout.narrow; ++j) {
        std::copy_n(&natural[j * tokens], tokens, x + plan.order[layout.wide + j] * tokens);
    }
}

} // namespace vidkv
