// Keys -> packed groups, as the paper has them, corrected (section 3.2): anomalous channels as 2-bit codes between minimum
// and maximum, the others through a real DFT over the channels and then sign and mean magnitude.
#pragma once

#include <cstdint>

#include "codec/channel_plan.h"
#include "codec/layout.h"

namespace vidkv {

// x: f32 [head_dim][tokens] in natural channel order. use[t] == 0 leaves token t out of the statistics (a hole or a sink
// token); its code is arbitrary but fixed. Non-finite inputs count as 0. block: layout.bytes bytes.
void encode_keys(const KeyLayout & layout, const ChannelPlan & plan, const float * x, const uint8_t * use, uint8_t * block);

// tile: f32 [head_dim][tokens] in plan order, the last `narrow` rows being DFT coefficients. Scores against it need a query
// brought to the same domain by plan_query.
void decode_keys(const KeyLayout & layout, const uint8_t * block, float * tile);

// Brings a query [head_dim] into the domain of decode_keys' tile.
void plan_query(const KeyLayout & layout, const ChannelPlan & plan, const float * q, float * out);

// Brings a tile of decode_keys back to natural channels: [head_dim][tokens].
void restore_keys(const KeyLayout & layout, const ChannelPlan & plan, const float * tile, float * x);

} // namespace vidkv
