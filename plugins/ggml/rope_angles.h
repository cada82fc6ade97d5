// What ggml's ROPE does to a key, as angles per position.
#pragma once

#include <optional>
#include <vector>

#include "ggml.h"
#include "vidkv/vidkv.h"

namespace vidkv_ggml {

struct RopeAngles {
    int first, step, apart;
    std::vector<double> angles;
    float gain;

    vidkv_rotation rotation() const { return {first, step, apart, static_cast<int>(angles.size()), angles.data(), gain}; }
};

// Of a ROPE on a view of keys, [n_rot, kv_heads, cells]; nothing where it is more than a rotation by position.
std::optional<RopeAngles> rope_angles(const ggml_tensor * op);

} // namespace vidkv_ggml
