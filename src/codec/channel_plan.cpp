#include "codec/channel_plan.h"

#include <algorithm>
#include <numeric>

#include "codec/two_bit.h"
#include "codec/layout.h"

namespace vidkv {

namespace {

// Whether the used tokens of every 32 take at most four values, as 2-bit codes decode to.
bool is_two_bit(const float * row, const uint8_t * use) {
    constexpr int window = 32;
    for (int first = 0; first < page_tokens; first += window) {
        float values[4];
        int known = 0;
        for (int t = first; t < first + window; ++t) {
            if (!use[t] || std::find(values, values + known, row[t]) != values + known) continue;
            if (known == 4) return false;
            values[known++] = row[t];
        }
    }
    return true;
}

// Which channels were anomalous when these pages were packed before; none if no page looks like that.
std::vector<uint8_t> packed_before(const std::vector<const std::vector<float> *> & rows, const std::vector<uint8_t> & use,
                                   int head_dim, int wide) {
    std::vector<uint8_t> found(head_dim);
    for (size_t p = 0; p < rows.size(); ++p) {
        for (int c = 0; c < head_dim; ++c) found[c] = is_two_bit(&(*rows[p])[c * page_tokens], &use[p * page_tokens]);
        if (std::count(found.begin(), found.end(), 1) == wide) return found;
    }
    return std::vector<uint8_t>(head_dim);
}

} // namespace

ChannelPlan choose_channels(const std::vector<const std::vector<float> *> & rows, const std::vector<uint8_t> & use,
                            int head_dim, int wide) {
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
    const std::vector<uint8_t> before = packed_before(rows, use, head_dim, wide);
    const auto is_more_anomalous = [&](uint16_t a, uint16_t b) {
        return before[a] != before[b] ? before[a] != 0 : range[a] > range[b];
    };
    ChannelPlan plan;
    plan.wide = wide;
    plan.order.resize(head_dim);
    std::iota(plan.order.begin(), plan.order.end(), uint16_t{0});
    std::stable_sort(plan.order.begin(), plan.order.end(), is_more_anomalous);
    std::sort(plan.order.begin(), plan.order.begin() + wide);
    std::sort(plan.order.begin() + wide, plan.order.end());
    return plan;
}

bool is_permutation(const std::vector<uint16_t> & order) {
    std::vector<bool> seen(order.size());
    for (const uint16_t channel : order) {
        if (channel >= order.size() || seen[channel]) return false;
        seen[channel] = true;
    }
    return true;
}

} // namespace vidkv
