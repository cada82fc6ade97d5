#include "codec/layout.h"

#include <algorithm>
#include <cmath>

#include "codec/page_mean.h"

namespace vidkv {

namespace {

constexpr int round_to(int n, int multiple) { return (n + multiple / 2) / multiple * multiple; }

// Bits of trellis keys beside the codes: scale and mean per channel, code and place per quad.
KeyLayout trellis_keys(KeyLayout layout, float key_bits) {
    layout.group = page_tokens;
    const int quads = layout.head_dim / 4;
    layout.quad_bits = static_cast<int>(std::floor(key_bits * static_cast<float>(quads))) * layout.kv_heads;
    layout.head_codes = static_cast<size_t>(layout.quad_bits) * quad_bit_bytes;
    layout.head_meta = static_cast<size_t>(2 * layout.head_dim + layout.head_dim / 8);
    layout.page_bytes = layout.head_codes + static_cast<size_t>(layout.kv_heads) * (layout.head_meta + sizeof(uint16_t));
    return layout;
}

KeyLayout paper_keys(KeyLayout layout, const vidkv_params & params) {
    layout.group = params.group_size;
    layout.wide =
        round_to(static_cast<int>(std::lround(static_cast<float>(layout.head_dim) * (params.key_bits - 1.0f))), 4);
    layout.narrow = layout.head_dim - layout.wide;
    layout.head_codes = static_cast<size_t>(layout.wide / 4) * quad_bytes(QuadCode::uniform2, page_tokens) +
                        static_cast<size_t>(layout.narrow / 4) * quad_bytes(QuadCode::uniform1, page_tokens);
    layout.head_meta = static_cast<size_t>(layout.groups() * 2 * (2 * layout.wide + layout.narrow));
    layout.page_bytes = static_cast<size_t>(layout.kv_heads) * (layout.head_codes + layout.head_meta);
    return layout;
}

QuadCode code_of(float bits) {
    return bits == 1.0f   ? QuadCode::trellis1
           : bits == 1.5f ? QuadCode::trellis1_5
           : bits == 2.0f ? QuadCode::trellis2
           : bits == 3.0f ? QuadCode::trellis3
                          : QuadCode::uniform4;
}

QuadCode narrower(float bits) {
    return bits == 1.0f   ? QuadCode::none
           : bits <= 2.0f ? QuadCode::trellis1
           : bits == 3.0f ? QuadCode::trellis2
                          : QuadCode::trellis3;
}

} // namespace

int ValueLayout::protected_units(int tokens) const {
    if (tokens <= 0) return 0;
    const int units = codec == VIDKV_CODEC_PAPER ? std::max(1, round_to(tokens, group) / group) : (tokens + 3) / 4;
    return std::min(units, page_tokens / unit());
}

size_t ValueLayout::group_codes(bool ternary_group) const {
    const size_t levels = static_cast<size_t>(group) * static_cast<size_t>(head_dim);
    return ternary_group ? (levels + 4) / 5 : levels / 4;
}

size_t ValueLayout::group_meta(bool ternary_group) const { return static_cast<size_t>(head_dim) * (ternary_group ? 2 : 4); }

size_t ValueLayout::head_codes(int units) const {
    const size_t special = static_cast<size_t>(units), plain = static_cast<size_t>(page_tokens / unit() - units);
    if (codec == VIDKV_CODEC_PAPER) return special * group_codes(false) + plain * group_codes(ternary);
    return special * protected_quad + plain * plain_quad;
}

size_t ValueLayout::head_meta(int units) const {
    if (codec == VIDKV_CODEC_TRELLIS) return page_tokens;
    const size_t special = static_cast<size_t>(units), plain = static_cast<size_t>(groups() - units);
    return special * group_meta(false) + plain * group_meta(ternary);
}

size_t ValueLayout::page_bytes(int units) const {
    return static_cast<size_t>(kv_heads) * (head_codes(units) + head_meta(units)) + (protects ? page_tokens / 8 : 0);
}

KeyLayout make_key_layout(const vidkv_params & params, int head_dim, int kv_heads) {
    KeyLayout layout;
    layout.codec = static_cast<vidkv_codec>(params.key_codec);
    layout.head_dim = head_dim;
    layout.kv_heads = kv_heads;
    return layout.codec == VIDKV_CODEC_TRELLIS ? trellis_keys(layout, params.key_bits) : paper_keys(layout, params);
}

ValueLayout make_value_layout(const vidkv_params & params, int head_dim, int kv_heads) {
    ValueLayout layout;
    layout.codec = static_cast<vidkv_codec>(params.value_codec);
    layout.head_dim = head_dim;
    layout.kv_heads = kv_heads;
    layout.protects = params.protect > 0.0f;
    if (layout.codec == VIDKV_CODEC_PAPER) {
        layout.group = params.group_size;
        layout.ternary = params.value_bits != 2.0f;
    } else {
        layout.plain_code = code_of(params.value_bits);
        layout.protected_code = code_of(params.value_bits < 2.0f ? 2.0f : 3.0f);
        layout.narrow_code = narrower(params.value_bits);
        layout.plain_quad = quad_bytes(layout.plain_code, head_dim);
        layout.protected_quad = quad_bytes(layout.protected_code, head_dim);
        layout.narrow_quad = quad_bytes(layout.narrow_code, head_dim);
        const size_t saved = layout.plain_quad - layout.narrow_quad;
        const auto quads_that_save = [&](size_t bytes) { return static_cast<int>((bytes + saved - 1) / saved); };
        layout.mean_quads = quads_that_save(page_mean_bytes(head_dim));
        layout.direction_quads = quads_that_save(page_mean_bytes(head_dim) + page_direction_bytes(head_dim, page_tokens));
    }
    return layout;
}

size_t page_bytes(const vidkv_params & params, vidkv_side side, int head_dim, int kv_heads) {
    if (is_f16(params, side)) return static_cast<size_t>(head_dim * kv_heads) * page_tokens * 2;
    if (side == VIDKV_KEYS) return make_key_layout(params, head_dim, kv_heads).page_bytes;
    const ValueLayout layout = make_value_layout(params, head_dim, kv_heads);
    return layout.page_bytes(layout.protected_units(static_cast<int>(std::lround(params.protect * page_tokens))));
}

} // namespace vidkv
