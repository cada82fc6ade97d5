#include "codec/page_mean.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace vidkv {

void store_page_mean(float * mean, int head_dim, uint8_t * bytes) {
    std::memset(bytes + 1, 0, page_mean_bytes(head_dim) - 1);
    float most = 0;
    for (int c = 0; c < head_dim; ++c) most = std::max(most, std::fabs(mean[c]));
    bytes[1] = log_scale_at_least(most * (2048.0f / 2047.0f));
    const float step = log_scale_value(bytes[1]) / 2048.0f, inverse = step > 0.0f ? 1.0f / step : 0.0f;
    uint8_t *upper = bytes + 2, *lower = upper + head_dim;
    const int half = head_dim / 2;
    for (int c = 0; c < head_dim; ++c) {
        const int whole = static_cast<int>(std::nearbyint(std::clamp(mean[c] * inverse, -2048.0f, 2047.0f)));
        upper[c] = static_cast<uint8_t>(whole >> 4);
        lower[c % half] = static_cast<uint8_t>(lower[c % half] | (whole & 15) << (c < half ? 0 : 4));
    }
    load_page_mean(bytes, head_dim, mean);
}

} // namespace vidkv
