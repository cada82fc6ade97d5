#include "attention/tiles.h"

#include <algorithm>
#include <cstring>

namespace vidkv {

namespace {

// The grid of a QuadCode as kernels need it for keys, looked up once.
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
            made[static_cast<size_t>(i)] = {level_grid(code).step, largest_level(code),
                                            static_cast<int>(quad_bytes(code, page_tokens))};
        }
        return made;
    }();
    return table;
}

} // namespace

KeyTile::KeyTile(const Kernels & kernels, const KeyLayout & layout, const KeyPage & page, int rows, Scratch & scratch)
    : kernels_(kernels), layout_(layout), scratch_(scratch), by_codes_(kernels.score_codes && rows <= row_block),
      padded_(round_up(layout.head_dim, 64)) {
    if (layout.codec == VIDKV_CODEC_PAPER) {
        learn_paper(page);
    } else {
        learn_trellis(page);
    }
    if (by_codes_) return;
    for (int i = 0; i < scratch.codes.run_count; ++i) {
        const LevelRun & run = scratch.codes.runs[i];
        kernels.unpack_quads(run.code, run.packed, page_tokens, run.quads, page_tokens * 4,
                             scratch.levels.get() + run.first * page_tokens * 4);
    }
}

void KeyTile::learn_paper(const KeyPage & page) {
    const int wide = layout_.wide, narrow = layout_.narrow;
    KeyCodes & codes = scratch_.codes;
    if (!codes.known) {
        codes.known = true;
        std::fill_n(codes.offset, padded_, uint8_t{0});
        std::fill_n(codes.offset, wide, uint8_t{3}); // twice the middle of the levels
        std::fill_n(codes.offset + wide, narrow, uint8_t{1});
        std::fill_n(scratch_.step.get(), largest_groups * padded_, 0.0f);
        std::fill_n(scratch_.center.get(), largest_groups * padded_, 0.0f);
    }
    const uint8_t * narrow_codes = page.codes + static_cast<size_t>(wide / 4) * quad_bytes(QuadCode::uniform2, page_tokens);
    codes.run_count = 0;
    if (wide > 0)
        codes.runs[codes.run_count++] = {0, wide / 4, largest_level(QuadCode::uniform2), QuadCode::uniform2, page.codes};
    if (narrow > 0)
        codes.runs[codes.run_count++] = {wide / 4, narrow / 4, largest_level(QuadCode::uniform1), QuadCode::uniform1,
                                         narrow_codes};
    const uint8_t * meta = page.meta;
    alignas(64) float minimum[largest_head_dim];
    for (int g = 0; g < layout_.groups(); ++g, meta += 2 * (2 * wide + narrow)) {
        float *step = scratch_.step.get() + g * padded_, *center = scratch_.center.get() + g * padded_;
        kernels_.load_halves(meta, wide, step);
        kernels_.load_halves(meta + 2 * wide, wide, minimum);
        kernels_.load_halves(meta + 4 * wide, narrow, step + wide);
        for (int c = 0; c < wide; ++c) center[c] = minimum[c] + 1.5f * step[c];
        for (int c = wide; c < wide + narrow; ++c) step[c] *= 2.0f; // levels 0 and 1 are -scale and +scale: the middle is 0
    }
    centered_ = round_up(wide, 16);
}

void KeyTile::learn_trellis(const KeyPage & page) {
    const int head_dim = layout_.head_dim, quads = head_dim / 4;
    KeyCodes & codes = scratch_.codes;
    if (!codes.known) { // what is behind the last channel stays 0
        codes.known = true;
        std::fill_n(codes.offset, padded_, uint8_t{0});
        std::fill_n(scratch_.step.get(), padded_, 0.0f);
        std::fill_n(scratch_.center.get(), padded_, 0.0f);
    }
    codes.run_count = 0;
    const uint8_t *quad_codes = page.meta + 2 * head_dim, *packed = page.codes;
    const auto code_of = [&](int quad) { return quad_codes[quad / 2] >> (quad % 2 * 4) & 15; };
    const CodeTable & table = code_table();
    for (int quad = 0, n; quad < quads; quad += n) {
        const int code = code_of(quad);
        const CodeEntry & entry = table[static_cast<size_t>(code)];
        for (n = 0; quad + n < quads && code_of(quad + n) == code; ++n) {
            for (int c = 4 * (quad + n); c < 4 * (quad + n) + 4; ++c) {
                codes.step[c] = entry.step;
                codes.offset[c] = static_cast<uint8_t>(entry.largest);
            }
        }
        if (entry.largest > 0)
            codes.runs[codes.run_count++] = {quad, n, entry.largest, static_cast<QuadCode>(code), packed};
        packed += n * entry.page_bytes;
    }
    kernels_.load_key_scales(page.meta, head_dim, codes.step, scratch_.step.get(), scratch_.center.get());
    centered_ = round_up(head_dim, 16);
}

