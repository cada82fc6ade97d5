// Values as trellis codes: rotated, one scale per token.
#include <cmath>
#include <vector>

#include "codec/log_scale.h"
#include "codec/rotation.h"
#include "codec/trellis.h"
#include "codec/two_bit.h"
#include "codec/value_page.h"

namespace vidkv {

namespace {

// The scale that makes dot products unbiased: <x,x> / <x,y> for the code's values y. rho guards against codes that miss.
float unbiased_scale(const float * x, const float * y, int n) {
    float xx = 0, xy = 0;
    for (int i = 0; i < n; ++i) {
        xx += x[i] * x[i];
        xy += x[i] * y[i];
    }
    return xy > 0.3f * xx ? xx / xy : 1.0f;
}

} // namespace

void encode_trellis_values(const ValueLayout & layout, const float * x, const uint8_t * use, int units, uint8_t * codes,
                           uint8_t * meta) {
    const int head_dim = layout.head_dim;
    const auto rotate = rotation(head_dim);
    std::vector<float> row(head_dim), value(head_dim);
    std::vector<uint8_t> levels(head_dim);
    for (int slot = 0; slot < page_tokens; ++slot) {
        const QuadCode code = layout.quad_code(slot / 4, units);
        float energy = 0;
        for (int c = 0; c < head_dim; ++c) row[c] = use[slot] ? sanitize(x[slot * head_dim + c]) : 0.0f;
        rotate->forward(row.data());
        for (const float r : row) energy += r * r;
        const float rms = std::sqrt(energy / static_cast<float>(head_dim)), inverse = rms > 0.0f ? 1.0f / rms : 0.0f;
        for (float & r : row) r = std::isfinite(inverse) ? r * inverse : 0.0f;
        encode_trellis_lane(code, row.data(), head_dim, slot % 4, codes, levels.data());
        const LevelGrid grid = level_grid(code);
        for (int c = 0; c < head_dim; ++c) value[c] = (static_cast<float>(levels[c]) - grid.offset) * grid.step;
        meta[slot] = log_scale_code(rms * unbiased_scale(row.data(), value.data(), head_dim));
        if (slot % 4 == 3) codes += quad_bytes(code, head_dim);
    }
}

} // namespace vidkv
