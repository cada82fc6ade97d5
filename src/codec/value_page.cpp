#include "codec/value_page.h"

#include <algorithm>
#include <bit>
#include <numeric>
#include <vector>

#include "base/bytes.h"
#include "base/half.h"
#include "codec/log_scale.h"
#include "codec/page_mean.h"
#include "codec/rotation.h"
#include "codec/trit.h"

namespace vidkv {

namespace {

// Where a group's codes and meta begin.
struct GroupPlace {
    size_t codes = 0, meta = 0;
    GroupPlace(const ValueLayout & layout, int units, int group) {
        for (int g = 0; g < group; ++g) {
            codes += layout.group_codes(layout.is_ternary(g, units));
            meta += layout.group_meta(layout.is_ternary(g, units));
        }
    }
};

void unpack_ternary(const uint8_t * packed, size_t n, uint8_t * levels) {
    const size_t p = (n + 4) / 5;
    for (size_t j = 0; j < p; ++j) {
        uint8_t digits[5];
        unpack_trits(packed[j], digits);
        for (size_t d = 0; d < 5 && j + d * p < n; ++d) levels[j + d * p] = digits[d];
    }
}

int marked_tokens(const uint8_t * mask) {
    return std::accumulate(mask, mask + page_tokens / 8, 0, [](int n, uint8_t bits) { return n + std::popcount(bits); });
}

// What the tokens of a still page share ends the head's codes.
void find_shared(const ValueLayout & layout, ValuePage & page, const uint8_t * end) {
    page.mean = end - page_mean_bytes(layout.head_dim);
    const bool has_direction = page.mean[1] == 0;
    if (has_direction) page.direction = page.mean - page_direction_bytes(layout.head_dim, page_tokens);
    page.narrow_quads = has_direction ? layout.direction_quads : layout.mean_quads;
}

} // namespace

ValuePage value_page(const ValueLayout & layout, const uint8_t * page, int head) {
    ValuePage out;
    if (layout.protects) { // the mask stands first: the sizes of the rest follow from it
        out.mask = page;
        out.protected_units = marked_tokens(page) / layout.unit();
        page += page_tokens / 8;
    }
    const size_t heads = static_cast<size_t>(layout.kv_heads), h = static_cast<size_t>(head);
    const size_t codes = layout.head_codes(out.protected_units), meta = layout.head_meta(out.protected_units);
    out.codes = page + h * codes;
    out.meta = page + heads * codes + h * meta;
    if (layout.codec == VIDKV_CODEC_TRELLIS && out.meta[page_tokens - 1] == still_mark)
        find_shared(layout, out, out.codes + codes);
    return out;
}

const uint8_t * value_page_start(const ValueLayout & layout, const uint8_t * page, int head) {
    if (layout.protects || layout.codec != VIDKV_CODEC_TRELLIS) return page;
    return page + static_cast<size_t>(layout.kv_heads) * layout.head_codes(0) +
           static_cast<size_t>(head) * layout.head_meta(0) + page_tokens - 1;
}

std::array<uint8_t, page_tokens> slot_tokens(const ValuePage & page) {
    std::array<uint8_t, page_tokens> token;
    int next[] = {page.mask ? marked_tokens(page.mask) : 0, 0}; // plain, protected
    for (int t = 0; t < page_tokens; ++t) {
        const bool marked = page.mask && (page.mask[t / 8] >> (t % 8) & 1);
        token[static_cast<size_t>(next[marked]++)] = static_cast<uint8_t>(t);
    }
    return token;
}

bool is_sound(const ValueLayout & layout, const uint8_t * page, size_t bytes) {
    if (layout.protects && bytes < page_tokens / 8) return false;
    const int marked = layout.protects ? marked_tokens(page) : 0, units = marked / layout.unit();
    if (marked % layout.unit() != 0 || bytes != layout.page_bytes(units)) return false;
    return layout.has_room_for_direction(units) || most_shared(layout, page) != Sharing::direction;
}

Sharing most_shared(const ValueLayout & layout, const uint8_t * page) {
    Sharing most = Sharing::nothing;
    for (int head = 0; head < layout.kv_heads; ++head) most = std::max(most, value_page(layout, page, head).sharing());
    return most;
}

void unpack_value_group(const ValueLayout & layout, const ValuePage & page, int group, uint8_t * levels) {
    const uint8_t * codes = page.codes + GroupPlace(layout, page.protected_units, group).codes;
    const int head_dim = layout.head_dim;
    if (layout.is_ternary(group, page.protected_units)) {
        return unpack_ternary(codes, static_cast<size_t>(layout.group) * head_dim, levels);
    }
    const size_t quad = quad_bytes(QuadCode::uniform2, head_dim);
    for (int q = 0; q < layout.group / 4; ++q)
        unpack_quad(QuadCode::uniform2, codes + q * quad, head_dim, levels + q * head_dim * 4);
}

void value_affine(const ValueLayout & layout, const ValuePage & page, int group, float * a, float * b) {
    const uint8_t * meta = page.meta + GroupPlace(layout, page.protected_units, group).meta;
    const bool ternary = layout.is_ternary(group, page.protected_units);
    for (int c = 0; c < layout.head_dim; ++c) {
        a[c] = half_to_float(load_at<uint16_t>(meta, c));
        b[c] = ternary ? -a[c] : half_to_float(load_at<uint16_t>(meta + 2 * layout.head_dim, c));
    }
}

void value_scales(const ValueLayout & layout, const ValuePage & page, float * scale) {
    for (int s = 0; s < page_tokens; ++s) {
        const uint8_t * code = page.is_still() && s == page_tokens - 1 ? page.mean : page.meta + s;
        scale[s] =
            log_scale_value(*code) * level_grid(layout.quad_code(s / 4, page.protected_units, page.narrow_quads)).step;
    }
}

void value_mean(const ValueLayout & layout, const ValuePage & page, float * mean) {
    if (!page.is_still()) return static_cast<void>(std::fill_n(mean, layout.head_dim, 0.0f));
    load_shared_vector(page.direction ? page.direction[0] : page.mean[1], page.mean + 2, layout.head_dim, mean);
}

void value_direction(const ValueLayout & layout, const ValuePage & page, float * direction, float * along) {
    std::fill_n(direction, layout.head_dim, 0.0f);
    std::fill_n(along, page_tokens, 0.0f);
    if (!page.direction) return;
    load_shared_vector(page.direction[1], page.direction + 2, layout.head_dim, direction);
    load_along(page.direction + 2 + shared_vector_bytes(layout.head_dim), page_tokens, along);
}

void decode_values(const ValueLayout & layout, const ValuePage & page, float * x) {
    const int head_dim = layout.head_dim;
    const auto token = slot_tokens(page);
    const auto row_of = [&](int slot) { return x + token[slot] * head_dim; };
    if (layout.codec == VIDKV_CODEC_PAPER) {
        std::vector<uint8_t> levels(static_cast<size_t>(layout.group) * head_dim);
        std::vector<float> a(head_dim), b(head_dim);
        for (int g = 0; g < layout.groups(); ++g) {
            unpack_value_group(layout, page, g, levels.data());
            value_affine(layout, page, g, a.data(), b.data());
            for (int t = 0; t < layout.group; ++t) {
                float * row = row_of(g * layout.group + t);
                for (int c = 0; c < head_dim; ++c) row[c] = a[c] * level_at(levels.data(), head_dim, t, c) + b[c];
            }
        }
        return;
    }
    const auto rotate = rotation(head_dim);
    float scale[page_tokens];
    value_scales(layout, page, scale);
    std::vector<float> mean(head_dim), direction(head_dim);
    float along[page_tokens];
    value_mean(layout, page, mean.data());
    value_direction(layout, page, direction.data(), along);
    std::vector<uint8_t> levels(static_cast<size_t>(head_dim) * 4);
    const uint8_t * codes = page.codes;
    for (int slot = 0; slot < page_tokens; ++slot) {
        if (slot % 4 == 0) {
            const QuadCode code = layout.quad_code(slot / 4, page.protected_units, page.narrow_quads);
            unpack_quad(code, codes, head_dim, levels.data());
            codes += quad_bytes(code, head_dim);
        }
        float * row = row_of(slot);
        for (int c = 0; c < head_dim; ++c)
            row[c] =
                mean[c] + along[slot] * direction[c] + scale[slot] * (static_cast<float>(levels[4 * c + slot % 4]) - 7.5f);
        rotate->inverse(row);
    }
}

} // namespace vidkv
