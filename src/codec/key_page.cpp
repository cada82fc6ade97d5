#include "codec/key_page.h"

#include <algorithm>

#include "base/bytes.h"
#include "base/half.h"
#include "codec/log_scale.h"
#include "codec/real_dft.h"

namespace vidkv {

namespace {

// Sections of one group of paper meta.
struct PaperMeta {
    const uint8_t *scale, *minimum, *narrow_scale;
    PaperMeta(const KeyLayout & layout, const uint8_t * meta, int group) {
        const int wide = layout.wide, narrow = layout.narrow;
        scale = meta + static_cast<size_t>(group * 2 * (2 * wide + narrow));
        minimum = scale + 2 * wide;
        narrow_scale = minimum + 2 * wide;
    }
};

void paper_affine(const KeyLayout & layout, const uint8_t * meta, int group, float * a, float * b) {
    const PaperMeta at(layout, meta, group);
    for (int c = 0; c < layout.wide; ++c) {
        a[c] = half_to_float(load_at<uint16_t>(at.scale, c));
        b[c] = half_to_float(load_at<uint16_t>(at.minimum, c));
    }
    for (int c = 0; c < layout.narrow; ++c) { // levels 0 and 1 are -scale and +scale
        const float scale = half_to_float(load_at<uint16_t>(at.narrow_scale, c));
        a[layout.wide + c] = 2.0f * scale;
        b[layout.wide + c] = -scale;
    }
}

void trellis_affine(const KeyLayout & layout, const ChannelPlan & plan, const uint8_t * meta, float * a, float * b) {
    for (int c = 0; c < layout.head_dim; ++c) {
        const float scale = log_scale_value(meta[c]);
        const float mean = 0.125f * static_cast<float>(static_cast<int8_t>(meta[layout.head_dim + c]));
        const LevelGrid grid = level_grid(key_quad_code(layout, meta, c / 4));
        a[c] = scale * grid.step;
        b[c] = half_to_float(plan.mean[c]) + scale * (mean - grid.step * grid.offset);
    }
}

} // namespace

const uint8_t * key_code_start(const KeyLayout & layout, const uint8_t * page, int head) {
    if (layout.codec == VIDKV_CODEC_PAPER) return page;
    return page + layout.head_codes + static_cast<size_t>(layout.kv_heads) * layout.head_meta +
           static_cast<size_t>(head) * sizeof(uint16_t);
}

KeyPage key_page(const KeyLayout & layout, const uint8_t * page, int head) {
    const size_t heads = static_cast<size_t>(layout.kv_heads), h = static_cast<size_t>(head);
    if (layout.codec == VIDKV_CODEC_PAPER) {
        return {page + h * layout.head_codes, page + heads * layout.head_codes + h * layout.head_meta};
    }
    const uint8_t * meta = page + layout.head_codes;
    const size_t start = load_at<uint16_t>(key_code_start(layout, page, head), 0);
    return {page + start * quad_bit_bytes, meta + h * layout.head_meta};
}

QuadCode key_quad_code(const KeyLayout & layout, const uint8_t * meta, int quad) {
    if (layout.codec == VIDKV_CODEC_PAPER) return 4 * quad < layout.wide ? QuadCode::uniform2 : QuadCode::uniform1;
    return static_cast<QuadCode>(meta[2 * layout.head_dim + quad / 2] >> (quad % 2 * 4) & 15);
}

bool is_sound(const KeyLayout & layout, const uint8_t * page, size_t bytes) {
    if (bytes != layout.page_bytes) return false;
    if (layout.codec == VIDKV_CODEC_PAPER) return true;
    size_t end = 0;
    for (int head = 0; head < layout.kv_heads; ++head) {
        const KeyPage at = key_page(layout, page, head);
        if (at.codes != page + end) return false;
        for (int quad = 0; quad < layout.head_dim / 4; ++quad) {
            const QuadCode code = key_quad_code(layout, at.meta, quad);
            if (code > QuadCode::uniform6) return false;
            end += quad_bytes(code, page_tokens);
        }
    }
    return end == layout.head_codes;
}

void key_affine(const KeyLayout & layout, const ChannelPlan & plan, const uint8_t * meta, int group, float * a, float * b) {
    if (layout.codec == VIDKV_CODEC_PAPER) return paper_affine(layout, meta, group, a, b);
    trellis_affine(layout, plan, meta, a, b);
}

void plan_query(const KeyLayout & layout, const ChannelPlan & plan, const float * q, float * out) {
    const int kept = layout.head_dim - layout.narrow; // the paper's narrow channels go through the DFT
    for (int c = 0; c < kept; ++c) out[c] = q[plan.order[c]];
    if (layout.narrow == 0) return;
    float gathered[512];
    for (int c = 0; c < layout.narrow; ++c) gathered[c] = q[plan.order[kept + c]];
    real_dft(layout.narrow)->forward(gathered, out + kept);
}

void decode_keys(const KeyLayout & layout, const ChannelPlan & plan, const KeyPage & page, float * x) {
    const int head_dim = layout.head_dim;
    std::vector<float> tile(static_cast<size_t>(head_dim) * page_tokens), a(head_dim), b(head_dim);
    uint8_t levels[4 * page_tokens];
    const uint8_t * codes = page.codes;
    for (int quad = 0; quad < head_dim / 4; ++quad) {
        const QuadCode code = key_quad_code(layout, page.meta, quad);
        unpack_quad(code, codes, page_tokens, levels);
        codes += quad_bytes(code, page_tokens);
        for (int i = 0; i < 4; ++i) {
            for (int t = 0; t < page_tokens; ++t) tile[(4 * quad + i) * page_tokens + t] = levels[4 * t + i];
        }
    }
    for (int group = 0; group < layout.groups(); ++group) {
        key_affine(layout, plan, page.meta, group, a.data(), b.data());
        for (int c = 0; c < head_dim; ++c) {
            float * row = &tile[c * page_tokens + group * layout.group];
            for (int t = 0; t < layout.group; ++t) row[t] = a[c] * row[t] + b[c];
        }
    }
    const int kept = head_dim - layout.narrow;
    for (int c = 0; c < kept; ++c) std::copy_n(&tile[c * page_tokens], page_tokens, x + plan.order[c] * page_tokens);
    if (layout.narrow == 0) return;
    std::vector<float> natural(static_cast<size_t>(layout.narrow) * page_tokens);
    real_dft(layout.narrow)->inverse_columns(&tile[kept * page_tokens], natural.data(), page_tokens);
    for (int c = 0; c < layout.narrow; ++c) {
        std::copy_n(&natural[c * page_tokens], page_tokens, x + plan.order[kept + c] * page_tokens);
    }
}

} // namespace vidkv
