// The bytes of a sealed page: what lies where, and how many. docs/format.md is the same in words.
#pragma once

#include <cstddef>
#include <cstdint>

#include "codec/quad.h"
#include "vidkv/vidkv.h"

namespace vidkv {

constexpr int page_tokens = VIDKV_PAGE;
constexpr size_t quad_bit_bytes = page_tokens / 2; // of a key page: a bit for each element of a quad

// Keys. A page of a layer: [codes of every KV head][meta of every KV head][u16 code_start[kv_heads], trellis only].
// A head's codes are quads of four channels x 128 tokens, channels in plan order (channel_plan.h), one after the other.
// A head's meta:
//   paper:   for each of the 128 / group groups: f16 scale[wide], f16 minimum[wide], f16 scale[narrow]; the quads are `wide`
//            channels as uniform2, then `narrow` DFT coefficients as uniform1
//   trellis: u8 scale[head_dim], i8 mean[head_dim] in eighths of the scale, 4-bit QuadCode[head_dim / 4] (low half first)
struct KeyLayout {
    vidkv_codec codec = VIDKV_CODEC_PAPER;
    int head_dim = 0, kv_heads = 0;
    int group = page_tokens;  // tokens that share a scale
    int wide = 0, narrow = 0; // paper: multiples of 4
    int quad_bits = 0;        // trellis: bits to spend on a page, in quads (64 bytes each), over all heads
    size_t head_codes = 0;    // bytes of one head's codes; trellis: of all heads together
    size_t head_meta = 0;     // bytes of one head's meta
    size_t page_bytes = 0;
    int groups() const { return page_tokens / group; }
};

// Values. A page: [u8 mask[16], only where params.protect is not 0][codes of every KV head][meta of every KV head].
// Tokens stand in *slots*: protected ones first, each part in rising order; without protection slot t is token t.
// A head's codes:
//   paper:   for each group of slots: 2 bits: quads of four slots x head_dim as uniform2; ternary: head_dim * group digits, five
//            to a byte (trit.h): digits in quad order, N of them in P = ceil(N / 5) bytes, byte j holds j, j+P, .., j+4P
//   trellis: quads of four slots x head_dim, in the rotated domain (rotation.h)
// A head's meta: paper: for each group f16 scale[head_dim], and f16 minimum[head_dim] where it is 2-bit; trellis: u8 scale[128].
// Protected groups (paper) are 2-bit, protected quads (trellis) have `protected_code`.
// Trellis, where the last scale is `still_mark`, which no other page has there: the head's tokens share a mean, and perhaps a
// direction (page_mean.h). Their bytes end the head's codes; the last quads have `narrow_code` and so leave the room for them:
// `mean_quads` quads, or `direction_quads` of a head with a direction.
struct ValueLayout {
    vidkv_codec codec = VIDKV_CODEC_PAPER;
    int head_dim = 0, kv_heads = 0;
    int group = page_tokens;
    bool protects = false;
    bool ternary = false;                 // paper: the groups that are not protected
    QuadCode plain_code = QuadCode::none; // trellis
    QuadCode protected_code = QuadCode::none;
    QuadCode narrow_code = QuadCode::none;
    int mean_quads = 0, direction_quads = 0;
    size_t plain_quad = 0, protected_quad = 0, narrow_quad = 0; // bytes of a quad
    int groups() const { return page_tokens / group; }
    // Protection goes by units: groups (paper) or quads (trellis). n tokens to protect take this many units.
    int unit() const { return codec == VIDKV_CODEC_PAPER ? group : 4; }
    int protected_units(int tokens) const;

    bool is_ternary(int group_index, int protected_units) const { return ternary && group_index >= protected_units; }
    // narrow_quads: of the head, at its end
    QuadCode quad_code(int quad, int protected_units, int narrow_quads) const {
        if (quad < protected_units) return protected_code;
        return quad >= page_tokens / 4 - narrow_quads ? narrow_code : plain_code;
    }
    bool has_room_for_direction(int protected_units) const {
        return codec == VIDKV_CODEC_TRELLIS && direction_quads <= page_tokens / 4 - protected_units;
    }
    size_t group_codes(bool ternary_group) const; // paper: bytes of one group
    size_t group_meta(bool ternary_group) const;
    size_t head_codes(int protected_units) const;
    size_t head_meta(int protected_units) const;
    size_t page_bytes(int protected_units) const;
};

// head_dim: a multiple of 8; params must have passed vidkv_params_check and the side must not be f16.
KeyLayout make_key_layout(const vidkv_params & params, int head_dim, int kv_heads);
ValueLayout make_value_layout(const vidkv_params & params, int head_dim, int kv_heads);

// Bytes of a sealed page of all KV heads; 16-bit rows if that side is f16. Values with protection: at the share asked for.
size_t page_bytes(const vidkv_params & params, vidkv_side side, int head_dim, int kv_heads);

inline float & bits_of(vidkv_params & params, int side) { return side == VIDKV_KEYS ? params.key_bits : params.value_bits; }
inline float bits_of(const vidkv_params & params, int side) {
    return side == VIDKV_KEYS ? params.key_bits : params.value_bits;
}
inline bool is_f16(const vidkv_params & params, vidkv_side side) { return bits_of(params, side) == 16.0f; }

} // namespace vidkv
