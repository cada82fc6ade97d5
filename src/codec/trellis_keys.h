// Keys of a layer -> pages of trellis codes: bits allotted over all heads by reverse water-filling on what the queries weigh, and
// rounding errors of one channel made good in the next (docs/format.md, "Trellis keys"; the study behind it, A.2 to A.7).
#pragma once

#include <cstdint>
#include <vector>

#include "codec/channel_plan.h"
#include "codec/layout.h"
#include "codec/query_statistics.h"

namespace vidkv {

// One head of one page before coding: f32 [head_dim][128] in natural channels, sanitized.
using KeyRows = std::vector<float>;

// How the channels of a head are coded at one sealing: in which order, and how errors are carried on.
struct KeyFeedback {
    std::vector<uint16_t> order; // coding order: channels of low weight first, so that heavier ones make good their errors
    std::vector<float> carry;  // [head_dim][head_dim]: row c: what channel order[c] takes of the errors of order[0 .. c-1]
    std::vector<float> pull;   // [head_dim][head_dim] by natural channels: E[q_c q_j] / E[q_c^2], 0 on the diagonal
    std::vector<float> weight; // by natural channel: what a squared error costs when earlier errors are made good
    std::vector<float> attention; // [pages][128]: how much a token's error counts, 0 where the cell is not used
    const float * page(size_t index) const { return &attention[index * page_tokens]; }
};

// rows: this head in all pages about to be sealed; use: [pages][128]. statistics may be null or empty: all channels weigh the
// same and no error is carried on.
KeyFeedback make_feedback(const QueryStatistics * statistics, int head, int head_dim,
                          const std::vector<const KeyRows *> & rows, const std::vector<uint8_t> & use);

// The plan of one head: median (f16) and order by falling weight.
ChannelPlan plan_trellis_keys(const KeyFeedback & feedback, const std::vector<const KeyRows *> & rows,
                              const std::vector<uint8_t> & use);

// Codes of all quads of a page, [kv_heads][head_dim / 4]: spends exactly layout.quad_bits. rows: one entry per head.
std::vector<QuadCode> allot_bits(const KeyLayout & layout, const std::vector<ChannelPlan> & plans,
                                 const std::vector<KeyFeedback> & feedback, const std::vector<const KeyRows *> & rows,
                                 size_t page);

// Writes one head of a page: its codes and its meta.
void encode_trellis_keys(const ChannelPlan & plan, const KeyFeedback & feedback, const QuadCode * quads,
                         const KeyRows & rows, const float * attention, uint8_t * codes, uint8_t * meta);

} // namespace vidkv
