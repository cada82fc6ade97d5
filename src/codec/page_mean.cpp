#include "codec/page_mean.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace vidkv {

uint8_t store_shared_vector(float * vector, int head_dim, uint8_t * numbers) {
    std::memset(numbers, 0, shared_vector_bytes(head_dim));
    float most = 0;
    for (int c = 0; c < head_dim; ++c) most = std::max(most, std::fabs(vector[c]));
    const uint8_t scale = log_scale_at_least(most * (2048.0f / 2047.0f));
    const float step = log_scale_value(scale) / 2048.0f, inverse = step > 0.0f ? 1.0f / step : 0.0f;
    uint8_t *upper = numbers, *lower = upper + head_dim;
    const int half = head_dim / 2;
    for (int c = 0; c < head_dim; ++c) {
        const int whole = static_cast<int>(std::nearbyint(std::clamp(vector[c] * inverse, -2048.0f, 2047.0f)));
        upper[c] = static_cast<uint8_t>(whole >> 4);
        lower[c % half] = static_cast<uint8_t>(lower[c % half] | (whole & 15) << (c < half ? 0 : 4));
    }
    load_shared_vector(scale, numbers, head_dim, vector);
    return scale;
}

void store_along(const float * along, int slots, uint8_t * bytes) {
    for (int j = 0; j < slots / 2; ++j) {
        const int low = static_cast<int>(along[j]), high = static_cast<int>(along[j + slots / 2]);
        bytes[j] = static_cast<uint8_t>((low & 15) | (high & 15) << 4);
    }
}

} // namespace vidkv
