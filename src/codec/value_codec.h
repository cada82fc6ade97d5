// Values -> packed groups (paper, section 3.3): per channel, 2-bit between minimum and maximum, or ternary {-s, 0, +s}.
#pragma once

#include <cstdint>

#include "codec/layout.h"

namespace vidkv {

// x: f32 [tokens][head_dim]. use[t] == 0 leaves token t out of the statistics (a hole or a sink token). Non-finite inputs
// count as 0. block: layout.bytes bytes.
void encode_values(const ValueLayout & layout, const float * x, const uint8_t * use, uint8_t * block);

// tile: f32 [tokens][head_dim].
void decode_values(const ValueLayout & layout, const uint8_t * block, float * tile);

} // namespace vidkv
