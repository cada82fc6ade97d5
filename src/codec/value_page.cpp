#include "codec/value_page.h"

#include <algorithm>
#include <bit>
#include <numeric>
#include <vector>

#include "base/bytes.h"
#include "codec/two_bit.h"
#include "codec/log_scale.h"
#include "codec/rotation.h"
#include "codec/trellis.h"
#include "codec/trit.h"

namespace vidkv {

namespace {

// ---- paper, section 3.3: per channel and group, 2-bit between minimum and maximum, or ternary {-s, 0, +s} ----

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

// levels: the group as [quad][head_dim][4 slots]; element (slot, channel).
uint8_t & level_at(uint8_t * levels, int head_dim, int slot, int channel) {
    return levels[(slot / 4 * head_dim + channel) * 4 + slot % 4];
}

void encode_two_bit(const ValueLayout & layout, const float * x, const uint8_t * use, uint8_t * levels, uint8_t * meta) {
    const int head_dim = layout.head_dim;
    for (int c = 0; c < head_dim; ++c) {
        float low = 0, high = 0;
        bool first = true;
        for (int t = 0; t < layout.group; ++t) {
            if (!use[t]) continue;
            const float v = sanitize(x[t * head_dim + c]);
            low = first ? v : std::min(low, v);
            high = first ? v : std::max(high, v);
            first = false;
        }
        const TwoBit affine = TwoBit::between(low, high);
        store_at(meta, c, affine.scale);
        store_at(meta + 2 * head_dim, c, affine.minimum);
        for (int t = 0; t < layout.group; ++t) level_at(levels, head_dim, t, c) = affine.code(sanitize(x[t * head_dim + c]));
    }
}

void encode_ternary(const ValueLayout & layout, const float * x, const uint8_t * use, uint8_t * levels, uint8_t * meta) {
    const int head_dim = layout.head_dim;
    for (int c = 0; c < head_dim; ++c) {
        float sum = 0;
        int count = 0;
        for (int t = 0; t < layout.group; ++t) {
            if (!use[t]) continue;
            sum += std::fabs(sanitize(x[t * head_dim + c]));
            ++count;
        }
        const float mean = count ? sum / static_cast<float>(count) : 0.0f;
        store_at(meta, c, float_to_half(mean));
        for (int t = 0; t < layout.group; ++t) {
            const float v = sanitize(x[t * head_dim + c]);
            level_at(levels, head_dim, t, c) = v > 0.5f * mean ? 2 : v < -0.5f * mean ? 0 : 1;
        }
    }
}

// n digits into ceil(n / 5) = p bytes: byte j takes digits j, j + p, .., j + 4 p; those past the end are 1.
void pack_ternary(const uint8_t * levels, size_t n, uint8_t * packed) {
    const size_t p = (n + 4) / 5;
    for (size_t j = 0; j < p; ++j) {
        uint8_t digits[5];
        for (size_t d = 0; d < 5; ++d) digits[d] = j + d * p < n ? levels[j + d * p] : 1;
        packed[j] = pack_trits(digits);
    }
}

void unpack_ternary(const uint8_t * packed, size_t n, uint8_t * levels) {
    const size_t p = (n + 4) / 5;
    for (size_t j = 0; j < p; ++j) {
        uint8_t digits[5];
        unpack_trits(packed[j], digits);
        for (size_t d = 0; d < 5 && j + d * p < n; ++d) levels[j + d * p] = digits[d];
    }
}

void encode_paper(const ValueLayout & layout, const float * x, const uint8_t * use, int units, uint8_t * codes, uint8_t * meta) {
    const int head_dim = layout.head_dim, group = layout.group;
    const size_t quad = quad_bytes(QuadCode::uniform2, head_dim);
    std::vector<uint8_t> levels(static_cast<size_t>(group) * head_dim);
    for (int g = 0; g < layout.groups(); ++g) {
        const bool ternary = layout.is_ternary(g, units);
        const float * rows = x + static_cast<size_t>(g) * group * head_dim;
        if (ternary) {
            encode_ternary(layout, rows, use + g * group, levels.data(), meta);
            pack_ternary(levels.data(), levels.size(), codes);
        } else {
            encode_two_bit(layout, rows, use + g * group, levels.data(), meta);
            for (int q = 0; q < group / 4; ++q) pack_uniform(QuadCode::uniform2, &levels[q * head_dim * 4], head_dim, codes + q * quad);
        }
        codes += layout.group_codes(ternary);
        meta += layout.group_meta(ternary);
    }
}

// ---- trellis: rotated, a scale a token ----

// The scale that makes dot products unbiased: <x,x> / <x,y> for the code's values y. rho guards against codes that miss.
float unbiased_scale(const float * x, const float * y, int n) {
    float xx = 0, xy = 0;
    for (int i = 0; i < n; ++i) {
        xx += x[i] * x[i];
        xy += x[i] * y[i];
    }
    return xy > 0.3f * xx ? xx / xy : 1.0f;
}

void encode_trellis(const ValueLayout & layout, const float * x, const uint8_t * use, int units, uint8_t * codes, uint8_t * meta) {
    const int head_dim = layout.head_dim;
    const auto rotate = rotation(head_dim);
    std::vector<float> row(head_dim), value(head_dim);
    std::vector<uint8_t> levels(head_dim);
    for (int slot = 0; slot < page_tokens; ++slot) {
        const QuadCode code = layout.quad_code(slot / 4, units);
        float energy = 0;
        for (int c = 0; c < head_dim; ++c) row[c] = use[slot] ? sanitize(x[slot * head_dim + c]) : 0.0f;
        rotate->forward(row.data());
        for (const float r : row) energy += r * r;
        const float rms = std::sqrt(energy / static_cast<float>(head_dim)), inverse = rms > 0.0f ? 1.0f / rms : 0.0f;
        for (float & r : row) r = std::isfinite(inverse) ? r * inverse : 0.0f;
        encode_trellis_lane(code, row.data(), head_dim, slot % 4, codes, levels.data());
        const LevelGrid grid = level_grid(code);
        for (int c = 0; c < head_dim; ++c) value[c] = (static_cast<float>(levels[c]) - grid.offset) * grid.step;
        meta[slot] = log_scale_code(rms * unbiased_scale(row.data(), value.data(), head_dim));
        if (slot % 4 == 3) codes += quad_bytes(code, head_dim);
    }
}

int marked_tokens(const uint8_t * mask) {
    return std::accumulate(mask, mask + page_tokens / 8, 0, [](int n, uint8_t bits) { return n + std::popcount(bits); });
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
    return out;
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
    if (!layout.protects) return bytes == layout.page_bytes(0);
    if (bytes < page_tokens / 8) return false;
    const int marked = marked_tokens(page);
    return marked % layout.unit() == 0 && bytes == layout.page_bytes(marked / layout.unit());
}

void unpack_value_group(const ValueLayout & layout, const ValuePage & page, int group, uint8_t * levels) {
    const uint8_t * codes = page.codes + GroupPlace(layout, page.protected_units, group).codes;
    const int head_dim = layout.head_dim;
    if (layout.is_ternary(group, page.protected_units)) {
        return unpack_ternary(codes, static_cast<size_t>(layout.group) * head_dim, levels);
    }
    const size_t quad = quad_bytes(QuadCode::uniform2, head_dim);
    for (int q = 0; q < layout.group / 4; ++q) unpack_quad(QuadCode::uniform2, codes + q * quad, head_dim, levels + q * head_dim * 4);
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
        scale[s] = log_scale_value(page.meta[s]) * level_grid(layout.quad_code(s / 4, page.protected_units)).step;
    }
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
    std::vector<uint8_t> levels(static_cast<size_t>(head_dim) * 4);
    const uint8_t * codes = page.codes;
    for (int slot = 0; slot < page_tokens; ++slot) {
        if (slot % 4 == 0) {
            const QuadCode code = layout.quad_code(slot / 4, page.protected_units);
            unpack_quad(code, codes, head_dim, levels.data());
            codes += quad_bytes(code, head_dim);
        }
        float * row = row_of(slot);
        for (int c = 0; c < head_dim; ++c) row[c] = scale[slot] * (static_cast<float>(levels[4 * c + slot % 4]) - 7.5f);
        rotate->inverse(row);
    }
}

void encode_values(const ValueLayout & layout, const float * x, const uint8_t * use, int protected_units, uint8_t * codes,
                   uint8_t * meta) {
    if (layout.codec == VIDKV_CODEC_PAPER) return encode_paper(layout, x, use, protected_units, codes, meta);
    encode_trellis(layout, x, use, protected_units, codes, meta);
}

} // namespace vidkv
