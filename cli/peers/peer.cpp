#include "peer.h"

#include <algorithm>
#include <cmath>

#include "ggml.h"

namespace vidkv::cli {

const std::vector<Peer> & all_peers() {
    static const std::vector<Peer> peers = {q8_0_peer(),   q4_0_peer(),   kivi2_peer(),
                                            turbo3_peer(), turbo2_peer(), vidkv_released_peer()};
    return peers;
}

const Peer * find_peer(const std::string & name) {
    const auto found =
        std::find_if(all_peers().begin(), all_peers().end(), [&](const Peer & peer) { return name == peer.name; });
    return found == all_peers().end() ? nullptr : &*found;
}

float to_half(float x) { return ggml_fp16_to_fp32(ggml_fp32_to_fp16(x)); }

void min_max_round_trip(float * x, int64_t n, int64_t stride, int bits) {
    float low = x[0], high = x[0];
    for (int64_t i = 1; i < n; ++i) {
        low = std::min(low, x[i * stride]);
        high = std::max(high, x[i * stride]);
    }
    const float top = static_cast<float>((1 << bits) - 1);
    const float step = to_half((high - low) / top), base = to_half(low);
    for (int64_t i = 0; i < n; ++i) {
        const float code = step > 0 ? std::clamp(std::round((x[i * stride] - base) / step), 0.0F, top) : 0;
        x[i * stride] = code * step + base;
    }
}

} // namespace vidkv::cli
