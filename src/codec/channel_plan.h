// Which channel of a KV head stands where in its sealed key pages, and what is subtracted from it.
#pragma once

#include <cstdint>
#include <vector>

namespace vidkv {

// One plan serves all sealed pages of one KV head of one sequence, so that a query is brought into the codes' domain once,
// not once per page. order: a permutation of the head_dim channels.
//   paper:   first the `wide` anomalous channels, then those that enter the DFT, both in rising channel number; no mean
//   trellis: by falling weight; mean: what is subtracted, f16, by position in `order`
struct ChannelPlan {
    std::vector<uint16_t> order;
    std::vector<uint16_t> mean; // empty for the paper's codec
    int wide = 0;
};

// Paper, section 3.2 (per KV head instead of over all heads): the `wide` channels with the largest range (max - min over
// the tokens; ties: the lower channel) are anomalous; where a page was packed before, those that were anomalous then. rows:
// one f32 [head_dim][128] per page; use: [pages][128], 0 leaves a token out.
ChannelPlan choose_channels(const std::vector<const std::vector<float> *> & rows, const std::vector<uint8_t> & use,
                            int head_dim, int wide);

// Each channel once.
bool is_permutation(const std::vector<uint16_t> & order);

} // namespace vidkv
