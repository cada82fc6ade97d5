#include "attention/tiles.h"

#include <algorithm>

#include "codec/log_scale.h"
#include "kernels/quad_order.h"

namespace vidkv {

namespace {

constexpr int joined_levels = 15; // the product takes runs of levels up to this as one

// Codes of the paper's keys and how many quads have them.
std::array<std::pair<QuadCode, int>, 2> paper_runs(const KeyLayout & layout) {
    return {{{QuadCode::uniform2, layout.wide / 4}, {QuadCode::uniform1, layout.narrow / 4}}};
}

} // namespace

KeyTile::KeyTile(const Kernels & kernels, const KeyLayout & layout, const KeyPage & page, int rows, TileScratch & scratch)
    : kernels_(kernels), layout_(layout), page_(page), scratch_(scratch),
      by_codes_(kernels.score_codes && rows <= row_block), padded_(round_up(layout.head_dim, 64)), unpacked_(by_codes_) {
    if (layout.codec == VIDKV_CODEC_PAPER) {
        learn_paper(page);
    } else {
        learn_trellis(page);
    }
}

void KeyTile::unpack() {
    for (int i = 0; !unpacked_ && i < scratch_.codes.part_count; ++i) {
        const LevelRun & part = scratch_.codes.parts[i];
        kernels_.unpack_quads(part.code, part.packed, page_tokens, part.quads, page_tokens * 4,
                              scratch_.levels + part.first * page_tokens * 4);
    }
    unpacked_ = true;
}

// Levels that are unpacked need no code any more: runs of small ones are joined.
void KeyTile::add_run(const KeyRun & run) {
    KeyCodes & codes = scratch_.codes;
    KeyRun * last = codes.run_count > 0 ? &codes.runs[codes.run_count - 1] : nullptr;
    const bool alike = last && (std::max(last->largest, run.largest) <= joined_levels || last->largest == run.largest);
    if (!by_codes_ && alike) {
        last->quads += run.quads;
        last->largest = std::max(last->largest, run.largest);
    } else {
        codes.runs[codes.run_count++] = run;
    }
}

void KeyTile::add_part(const LevelRun & part) {
    KeyCodes & codes = scratch_.codes;
    LevelRun * last = codes.part_count > 0 ? &codes.parts[codes.part_count - 1] : nullptr;
    if (last && last->code == part.code && last->first + last->quads == part.first) {
        last->quads += part.quads;
    } else {
        codes.parts[codes.part_count++] = part;
    }
}

void KeyTile::learn_paper(const KeyPage & page) {
    const int wide = layout_.wide, narrow = layout_.narrow;
    KeyCodes & codes = scratch_.codes;
    if (!codes.known) {
        codes.known = true;
        codes.quad_count = 0;
        std::fill_n(codes.offset, padded_, uint8_t{0});
        std::fill_n(codes.offset, wide, uint8_t{3}); // twice the middle of the levels
        std::fill_n(codes.offset + wide, narrow, uint8_t{1});
        std::fill_n(scratch_.step.get(), largest_groups * padded_, 0.0f);
        std::fill_n(scratch_.center.get(), largest_groups * padded_, 0.0f);
    }
    if (codes.quad_count == 0 || codes.joined == by_codes_) list_paper_quads();
    if (!by_codes_) find_paper_parts();
    const uint8_t * meta = page.meta;
    for (int g = 0; g < layout_.groups(); ++g, meta += 2 * (2 * wide + narrow)) {
        float *step = scratch_.step.get() + g * padded_, *center = scratch_.center.get() + g * padded_;
        kernels_.load_grid(meta, meta + 2 * wide, wide, 1.5f, step, center);
        kernels_.load_halves(meta + 4 * wide, narrow, step + wide);
        for (int c = wide; c < wide + narrow; ++c) step[c] *= 2.0f; // levels 0 and 1 are -scale and +scale: the middle is 0
    }
    centered_ = round_up(wide, 64);
}

// Which quads have which code: the same in all pages.
void KeyTile::list_paper_quads() {
    KeyCodes & codes = scratch_.codes;
    codes.quad_count = codes.run_count = 0;
    codes.joined = !by_codes_;
    uint32_t packed = 0;
    for (const auto & [code, n] : paper_runs(layout_)) {
        if (n > 0) add_run({codes.quad_count, n, largest_level(code), code});
        for (int i = 0; i < n; ++i, packed += static_cast<uint32_t>(quad_bytes(code, page_tokens))) {
            codes.quads[codes.quad_count] = key_quad(codes.quad_count, packed);
            ++codes.quad_count;
        }
    }
}

void KeyTile::find_paper_parts() {
    scratch_.codes.part_count = 0;
    const uint8_t * packed = page_.codes;
    int first = 0;
    for (const auto & [code, n] : paper_runs(layout_)) {
        if (n > 0) add_part({first, n, largest_level(code), code, packed});
        packed += static_cast<size_t>(n) * quad_bytes(code, page_tokens);
        first += n;
    }
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
    codes.quad_count = codes.run_count = codes.part_count = 0;
    const uint8_t * quad_codes = page.meta + 2 * head_dim;
    uint32_t packed = 0;
    for (int quad = 0; by_codes_ && quad < quads; quad += most_sorted)
        packed = sort_quads(quad_codes, quad, std::min(quads, quad + most_sorted), packed);
    if (!by_codes_) list_quads(quad_codes, quads);
    kernels_.load_key_scales(page.meta, head_dim, codes.step, scratch_.step.get(), scratch_.center.get());
    centered_ = padded_;
}

// Sorts quads by code, so that products change codes seldom, and notes their steps. Returns where the codes behind them begin.
uint32_t KeyTile::sort_quads(const uint8_t * quad_codes, int first, int end, uint32_t packed) {
    KeyCodes & codes = scratch_.codes;
    const CodeGrids & grids = code_grids();
    uint8_t counts[code_count];
    packed = kernels_.sort_quads(quad_codes, first, end, packed,
                                 {codes.quads.data() + codes.quad_count, counts, codes.step, codes.offset});
    for (int i = 0; i < code_count; ++i) {
        if (counts[i] > 0)
            add_run({codes.quad_count, counts[i], grids.offset[static_cast<int>(code_order[i])], code_order[i]});
        codes.quad_count += counts[i];
    }
    return packed;
}

// Quads as they stand, of which neighbours of one code are unpacked at once.
void KeyTile::list_quads(const uint8_t * quad_codes, int quads) {
    KeyCodes & codes = scratch_.codes;
    const CodeGrids & grids = code_grids();
    uint32_t packed = 0;
    for (int quad = 0; quad < quads; ++quad) {
        const int number = quad_codes[quad / 2] >> (quad % 2 * 4) & 15;
        const auto code = static_cast<QuadCode>(number);
        const uint8_t largest = grids.offset[number];
        std::fill_n(codes.step + 4 * quad, 4, grids.step[number]);
        std::fill_n(codes.offset + 4 * quad, 4, largest);
        if (grids.units[number] == 0) continue;
        add_part({quad, 1, largest, code, page_.codes + packed});
        add_run({codes.quad_count, 1, largest, code});
        codes.quads[codes.quad_count++] = key_quad(quad, packed);
        packed += grids.units[number] * code_unit;
    }
}

void KeyTile::score(const QueryRows & queries, Fetch & soon) const {
    const KeySteps steps{scratch_.step.get(), scratch_.codes.offset, scratch_.center.get(), padded_,
                         centered_,           layout_.groups()};
    kernels_.fold_queries(queries.q, queries.stride, queries.rows, steps, queries.base, scratch_.folded);
    const auto product = by_codes_ ? kernels_.score_codes : kernels_.score_levels;
    for (int g = 0; g < layout_.groups(); ++g) {
        product({scratch_.levels, page_.codes, scratch_.codes.quads.data(), scratch_.codes.runs.data(),
                 scratch_.codes.run_count, g * layout_.group, layout_.group, &scratch_.folded[g], queries.rows,
                 scratch_.scores.get(), &soon});
    }
}

ValueTile::ValueTile(const Kernels & kernels, const ValueLayout & layout, const ValuePage & page, int rows,
                     TileScratch & scratch)
    : kernels_(kernels), layout_(layout), page_(page), scratch_(scratch), product_(scratch.product) {
    const bool paper = layout.codec == VIDKV_CODEC_PAPER;
    product_.levels = scratch.levels;
    product_.channels = round_up(layout.head_dim, 16);
    product_.stride = (paper ? layout.head_dim : product_.channels) * 4;
    product_.groups = paper ? layout.groups() : 1;
    if (page.mask) scratch.slot_tokens = slot_tokens(page);
    by_codes_ = kernels.add_codes && rows <= row_block &&
                (layout.head_dim == 64 || layout.head_dim == 128 || layout.head_dim == 256);
    paper ? learn_paper() : learn_trellis();
}

void ValueTile::learn_trellis() {
    ValueGroup & all = product_.group[0];
    all.step = all.center = nullptr;
    float * scale = scratch_.value_meta.get();
    const int special = 4 * page_.protected_units;
    if (special > 0) kernels_.load_log_scales(page_.meta, special, level_grid(layout_.protected_code).step, scale);
    kernels_.load_log_scales(page_.meta + special, page_tokens - special, level_grid(layout_.plain_code).step,
                             scale + special);
    const int protected_quads = page_.protected_units, narrow = page_.narrow_quads;
    const int plain = page_tokens / 4 - protected_quads - narrow;
    if (narrow > 0) learn_shared(scale);
    slot_scale_ = scale;
    const uint8_t * plain_codes = page_.codes + static_cast<size_t>(protected_quads) * layout_.protected_quad;
    const uint8_t * narrow_codes = plain_codes + static_cast<size_t>(plain) * layout_.plain_quad;
    const LevelRun runs[] = {{0, protected_quads, 15, layout_.protected_code, page_.codes},
                             {protected_quads, plain, 15, layout_.plain_code, plain_codes},
                             {protected_quads + plain, narrow, 15, layout_.narrow_code, narrow_codes}};
    int count = 0;
    for (const LevelRun & run : runs) {
        if (run.quads > 0 && run.code != QuadCode::none) all.runs[count++] = run;
    }
    all.run_count = count;
}

// A still page: what its tokens share, and the scales of the quads that leave the room for it.
void ValueTile::learn_shared(float * scale) {
    const float step = level_grid(layout_.narrow_code).step;
    for (int s = page_tokens - 4 * page_.narrow_quads; s < page_tokens; ++s) {
        const uint8_t code = s == page_tokens - 1 ? page_.mean[0] : page_.meta[s];
        scale[s] = log_scale_value(code) * step;
    }
    float * mean = scale + page_tokens;
    value_mean(layout_, page_, mean);
    product_.group[0].center = mean;
    if (!page_.direction) return;
    float *along = mean + round_up(layout_.head_dim, 16), *direction = along + page_tokens;
    value_direction(layout_, page_, direction, along);
    along_ = along;
    direction_ = direction;
}

void ValueTile::learn_paper() {
    const uint8_t *meta = page_.meta, *codes = page_.codes;
    const int head_dim = layout_.head_dim, quads = layout_.group / 4;
    float * to = scratch_.value_meta.get();
    for (int g = 0; g < product_.groups; ++g) {
        ValueGroup & group = product_.group[g];
        const bool ternary = layout_.is_ternary(g, page_.protected_units);
        group.run_count = 1;
        group.runs[0] = {g * quads, quads, ternary ? 2 : 3, ternary ? QuadCode::none : QuadCode::uniform2, codes};
        by_codes_ = by_codes_ && !ternary; // ternary digits are not packed in quads
        codes += layout_.group_codes(ternary);
        float *step = to, *center = to + product_.channels;
        group.step = step;
        group.center = ternary ? nullptr : center;
        if (ternary) {
            kernels_.load_halves(meta, head_dim, step);
        } else {
            kernels_.load_grid(meta, meta + 2 * head_dim, head_dim, 1.5f, step, center);
        }
        meta += (ternary ? 2 : 4) * head_dim;
        to += 2 * product_.channels;
    }
}

WeightRule ValueTile::rule() const {
    return {page_.mask ? scratch_.slot_tokens.data() : nullptr, slot_scale_, product_.groups,
            product_.group[0].center != nullptr, along_};
}

void ValueTile::unpack() const {
    if (by_codes_) return;
    for (const ValueGroup * group = product_.group; group != product_.group + product_.groups; ++group) {
        for (const LevelRun * run = group->runs; run != group->runs + group->run_count; ++run) {
            uint8_t * levels = scratch_.levels + run->first * product_.stride;
            if (run->code == QuadCode::none) {
                kernels_.unpack_ternary(run->packed, static_cast<int>(layout_.group_codes(true)), levels);
            } else {
                kernels_.unpack_quads(run->code, run->packed, layout_.head_dim, run->quads, product_.stride, levels);
            }
        }
    }
}

void ValueTile::add(int rows, const PackedWeights & packed, const ValueSums & sums, Fetch & soon) {
    product_.weights = packed.w;
    product_.rows = rows;
    std::copy_n(packed.scale, row_block, product_.scale);
    for (int g = 0; g < product_.groups; ++g) {
        ValueGroup & group = product_.group[g];
        // Rounding of the weights touches only what a value differs from the middle of its levels.
        const float middle = 0.5f * static_cast<float>(group.runs[0].largest);
        for (int r = 0; r < row_block; ++r) group.offset[r] = middle * packed.sum[g][r];
        if (group.center) std::copy_n(packed.total[g], row_block, group.total);
    }
    product_.out = layout_.codec == VIDKV_CODEC_PAPER ? sums.natural : sums.rotated;
    product_.out_stride = sums.stride;
    product_.soon = &soon;
    (by_codes_ ? kernels_.add_codes : kernels_.add_levels)(product_);
    for (int r = 0; r < rows && direction_; ++r)
        kernels_.add_scaled(direction_, packed.along[r], product_.channels, sums.rotated + r * sums.stride);
}

} // namespace vidkv