void KeyTile::score(const QueryRows & queries, Prefetch & soon) const {
    const KeySteps steps{scratch_.step.get(), scratch_.codes.offset, scratch_.center.get(), padded_,
                         centered_,           layout_.groups()};
    kernels_.fold_queries(queries.q, queries.stride, queries.rows, steps, queries.base, scratch_.folded);
    const auto product = by_codes_ ? kernels_.score_codes : kernels_.score_levels;
    for (int g = 0; g < layout_.groups(); ++g) {
        product({scratch_.levels.get(), scratch_.codes.runs.data(), scratch_.codes.run_count, g * layout_.group,
                 layout_.group, &scratch_.folded[g], queries.rows, scratch_.scores.get(), &soon});
    }
}

ValueTile::ValueTile(const Kernels & kernels, const ValueLayout & layout, const ValuePage & page, int rows,
                     Scratch & scratch)
    : kernels_(kernels), layout_(layout), page_(page), scratch_(scratch),
      stride_((layout.codec == VIDKV_CODEC_PAPER ? layout.head_dim : round_up(layout.head_dim, 16)) * 4),
      groups_(layout.codec == VIDKV_CODEC_PAPER ? layout.groups() : 1) {
    if (page.mask) scratch.slot_tokens = slot_tokens(page);
    by_codes_ = kernels.add_codes && rows <= row_block && (layout.head_dim == 128 || layout.head_dim == 64);
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
    const int protected_quads = page_.protected_units, all = page_tokens / 4;
    const uint8_t * plain_codes = page_.codes + static_cast<size_t>(protected_quads) * layout_.protected_quad;
    const LevelRun runs[] = {{0, protected_quads, 15, layout_.protected_code, page_.codes},
                             {protected_quads, all - protected_quads, 15, layout_.plain_code, plain_codes}};
    for (const LevelRun & run : runs) {
        if (run.quads > 0) runs_[0][run_count_++] = run;
    }
}

void ValueTile::learn_paper() {
    const uint8_t *meta = page_.meta, *codes = page_.codes;
    const int head_dim = layout_.head_dim, quads = layout_.group / 4;
    float * to = scratch_.value_meta.get();
    run_count_ = 1;
    for (int g = 0; g < groups_; ++g) {
        const bool ternary = layout_.is_ternary(g, page_.protected_units);
        runs_[g][0] = {g * quads, quads, ternary ? 2 : 3, ternary ? QuadCode::none : QuadCode::uniform2, codes};
        by_codes_ = by_codes_ && !ternary; // ternary digits are not packed in quads
        codes += layout_.group_codes(ternary);
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
    const WeightRule rule{page_.mask ? scratch_.slot_tokens.data() : nullptr, slot_scale_, groups_, base_[0] != nullptr};
    kernels_.pack_weights(scratch_.scores.get(), rows, rule, packed);
}

void ValueTile::unpack() const {
    if (by_codes_) return;
    for (int g = 0; g < groups_; ++g) {
        for (const LevelRun * run = runs_[g]; run != runs_[g] + run_count_; ++run) {
            uint8_t * levels = scratch_.levels.get() + run->first * stride_;
            if (run->code == QuadCode::none) {
                kernels_.unpack_ternary(run->packed, static_cast<int>(layout_.group_codes(true)), levels);
            } else {
                kernels_.unpack_quads(run->code, run->packed, layout_.head_dim, run->quads, stride_, levels);
            }
        }
    }
}

void ValueTile::add(int rows, const PackedWeights & packed, const ValueSums & sums, Prefetch & soon) const {
    ValueProduct product;
    product.levels = scratch_.levels.get();
    product.stride = stride_;
    product.channels = round_up(layout_.head_dim, 16);
    product.weights = packed.w;
    product.rows = rows;
    std::copy_n(packed.scale, rows, product.scale);
    product.groups = groups_;
    for (int g = 0; g < groups_; ++g) {
        ValueGroup & group = product.group[g];
        std::copy_n(runs_[g], run_count_, group.runs);
        group.run_count = run_count_;
        group.step = step_[g];
        group.base = base_[g];
        // Rounding of the weights touches only what a value differs from the middle of its levels, which is 0 unless there
        // is a base.
        const float middle = 0.5f * static_cast<float>(runs_[g][0].largest);
        for (int r = 0; r < rows; ++r) {
            const float rounded = packed.scale[r] * packed.sum[r][g];
            group.total[r] = group.base ? packed.total[r][g] : 0.0f;
            group.offset[r] = middle * (group.total[r] - rounded);
        }
    }
    product.out = layout_.codec == VIDKV_CODEC_PAPER ? sums.natural : sums.rotated;
    product.out_stride = sums.stride;
    product.soon = &soon;
    (by_codes_ ? kernels_.add_codes : kernels_.add_levels)(product);
}

} // namespace vidkv
