#include "codec/channel_plan.h"

#include <algorithm>
#include <numeric>

#include "codec/affine2.h"

namespace vidkv {

ChannelPlan choose_channels(const float * rows, const uint8_t * use, int64_t tokens, int head_dim, int wide) {
    std::vector<float> low(head_dim, half_max), high(head_dim, -half_max);
    for (int64_t t = 0; t < tokens; ++t) {
        if (!use[t]) continue;
        for (int c = 0; c < head_dim; ++c) {
            const float v = sanitize(rows[t * head_dim + c]);
            low[c] = std::min(low[c], v);
            high[c] = std::max(high[c], v);
        }
    }
    ChannelPlan plan;
    plan.wide = wide;
    plan.order.resize(head_dim);
    std::iota(plan.order.begin(), plan.order.end(), uint16_t{0});
    std::stable_sort(plan.order.begin(), plan.order.end(),
                     [&](uint16_t a, uint16_t b) { return high[a] - low[a] > high[b] - low[b]; });
    std::sort(plan.order.begin(), plan.order.begin() + wide);
    std::sort(plan.order.begin() + wide, plan.order.end());
    return plan;
}

} // namespace vidkv
