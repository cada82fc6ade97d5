// The bytes of a sealed group of one KV head: what lies where, and how many. docs/format.md is the same in words.
#pragma once

#include <cstddef>
#include <cstdint>

#include "vidkv/vidkv.h"

namespace vidkv {

// Keys, tokens of one channel side by side. Channels stand in plan order (see channel_plan.h): first `wide` channels at
// 2 bits, then `narrow` real-DFT coefficients of the others at 1 bit. Sections, in order:
//   f16 scale[wide], f16 minimum[wide], f16 scale[narrow], 2-bit codes[wide][tokens], sign bits[narrow][tokens]
struct KeyLayout {
    int head_dim = 0, tokens = 0, wide = 0, narrow = 0;
    size_t wide_scale = 0, wide_min = 0, narrow_scale = 0, codes = 0, signs = 0; // byte offsets
    size_t bytes = 0;
};

enum class ValueCode : uint8_t { affine2, ternary };

// Values, channels of one token side by side. Sections, in order:
//   affine2: f16 scale[head_dim], f16 minimum[head_dim], codes[tokens/4][head_dim]: byte (r, c) holds tokens 4r..4r+3 of
//            channel c, lowest bits first
//   ternary: f16 scale[head_dim], trits[tokens/5][head_dim]: byte (r, c) holds tokens 5r..5r+4 of channel c (trit.h); then
//            the tokens % 5 rows left over, flattened to n trits, in ceil(n/5) = S bytes: byte j holds trits j, j+S, ...
struct ValueLayout {
    int head_dim = 0, tokens = 0;
    ValueCode code = ValueCode::affine2;
    size_t scale = 0, minimum = 0, codes = 0, tail = 0; // byte offsets; `minimum` for affine2, `tail` for ternary
    size_t tail_bytes = 0;
    size_t bytes = 0;
};

// head_dim: a multiple of 8; params must have passed vidkv_params_check and the side must not be f16.
KeyLayout make_key_layout(const vidkv_params & params, int head_dim);
ValueLayout make_value_layout(const vidkv_params & params, int head_dim);

// Bytes of a sealed group of one KV head; 16-bit rows if that side is f16.
size_t group_bytes(const vidkv_params & params, vidkv_side side, int head_dim);

inline bool is_f16(const vidkv_params & params, vidkv_side side) {
    return (side == VIDKV_KEYS ? params.key_bits : params.value_bits) == 16.0f;
}

} // namespace vidkv
