#include "eval/reference_codecs/reference_codec.h"

#include <algorithm>
#include <cmath>

#include "ggml.h"

namespace vidkv::cli {

const std::vector<ReferenceCodec> & all_reference_codecs() {
    static const std::vector<ReferenceCodec> peers = {
        q8_0_reference(),          q5_1_reference(),         q5_0_reference(),
        q4_0_reference(),          q8_0_rotated_reference(), q5_0_rotated_reference(),
        q4_0_rotated_reference(),  kivi2_reference(),        turbo3_reference(),
        turbo2_reference(),        trellis2_reference(),     trellis1_reference(),
        kvarn2_reference(),        oscar_omni2_reference(),  oscar_spectral2_reference(),
        vidkv_released_reference()};
    return peers;
}

const ReferenceCodec * find_reference_codec(const std::string & name) {
    const auto found = std::find_if(all_reference_codecs().begin(), all_reference_codecs().end(),
                                    [&](const ReferenceCodec & peer) { return name == peer.name; });
    return found == all_reference_codecs().end() ? nullptr : &*found;
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

void hadamard(float * x, int64_t n, int block) {
    for (int step = 1; step < block; step *= 2) {
        for (int64_t i = 0; i < n; ++i) {
            if ((i & step) != 0) continue;
            const float a = x[i], b = x[i + step];
            x[i] = a + b;
            x[i + step] = a - b;
        }
    }
    const float scale = 1 / std::sqrt(static_cast<float>(block));
    for (int64_t i = 0; i < n; ++i) x[i] *= scale;
}

void turn_heads(const ReferenceRows & rows) {
    hadamard(rows.data, rows.tokens * rows.heads * rows.head_dim, rows.head_dim & -rows.head_dim);
}

} // namespace vidkv::cli
