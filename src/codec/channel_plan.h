// Which channels of a KV head are "anomalous" (2 bits) and in which order a sealed key group holds them.
#pragma once

#include <cstdint>
#include <vector>

namespace vidkv {

// order: a permutation of the head_dim channels; the first `wide` are the anomalous ones, the rest enter the DFT. Both
// parts are in rising channel number. One plan serves all sealed groups of one KV head of one sequence, so that a query is
// brought into the codes' domain once, not once a group.
struct ChannelPlan {
    std::vector<uint16_t> order;
    int wide = 0;
};

// The `wide` channels with the largest range (max - min over the tokens; ties: the lower channel) become anomalous (paper,
// section 3.2, per KV head instead of over all heads). rows: f32 [tokens][head_dim], token t of it counts if use[t].
ChannelPlan choose_channels(const float * rows, const uint8_t * use, int64_t tokens, int head_dim, int wide);

} // namespace vidkv
