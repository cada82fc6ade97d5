#include "rope_angles.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numbers>

namespace vidkv_ggml {

namespace {

// The parameters of ggml_rope_ext, as they lie in op_params.
struct RopeParameters {
    int32_t unused, dims, mode, also_unused, original_context;
    float base, scale, extrapolated, gain, beta_fast, beta_slow;
    int32_t sections[4];
    int32_t offset;
};
static_assert(sizeof(RopeParameters) <= GGML_MAX_OP_PARAMS);

// YaRN: the pair from which on, and that up to which, frequencies are a mixture of stretched and unstretched ones.
double pair_that_turns(const RopeParameters & p, float turns) {
    return p.dims * std::log(p.original_context / (turns * 2 * std::numbers::pi)) /
           (2 * std::log(static_cast<double>(p.base)));
}

double unstretched_share(const RopeParameters & p, int pair) {
    if (p.extrapolated == 0.0f) return 0;
    const double low = std::max(0.0, std::floor(pair_that_turns(p, p.beta_fast)));
    const double high = std::min<double>(p.dims - 1, std::ceil(pair_that_turns(p, p.beta_slow)));
    const double ramp = (pair - low) / std::max(.001, high - low);
    return (1 - std::clamp(ramp, 0.0, 1.0)) * p.extrapolated;
}

} // namespace

std::optional<RopeAngles> rope_angles(const ggml_tensor * op) {
    RopeParameters p;
    std::memcpy(&p, op->op_params, sizeof p);
    const bool neighbours = p.mode == GGML_ROPE_TYPE_NORMAL, halves = p.mode == GGML_ROPE_TYPE_NEOX;
    const ggml_tensor * factors = op->src[2];
    const int pairs = p.dims / 2;
    const bool known_factors = !factors || (factors->type == GGML_TYPE_F32 && factors->data && factors->ne[0] >= pairs);
    if ((!neighbours && !halves) || pairs < 1 || p.dims % 2 != 0 || p.offset < 0 || !known_factors) return std::nullopt;
    const auto head_bytes = op->nb[1]; // a view may begin behind channels that are not rotated
    RopeAngles rope;
    rope.first = p.offset + static_cast<int>(op->view_offs % op->nb[2] % head_bytes / ggml_type_size(op->type));
    rope.step = neighbours ? 2 : 1;
    rope.apart = neighbours ? 1 : pairs;
    const double ratio = powf(p.base, -2.0f / static_cast<float>(p.dims)); // as ggml has it: from pair to pair
    double angle = 1;
    for (int i = 0; i < pairs; ++i, angle *= ratio) {
        const double factor = factors ? static_cast<const float *>(factors->data)[i] : 1.0f,
                     share = unstretched_share(p, i);
        rope.angles.push_back(angle / factor * (p.scale * (1 - share) + share));
    }
    rope.gain = p.gain;
    if (p.extrapolated != 0.0f) rope.gain *= 1.0f + 0.1f * logf(1.0f / p.scale);
    if (std::fabs(rope.gain - 1.0f) < 1e-6f) rope.gain = 1; // YaRN's gain and what the host makes of it to undo it
    return rope;
}

} // namespace vidkv_ggml
