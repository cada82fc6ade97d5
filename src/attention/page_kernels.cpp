#include "attention/page_kernels.h"

#include <algorithm>
#include <cstring>

namespace vidkv {

namespace {

// Appends quads to the runs; neighbours with the same largest level are one run.
void append_run(KeyCodes & codes, int first, int quads, int largest) {
    if (quads == 0 || largest == 0) return;
    if (codes.run_count > 0) {
        LevelRun & last = codes.runs[codes.run_count - 1];
        if (last.largest == largest && last.first + last.quads == first) {
            last.quads += quads;
            return;
        }
    }
    codes.runs[codes.run_count++] = {first, quads, largest};
}

// What there is to know of a QuadCode, for keys: looked up once.
struct CodeEntry {
    float step = 0;
    int largest = 0; // twice the middle of the levels
    int page_bytes = 0;
};
using CodeTable = std::array<CodeEntry, 16>;

const CodeTable & code_table() {
    static const CodeTable table = [] {
        CodeTable made;
        for (int i = 1; i <= static_cast<int>(QuadCode::uniform2); ++i) {
            const auto code = static_cast<QuadCode>(i);
            made[static_cast<size_t>(i)] = {level_grid(code).step, largest_level(code), static_cast<int>(quad_bytes(code, page_tokens))};
        }
        return made;
    }();
    return table;
}

} // namespace

KeyTile::KeyTile(const Kernels & kernels, const KeyLayout & layout, const KeyPage & page, Scratch & scratch)
    : kernels_(kernels), layout_(layout), scratch_(scratch), padded_(round_up(layout.head_dim, 64)) {
    offset_ = scratch.codes.offset;
    if (layout.codec == VIDKV_CODEC_PAPER) {
        unpack_paper(page);
    } else {
        unpack_trellis(page);
    }
}

void KeyTile::unpack_paper(const KeyPage & page) {
    const int wide = layout_.wide, narrow = layout_.narrow;
    KeyCodes & codes = scratch_.codes;
    if (!codes.known) {
        codes.known = true;
        codes.run_count = 0;
        append_run(codes, 0, wide / 4, largest_level(QuadCode::uniform2));
        append_run(codes, wide / 4, narrow / 4, largest_level(QuadCode::uniform1));
        std::fill_n(codes.offset, padded_, uint8_t{0});
        std::fill_n(codes.offset, wide, uint8_t{3}); // twice the middle of the levels
        std::fill_n(codes.offset + wide, narrow, uint8_t{1});
        std::fill_n(scratch_.step.get(), largest_groups * padded_, 0.0f);
        std::fill_n(scratch_.center.get(), largest_groups * padded_, 0.0f);
    }
    const uint8_t * narrow_codes = page.codes + static_cast<size_t>(wide / 4) * quad_bytes(QuadCode::uniform2, page_tokens);
    kernels_.unpack_quads(QuadCode::uniform2, page.codes, page_tokens, wide / 4, page_tokens * 4, scratch_.levels.get());
    kernels_.unpack_quads(QuadCode::uniform1, narrow_codes, page_tokens, narrow / 4, page_tokens * 4,
                          scratch_.levels.get() + wide * page_tokens);
    const uint8_t * meta = page.meta;
    alignas(64) float minimum[largest_head_dim];
    for (int g = 0; g < layout_.groups(); ++g, meta += 2 * (2 * wide + narrow)) {
        float * step = scratch_.step.get() + g * padded_, * center = scratch_.center.get() + g * padded_;
        kernels_.load_halves(meta, wide, step);
        kernels_.load_halves(meta + 2 * wide, wide, minimum);
        kernels_.load_halves(meta + 4 * wide, narrow, step + wide);
        for (int c = 0; c < wide; ++c) center[c] = minimum[c] + 1.5f * step[c];
        for (int c = wide; c < wide + narrow; ++c) step[c] *= 2.0f; // levels 0 and 1 are -scale and +scale: the middle is 0
    }
    centered_ = round_up(wide, 16);
}

void KeyTile::unpack_trellis(const KeyPage & page) {
    const int head_dim = layout_.head_dim, quads = head_dim / 4;
    KeyCodes & codes = scratch_.codes;
    if (!codes.known) { // what is behind the last channel stays 0
        codes.known = true;
        std::fill_n(codes.offset, padded_, uint8_t{0});
        std::fill_n(scratch_.step.get(), padded_, 0.0f);
        std::fill_n(scratch_.center.get(), padded_, 0.0f);
    }
    codes.run_count = 0;
    const uint8_t * quad_codes = page.meta + 2 * head_dim, * packed = page.codes;
    const auto code_of = [&](int quad) { return quad_codes[quad / 2] >> (quad % 2 * 4) & 15; };
    const CodeTable & table = code_table();
    for (int quad = 0, n; quad < quads; quad += n) {
        const int code = code_of(quad);
        for (n = 1; quad + n < quads && code_of(quad + n) == code; ++n) continue;
        const CodeEntry & entry = table[static_cast<size_t>(code)];
        append_run(codes, quad, n, entry.largest);
        std::fill_n(codes.step + 4 * quad, 4 * n, entry.step);
        std::fill_n(codes.offset + 4 * quad, 4 * n, static_cast<uint8_t>(entry.largest));
        kernels_.unpack_quads(static_cast<QuadCode>(code), packed, page_tokens, n, page_tokens * 4,
                              scratch_.levels.get() + quad * page_tokens * 4);
        packed += n * entry.page_bytes;
    }
    kernels_.load_key_scales(page.meta, head_dim, codes.step, scratch_.step.get(), scratch_.center.get());
    centered_ = round_up(head_dim, 16);
}

void KeyTile::score(const QueryRows & queries, Prefetch & soon) const {
    const KeySteps steps{scratch_.step.get(), offset_, scratch_.center.get(), padded_, centered_, layout_.groups()};
    kernels_.fold_queries(queries.q, queries.stride, queries.rows, steps, queries.base, scratch_.folded);
    for (int g = 0; g < layout_.groups(); ++g) {
        kernels_.score_levels({scratch_.levels.get(), scratch_.codes.runs.data(), scratch_.codes.run_count, g * layout_.group,
                               layout_.group, &scratch_.folded[g], queries.rows, scratch_.scores.get(), &soon});
    }
}

ValueTile::ValueTile(const Kernels & kernels, const ValueLayout & layout, const ValuePage & page, Scratch & scratch)
    : kernels_(kernels), layout_(layout), page_(page), scratch_(scratch),
      stride_((layout.codec == VIDKV_CODEC_PAPER ? layout.head_dim : round_up(layout.head_dim, 16)) * 4) {
    if (page.mask) scratch.slot_tokens = slot_tokens(page);
    if (layout.codec == VIDKV_CODEC_PAPER) {
        learn_paper();
    } else {
        learn_trellis();
    }
}

void ValueTile::learn_trellis() {
    float * scale = scratch_.value_meta.get();
    kernels_.load_log_scales(page_.meta, page_tokens, scale);
    const int special = 4 * page_.protected_units;
    const float special_step = level_grid(layout_.protected_code).step, step = level_grid(layout_.plain_code).step;
    for (int s = 0; s < special; ++s) scale[s] *= special_step;
    for (int s = special; s < page_tokens; ++s) scale[s] *= step;
    slot_scale_ = scale;
}

void ValueTile::learn_paper() {
    const uint8_t * meta = page_.meta;
    const int head_dim = layout_.head_dim;
    float * to = scratch_.value_meta.get();
    for (int g = 0; g < layout_.groups(); ++g) {
        const bool ternary = layout_.is_ternary(g, page_.protected_units);
        for (const float ** part : {&step_[g], &base_[g]}) {
            if (part == &base_[g] && ternary) break;
            kernels_.load_halves(meta, head_dim, to);
            *part = to;
            meta += 2 * head_dim;
            to += round_up(head_dim, 16);
        }
    }
}

void ValueTile::pack(int rows, PackedWeights & packed) const {
    const bool paper = layout_.codec == VIDKV_CODEC_PAPER;
    const WeightRule rule{page_.mask ? scratch_.slot_tokens.data() : nullptr, slot_scale_, paper ? layout_.groups() : 1,
                          paper && base_[0] != nullptr};
    kernels_.pack_weights(scratch_.scores.get(), rows, rule, packed);
}

void ValueTile::unpack() {
    const uint8_t * codes = page_.codes;
    uint8_t * levels = scratch_.levels.get();
    const int head_dim = layout_.head_dim;
    if (layout_.codec == VIDKV_CODEC_TRELLIS) {
        const int special = page_.protected_units, all = page_tokens / 4;
        kernels_.unpack_quads(layout_.protected_code, codes, head_dim, special, stride_, levels);
        codes += static_cast<size_t>(special) * quad_bytes(layout_.protected_code, head_dim);
        kernels_.unpack_quads(layout_.plain_code, codes, head_dim, all - special, stride_, levels + special * stride_);
        return;
    }
    for (int g = 0; g < layout_.groups(); ++g, levels += layout_.group * head_dim) {
        const bool ternary = layout_.is_ternary(g, page_.protected_units);
        const size_t bytes = layout_.group_codes(ternary);
        if (ternary) {
            kernels_.unpack_ternary(codes, static_cast<int>(bytes), levels);
        } else {
            kernels_.unpack_quads(QuadCode::uniform2, codes, head_dim, layout_.group / 4, stride_, levels);
        }
        codes += bytes;
    }
}

void ValueTile::add(int rows, const PackedWeights & packed, const ValueSums & sums, Prefetch & soon) const {
    const bool paper = layout_.codec == VIDKV_CODEC_PAPER;
    ValueProduct product;
    product.levels = scratch_.levels.get();
    product.stride = stride_;
    product.channels = round_up(layout_.head_dim, 16);
    product.weights = packed.w;
    product.rows = rows;
    std::copy_n(packed.scale, rows, product.scale);
    product.groups = paper ? layout_.groups() : 1;
    for (int g = 0; g < product.groups; ++g) {
        ValueGroup & group = product.group[g];
        group.quads = page_tokens / 4 / product.groups;
        group.first_quad = g * group.quads;
        group.largest = paper ? (base_[g] ? 3 : 2) : 15;
        group.step = step_[g];
        group.base = base_[g];
        // Rounding of the weights touches only what a value differs from the middle of its levels, which is 0 unless there is a base.
        const float middle = 0.5f * static_cast<float>(group.largest);
        for (int r = 0; r < rows; ++r) {
            const float rounded = packed.scale[r] * packed.sum[r][g];
            group.total[r] = group.base ? packed.total[r][g] : 0.0f;
            group.offset[r] = middle * (group.total[r] - rounded);
        }
    }
    product.out = paper ? sums.natural : sums.rotated;
    product.out_stride = sums.stride;
    product.soon = &soon;
    kernels_.add_levels(product);
}

} // namespace vidkv
