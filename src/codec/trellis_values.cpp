// Values as trellis codes: rotated, one scale per token.
#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "codec/log_scale.h"
#include "codec/rotation.h"
#include "codec/trellis.h"
#include "codec/two_bit.h"
#include "codec/value_page.h"

namespace vidkv {

namespace {

float dot(const float * x, const float * y, int n) { // n: head_dim, a multiple of 8
    std::array<float, 8> sums = {};
    for (int i = 0; i < n; i += 8) {
        for (int j = 0; j < 8; ++j) sums[j] += x[i + j] * y[i + j];
    }
    return ((sums[0] + sums[4]) + (sums[1] + sums[5])) + ((sums[2] + sums[6]) + (sums[3] + sums[7]));
}

// The scale that makes dot products unbiased: <x,x> / <x,y> for the code's values y. rho guards against codes that miss.
float unbiased_scale(const float * x, const float * y, int n) {
    const float xx = dot(x, x, n), xy = dot(x, y, n);
    return xy > 0.3f * xx ? xx / xy : 1.0f;
}

// Equal tokens would get equal codes, and attention that averages over a still scene would average nothing. So tokens that are
// alike share what their codes missed so far, and each makes up for an eighth of it: the sum of their errors stays that of a few.
// What no code can reach (a channel beyond the highest level) must not pile up: an eighth stays below half a token's rms.
class LikeTokens {
  public:
    static constexpr float share = 0.125f, most = 0.5f / share; // most: of a token's rms
    explicit LikeTokens(int head_dim) : head_dim_(head_dim) {
        for (Run & run : runs_) run.row.resize(head_dim), run.missed.resize(head_dim);
    }

    // Row: rotated, rms: of its elements. What its run has missed; all 0 if it is like no token before it.
    float * missed(const float * row, float rms) {
        const auto alike = [&](const Run & each) {
            return dot(each.row.data(), row, head_dim_) > least_cosine * each.rms * rms * static_cast<float>(head_dim_);
        };
        Run * const last = &runs_.back();
        Run * const run = std::find_if(runs_.data(), last, alike); // where none is alike, the last one gives way
        if (!alike(*run)) std::fill(run->missed.begin(), run->missed.end(), 0.0f);
        std::rotate(runs_.data(), run, run + 1); // the run used last stands first
        std::copy_n(row, head_dim_, runs_[0].row.begin());
        runs_[0].rms = rms;
        return runs_[0].missed.data();
    }

  private:
    static constexpr float least_cosine = 0.8f;
    struct Run {
        std::vector<float> row, missed; // of the newest token; of all
        float rms = 0;
    };
    int head_dim_;
    std::array<Run, 4> runs_;
};

float rms_of(const float * row, int n) { return std::sqrt(dot(row, row, n) / static_cast<float>(n)); }

} // namespace

void encode_trellis_values(const ValueLayout & layout, const float * x, const uint8_t * use, int units, uint8_t * codes,
                           uint8_t * meta) {
    const int head_dim = layout.head_dim;
    const auto rotate = rotation(head_dim);
    LikeTokens like(head_dim);
    std::vector<float> row(head_dim), aim(head_dim), value(head_dim);
    std::vector<uint8_t> levels(head_dim);
    for (int slot = 0; slot < page_tokens; ++slot) {
        const QuadCode code = layout.quad_code(slot / 4, units);
        for (int c = 0; c < head_dim; ++c) row[c] = use[slot] ? sanitize(x[slot * head_dim + c]) : 0.0f;
        rotate->forward(row.data());
        aim = row;
        const float own = rms_of(row.data(), head_dim);
        float * missed = own > 0.0f ? like.missed(row.data(), own) : nullptr;
        for (int c = 0; c < head_dim && missed; ++c) aim[c] += LikeTokens::share * missed[c];
        const float rms = rms_of(aim.data(), head_dim), inverse = rms > 0.0f ? 1.0f / rms : 0.0f;
        for (float & r : aim) r = std::isfinite(inverse) ? r * inverse : 0.0f;
        encode_trellis_lane(code, aim.data(), head_dim, slot % 4, codes, levels.data());
        const LevelGrid grid = level_grid(code);
        for (int c = 0; c < head_dim; ++c) value[c] = (static_cast<float>(levels[c]) - grid.offset) * grid.step;
        meta[slot] = log_scale_code(rms * unbiased_scale(aim.data(), value.data(), head_dim));
        const float scale = log_scale_value(meta[slot]), most = LikeTokens::most * own;
        for (int c = 0; c < head_dim && missed; ++c)
            missed[c] = std::clamp(missed[c] + row[c] - scale * value[c], -most, most);
        if (slot % 4 == 3) codes += quad_bytes(code, head_dim);
    }
}

} // namespace vidkv
