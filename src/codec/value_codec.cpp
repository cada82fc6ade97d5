#include "codec/value_codec.h"

#include <vector>

#include "base/bytes.h"
#include "codec/affine2.h"
#include "codec/trit.h"

namespace vidkv {

namespace {

void encode_affine2(const ValueLayout & layout, const float * x, const uint8_t * use, uint8_t * block) {
    const size_t channels = static_cast<size_t>(layout.head_dim);
    for (size_t c = 0; c < channels; ++c) {
        float low = 0, high = 0;
        bool first = true;
        for (int t = 0; t < layout.tokens; ++t) {
            if (!use[t]) continue;
            const float v = sanitize(x[t * channels + c]);
            low = first ? v : std::min(low, v);
            high = first ? v : std::max(high, v);
            first = false;
        }
        const Affine2 affine = Affine2::between(low, high);
        store_at(block + layout.scale, c, affine.scale);
        store_at(block + layout.minimum, c, affine.minimum);
        for (int t = 0; t < layout.tokens; t += 4) {
            unsigned byte = 0;
            for (int i = 0; i < 4; ++i) byte |= static_cast<unsigned>(affine.code(sanitize(x[(t + i) * channels + c]))) << (2 * i);
            block[layout.codes + t / 4 * channels + c] = static_cast<uint8_t>(byte);
        }
    }
}

// Where element (token, channel) sits: which byte, and which of its five digits.
struct TritPlace {
    size_t byte;
    int digit;
};
TritPlace trit_place(const ValueLayout & layout, int token, size_t channel) {
    const size_t channels = static_cast<size_t>(layout.head_dim);
    const int full = layout.tokens / 5 * 5;
    if (token < full) return {layout.codes + token / 5 * channels + channel, token % 5};
    const size_t index = (token - full) * channels + channel;
    return {layout.tail + index % layout.tail_bytes, static_cast<int>(index / layout.tail_bytes)};
}

void encode_ternary(const ValueLayout & layout, const float * x, const uint8_t * use, uint8_t * block) {
    const size_t channels = static_cast<size_t>(layout.head_dim);
    const size_t packed = layout.bytes - layout.codes;
    std::vector<uint8_t> digits(packed * 5, 1); // 1 is zero
    for (size_t c = 0; c < channels; ++c) {
        float sum = 0;
        int count = 0;
        for (int t = 0; t < layout.tokens; ++t) {
            if (!use[t]) continue;
            sum += std::fabs(sanitize(x[t * channels + c]));
            ++count;
        }
        const float mean = count ? sum / static_cast<float>(count) : 0.0f;
        store_at(block + layout.scale, c, float_to_half(mean));
        for (int t = 0; t < layout.tokens; ++t) {
            const float v = sanitize(x[t * channels + c]);
            const TritPlace place = trit_place(layout, t, c);
            digits[(place.byte - layout.codes) * 5 + place.digit] = v > 0.5f * mean ? 2 : v < -0.5f * mean ? 0 : 1;
        }
    }
    for (size_t i = 0; i < packed; ++i) block[layout.codes + i] = pack_trits(&digits[i * 5]);
}

} // namespace

void encode_values(const ValueLayout & layout, const float * x, const uint8_t * use, uint8_t * block) {
    if (layout.code == ValueCode::affine2) return encode_affine2(layout, x, use, block);
    encode_ternary(layout, x, use, block);
}

void decode_values(const ValueLayout & layout, const uint8_t * block, float * tile) {
    const size_t channels = static_cast<size_t>(layout.head_dim);
    for (int t = 0; t < layout.tokens; ++t) {
        for (size_t c = 0; c < channels; ++c) {
            const uint16_t scale = load_at<uint16_t>(block + layout.scale, c);
            if (layout.code == ValueCode::affine2) {
                const Affine2 affine{scale, load_at<uint16_t>(block + layout.minimum, c)};
                *tile++ = affine.value(block[layout.codes + t / 4 * channels + c] >> (2 * (t % 4)) & 3u);
            } else {
                uint8_t digits[5];
                const TritPlace place = trit_place(layout, t, c);
                unpack_trits(block[place.byte], digits);
                *tile++ = half_to_float(scale) * static_cast<float>(digits[place.digit] - 1);
            }
        }
    }
}

} // namespace vidkv
