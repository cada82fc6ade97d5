#include "codec/channel_plan.h"

#include <algorithm>
#include <numeric>

#include "codec/two_bit.h"
#include "codec/layout.h"

namespace vidkv {

ChannelPlan choose_channels(const std::vector<const std::vector<float> *> & rows, const std::vector<uint8_t> & use, int head_dim,
                            int wide) {
    std::vector<float> range(head_dim);
    for (int c = 0; c < head_dim; ++c) {
        float low = half_max, high = -half_max;
        for (size_t p = 0; p < rows.size(); ++p) {
            for (int t = 0; t < page_tokens; ++t) {
                if (!use[p * page_tokens + t]) continue;
                const float v = sanitize((*rows[p])[c * page_tokens + t]);
                low = std::min(low, v);
                high = std::max(high, v);
            }
        }
        range[c] = high - low;
    }
    ChannelPlan plan;
    plan.wide = wide;
    plan.order.resize(head_dim);
    std::iota(plan.order.begin(), plan.order.end(), uint16_t{0});
    std::stable_sort(plan.order.begin(), plan.order.end(), [&](uint16_t a, uint16_t b) { return range[a] > range[b]; });
    std::sort(plan.order.begin(), plan.order.begin() + wide);
    std::sort(plan.order.begin() + wide, plan.order.end());
    return plan;
}

} // namespace vidkv
