// Keys <-> sealed pages.
#pragma once

#include <cstdint>
#include <vector>

#include "codec/channel_plan.h"
#include "codec/layout.h"

namespace vidkv {

// ---- reading: what attention needs ----

// One head's part of a sealed page.
struct KeyPage {
    const uint8_t * codes = nullptr; // quads, one after the other
    const uint8_t * meta = nullptr;
};
KeyPage key_page(const KeyLayout & layout, const uint8_t * page, int head);
// What key_page reads of the page to find its codes.
const uint8_t * key_code_start(const KeyLayout & layout, const uint8_t * page, int head);

QuadCode key_quad_code(const KeyLayout & layout, const uint8_t * meta, int quad);

// An element of the head's plan-ordered channel c, token t of group g, is a[c] * level + b[c] (DFT coefficients included): fills
// a and b, [head_dim], for one group.
void key_affine(const KeyLayout & layout, const ChannelPlan & plan, const uint8_t * meta, int group, float * a, float * b);

// Brings a query [head_dim] into plan order, with the DFT where the codec has one: its dot product with the elements above is
// the score.
void plan_query(const KeyLayout & layout, const ChannelPlan & plan, const float * q, float * out);

// The specification of decoding: [head_dim][128] in natural channels.
void decode_keys(const KeyLayout & layout, const ChannelPlan & plan, const KeyPage & page, float * x);

// Whether a page of unknown origin can be read: its codes lie inside it.
bool is_sound(const KeyLayout & layout, const uint8_t * page, size_t bytes);

// ---- writing ----

// Paper: x f32 [head_dim][128] in natural channels. use[t] == 0 leaves token t out of the statistics (a hole or a sink
// token); its codes are arbitrary but fixed. Non-finite inputs count as 0. codes and meta: the head's part of the page.
void encode_paper_keys(const KeyLayout & layout, const ChannelPlan & plan, const float * x, const uint8_t * use,
                       uint8_t * codes, uint8_t * meta);

} // namespace vidkv
