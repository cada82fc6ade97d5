#include "codec/layout.h"

#include <cmath>

namespace vidkv {

KeyLayout make_key_layout(const vidkv_params & params, int head_dim) {
    KeyLayout layout;
    layout.head_dim = head_dim;
    layout.tokens = params.group_size;
    layout.wide = static_cast<int>(std::lround(head_dim * (params.key_bits - 1.0f)));
    layout.narrow = head_dim - layout.wide;
    const size_t wide = static_cast<size_t>(layout.wide), narrow = static_cast<size_t>(layout.narrow);
    const size_t tokens = static_cast<size_t>(layout.tokens);
    layout.wide_scale = 0;
    layout.wide_min = layout.wide_scale + 2 * wide;
    layout.narrow_scale = layout.wide_min + 2 * wide;
    layout.codes = layout.narrow_scale + 2 * narrow;
    layout.signs = layout.codes + wide * tokens / 4;
    layout.bytes = layout.signs + narrow * tokens / 8;
    return layout;
}

ValueLayout make_value_layout(const vidkv_params & params, int head_dim) {
    ValueLayout layout;
    layout.head_dim = head_dim;
    layout.tokens = params.group_size;
    layout.code = params.value_bits == 2.0f ? ValueCode::affine2 : ValueCode::ternary;
    const size_t channels = static_cast<size_t>(head_dim), tokens = static_cast<size_t>(layout.tokens);
    layout.scale = 0;
    if (layout.code == ValueCode::affine2) {
        layout.minimum = 2 * channels;
        layout.codes = layout.minimum + 2 * channels;
        layout.bytes = layout.codes + channels * tokens / 4;
    } else {
        layout.codes = 2 * channels;
        layout.tail = layout.codes + channels * (tokens / 5);
        layout.tail_bytes = (tokens % 5 * channels + 4) / 5;
        layout.bytes = layout.tail + layout.tail_bytes;
    }
    return layout;
}

size_t group_bytes(const vidkv_params & params, vidkv_side side, int head_dim) {
    if (is_f16(params, side)) return static_cast<size_t>(head_dim) * static_cast<size_t>(params.group_size) * 2;
    return side == VIDKV_KEYS ? make_key_layout(params, head_dim).bytes : make_value_layout(params, head_dim).bytes;
}

} // namespace vidkv
