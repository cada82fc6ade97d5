// Values <-> sealed pages.
#pragma once

#include <array>
#include <cstdint>

#include "codec/layout.h"

namespace vidkv {

// ---- reading: what attention needs ----

enum class Sharing { nothing, mean, direction }; // by the tokens of a head: page_mean.h

// One head's part of a sealed page.
struct ValuePage {
    const uint8_t * codes = nullptr;
    const uint8_t * meta = nullptr;
    int protected_units = 0;
    const uint8_t * mask = nullptr; // one bit per token: protected ones fill the first slots. Null: slot s holds token s
    const uint8_t *mean = nullptr, *direction = nullptr; // trellis, a still page: blocks of page_mean.h
    int narrow_quads = 0;                                // that leave the room for them
    bool is_still() const { return mean != nullptr; }
    Sharing sharing() const { return direction ? Sharing::direction : mean ? Sharing::mean : Sharing::nothing; }
};
ValuePage value_page(const ValueLayout & layout, const uint8_t * page, int head);
// What value_page reads of the page first.
const uint8_t * value_page_start(const ValueLayout & layout, const uint8_t * page, int head);

// The token that each slot holds.
std::array<uint8_t, page_tokens> slot_tokens(const ValuePage & page);

// Levels of group g (paper) as [quad][head_dim][4 slots]; uniform2 or ternary (levels 0, 1, 2).
void unpack_value_group(const ValueLayout & layout, const ValuePage & page, int group, uint8_t * levels);

// Paper: an element of channel c in group g is a[c] * level + b[c].
void value_affine(const ValueLayout & layout, const ValuePage & page, int group, float * a, float * b);

// Trellis: an element of slot s, rotated channel c, is mean[c] + along[s] * direction[c] + scale[s] * (level - 7.5), scale with the
// code's step in it: [128].
void value_scales(const ValueLayout & layout, const ValuePage & page, float * scale);
// [head_dim]; 0 unless the page is still.
void value_mean(const ValueLayout & layout, const ValuePage & page, float * mean);
// [head_dim], [128]; 0 unless the page has a direction.
void value_direction(const ValueLayout & layout, const ValuePage & page, float * direction, float * along);

// The specification of decoding: [128 tokens][head_dim], natural channels and tokens.
void decode_values(const ValueLayout & layout, const ValuePage & page, float * x);

// Whether a page of unknown origin can be read: its mask fits its size, and a direction has room.
bool is_sound(const ValueLayout & layout, const uint8_t * page, size_t bytes);
// The most that some head of a sound page shares.
Sharing most_shared(const ValueLayout & layout, const uint8_t * page);

// ---- writing ----

// levels: the group as [quad][head_dim][4 slots]; element (slot, channel).
inline uint8_t & level_at(uint8_t * levels, int head_dim, int slot, int channel) {
    return levels[(slot / 4 * head_dim + channel) * 4 + slot % 4];
}

// x: f32 [128 slots][head_dim], slots as the mask orders them. use[s] == 0 leaves slot s out of the statistics (a hole or a
// sink token). Non-finite inputs count as 0. codes and meta: the head's part of the page.
void encode_paper_values(const ValueLayout & layout, const float * x, const uint8_t * use, int protected_units,
                         uint8_t * codes, uint8_t * meta);
void encode_trellis_values(const ValueLayout & layout, const float * x, const uint8_t * use, int protected_units,
                           uint8_t * codes, uint8_t * meta);
inline void encode_values(const ValueLayout & layout, const float * x, const uint8_t * use, int protected_units,
                          uint8_t * codes, uint8_t * meta) {
    const auto encode = layout.codec == VIDKV_CODEC_PAPER ? encode_paper_values : encode_trellis_values;
    encode(layout, x, use, protected_units, codes, meta);
}

} // namespace vidkv
