// Pages of keys that were trellis codes before: rows decoded to f16 lie on the grid of their codes, which are found again,
// so that packing them once more changes nothing. Fresh keys take too many values to be mistaken for such rows.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "codec/layout.h"
#include "codec/trellis_keys.h"

namespace vidkv {

// A channel of a page: its elements are center + scale * step * (level - offset), constant with no bits.
struct PackedChannel {
    QuadCode code = QuadCode::none;
    uint8_t scale = 0; // log_scale.h
    float center = 0;
    int least_shift = 0, most_shift = 0; // uniform codes: levels may all be shifted by so much, and the center with them
    std::array<uint8_t, page_tokens> levels{};
};
using PackedHead = std::vector<PackedChannel>; // [head_dim]; empty: not packed before

// rows: one head of one page; use: [128], 0 leaves a token out.
PackedHead find_codes(const KeyRows & rows, const uint8_t * use);

// heads: [page], this head in the pages packed before. Changes the order so that channels that shared a quad share one
// again, and the means to what the centers were relative to.
void fit_plan(const std::vector<const PackedHead *> & heads, ChannelPlan & plan);

// The codes of all quads, [kv_heads][head_dim / 4], if they fit the plans and the layout; empty otherwise. heads: one page.
std::vector<QuadCode> fitting_codes(const KeyLayout & layout, const std::vector<ChannelPlan> & plans,
                                    const PackedHead * heads);

// Writes one head of such a page.
void encode_packed_keys(const ChannelPlan & plan, const PackedHead & head, const uint8_t * use, uint8_t * codes,
                        uint8_t * meta);

} // namespace vidkv
