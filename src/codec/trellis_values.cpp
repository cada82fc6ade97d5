// Values as trellis codes: rotated, one scale per token.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <vector>

#include "codec/log_scale.h"
#include "codec/page_mean.h"
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

// A head's rows of a page, rotated, and how much each counts for what the tokens share: not at all if it is not to be used, little
// if it is far longer than most.
class PageRows {
  public:
    PageRows(const float * x, const uint8_t * use, int head_dim)
        : head_dim_(head_dim), rows_(static_cast<size_t>(page_tokens) * head_dim), weights_(page_tokens) {
        const auto rotate = rotation(head_dim);
        std::vector<float> energies;
        for (int slot = 0; slot < page_tokens; ++slot) {
            float * row = at(slot);
            for (int c = 0; c < head_dim; ++c) row[c] = use[slot] ? sanitize(x[slot * head_dim + c]) : 0.0f;
            rotate->forward(row);
            weights_[slot] = dot(row, row, head_dim);
            if (weights_[slot] > 0.0f) energies.push_back(weights_[slot]);
        }
        weigh(energies);
    }
    float * at(int slot) { return &rows_[static_cast<size_t>(slot) * head_dim_]; }
    float weight(int slot) const { return weights_[slot]; }
    // What is added up over all slots, each by its weight, becomes a mean.
    float share(int slot) const { return weights_[slot] * inverse_total_; }

  private:
    void weigh(std::vector<float> & energies) {
        const auto middle = energies.begin() + static_cast<std::ptrdiff_t>(energies.size() / 2);
        if (!energies.empty()) std::nth_element(energies.begin(), middle, energies.end());
        float total = 0;
        for (float & weight : weights_) {
            if (weight > 0.0f) weight = std::min(1.0f, 4.0f * *middle / weight);
            total += weight;
        }
        inverse_total_ = total > 0.0f ? 1.0f / total : 0.0f;
    }

    int head_dim_;
    std::vector<float> rows_, weights_;
    float inverse_total_ = 0;
};

constexpr float most_left = 0.6f; // of a row's energy, in a still page

// Whether codes of what is left of the rows without the mean, some of them narrower, say more of every token than codes of the rows: the
// mean of what is left, in shares of each row, so that a single short token, which attention may rest on, speaks against it.
bool is_still(PageRows & rows, const uint8_t * use, int head_dim, const std::vector<float> & mean) {
    float left = 0, used = 0;
    for (int slot = 0; slot < page_tokens; ++slot) {
        if (!use[slot]) continue;
        const float * row = rows.at(slot);
        float before = 0, after = 0;
        for (int c = 0; c < head_dim; ++c) {
            before += row[c] * row[c];
            after += (row[c] - mean[c]) * (row[c] - mean[c]);
        }
        if (!(before > 0.0f)) return false;
        left += after / before;
        used += 1.0f;
    }
    return left < most_left * used;
}

// A head's page on its way.
class Writer {
  public:
    Writer(const ValueLayout & layout, const float * x, const uint8_t * use, int units, uint8_t * codes, uint8_t * meta)
        : layout_(layout), use_(use), units_(units), codes_(codes), meta_(meta),
          mean_bytes_(codes + layout.head_codes(units) - page_mean_bytes(layout.head_dim)), rows_(x, use, layout.head_dim),
          like_(layout.head_dim), mean_(layout.head_dim), aim_(layout.head_dim), value_(layout.head_dim),
          levels_(layout.head_dim), quad_(static_cast<size_t>(layout.head_dim) * 4) {}

    void write() {
        uint8_t * const begin = codes_;
        take_mean();
        write_slots();
        if (!still_ || stays_still()) return;
        codes_ = begin;
        leave_mean();
        write_slots();
    }

  private:
    void write_slots() {
        left_ = used_ = 0;
        for (int slot = 0; slot < page_tokens; ++slot) {
            const QuadCode code = layout_.quad_code(slot / 4, units_, still_);
            const float scale = write_slot(code, slot);
            note_missed(slot, scale);
            if (slot % 4 == 3) codes_ += quad_bytes(code, layout_.head_dim);
        }
        if (still_) store_page_mean(fitted_.data(), layout_.head_dim, mean_bytes_);
    }

    // Whether the rows that the page decodes to would be judged alike: a page that is packed again must not change its kind.
    bool stays_still() const { return left_ < most_left * used_; }

    void leave_mean() {
        for (int slot = 0; slot < page_tokens; ++slot)
            for (int c = 0; c < layout_.head_dim && use_[slot]; ++c) rows_.at(slot)[c] += mean_[c];
        still_ = false;
        like_ = LikeTokens(layout_.head_dim);
    }

    // Slots without codes are the mean itself: where a page is packed again its last rows are all one, and that is its mean.
    bool last_rows_are_mean() {
        if (layout_.narrow_code != QuadCode::none) return false;
        const float * first = nullptr;
        for (int slot = page_tokens - 4 * layout_.narrow_quads; slot < page_tokens; ++slot) {
            if (!use_[slot]) continue;
            const float * row = rows_.at(slot);
            if (first && !std::equal(first, first + layout_.head_dim, row)) return false;
            first = row;
        }
        if (!first) return false;
        std::copy_n(first, layout_.head_dim, mean_.begin());
        return is_still(rows_, use_, layout_.head_dim, mean_);
    }

    bool average_is_mean() {
        std::fill(mean_.begin(), mean_.end(), 0.0f);
        for (int slot = 0; slot < page_tokens; ++slot)
            for (int c = 0; c < layout_.head_dim; ++c) mean_[c] += rows_.share(slot) * rows_.at(slot)[c];
        return is_still(rows_, use_, layout_.head_dim, mean_);
    }

    // Leaves the rows without the mean, where there is to be one.
    void take_mean() {
        still_ = last_rows_are_mean() || average_is_mean();
        if (!still_) return;
        std::memset(mean_bytes_, 0, page_mean_bytes(layout_.head_dim));
        store_page_mean(mean_.data(), layout_.head_dim, mean_bytes_);
        fitted_ = mean_;
        for (int slot = 0; slot < page_tokens; ++slot)
            for (int c = 0; c < layout_.head_dim && use_[slot]; ++c) rows_.at(slot)[c] -= mean_[c];
    }

    // What the codes' levels stand for -> value_; returns the slot's scale.
    float write_slot(QuadCode code, int slot) {
        const int head_dim = layout_.head_dim;
        const float * row = rows_.at(slot);
        std::copy_n(row, head_dim, aim_.begin());
        own_ = rms_of(row, head_dim);
        missed_ = own_ > 0.0f ? like_.missed(row, own_) : nullptr;
        for (int c = 0; c < head_dim && missed_; ++c) aim_[c] += LikeTokens::share * missed_[c];
        const float rms = rms_of(aim_.data(), head_dim), inverse = rms > 0.0f ? 1.0f / rms : 0.0f;
        for (float & r : aim_) r = std::isfinite(inverse) ? r * inverse : 0.0f;
        write_levels(code, slot);
        const LevelGrid grid = level_grid(code);
        for (int c = 0; c < head_dim; ++c) value_[c] = (static_cast<float>(levels_[c]) - grid.offset) * grid.step;
        return write_scale(slot,
                           code == QuadCode::none ? 0.0f : rms * unbiased_scale(aim_.data(), value_.data(), head_dim));
    }

    void write_levels(QuadCode code, int slot) {
        const LevelGrid grid = level_grid(code);
        if (code == QuadCode::none) {
            std::fill(levels_.begin(), levels_.end(), uint8_t{0});
        } else if (code == QuadCode::uniform4) {
            for (int c = 0; c < layout_.head_dim; ++c) {
                const float level = std::clamp(aim_[c] / grid.step + grid.offset, 0.0f, 15.0f);
                quad_[static_cast<size_t>(4 * c + slot % 4)] = levels_[c] = static_cast<uint8_t>(std::nearbyint(level));
            }
            if (slot % 4 == 3) pack_uniform(code, quad_.data(), layout_.head_dim, codes_);
        } else {
            encode_trellis_lane(code, aim_.data(), layout_.head_dim, slot % 4, codes_, levels_.data());
        }
    }

    float write_scale(int slot, float scale) {
        const bool last = slot == page_tokens - 1;
        uint8_t code = log_scale_code(scale);
        if (last && !still_) code = std::min<uint8_t>(code, still_mark - 1);
        if (last && still_) meta_[slot] = still_mark;
        (last && still_ ? mean_bytes_[0] : meta_[slot]) = code;
        return log_scale_value(code);
    }

    void note_missed(int slot, float scale) {
        const float most = LikeTokens::most * own_;
        const float * row = rows_.at(slot);
        float decoded = 0, left = 0;
        for (int c = 0; c < layout_.head_dim && still_; ++c) {
            const float value = scale * value_[c];
            left += value * value;
            decoded += (mean_[c] + value) * (mean_[c] + value);
        }
        if (still_ && use_[slot]) left_ += decoded > 0.0f ? left / decoded : 1.0f, used_ += 1.0f;
        for (int c = 0; c < layout_.head_dim; ++c) {
            const float miss = row[c] - scale * value_[c];
            if (missed_) missed_[c] = std::clamp(missed_[c] + miss, -most, most);
            if (still_) fitted_[c] += rows_.share(slot) * miss;
        }
    }

    const ValueLayout & layout_;
    const uint8_t * use_;
    int units_;
    uint8_t *codes_, *meta_, *mean_bytes_;
    PageRows rows_;
    LikeTokens like_;
    bool still_ = false;
    std::vector<float> mean_, fitted_; // as the page says it; with what the codes missed, on average
    std::vector<float> aim_, value_;   // of the slot at hand
    std::vector<uint8_t> levels_, quad_;
    float own_ = 0, left_ = 0, used_ = 0; // shares of decoded rows that are not the mean's, and how many rows
    float * missed_ = nullptr;
};

} // namespace

void encode_trellis_values(const ValueLayout & layout, const float * x, const uint8_t * use, int units, uint8_t * codes,
                           uint8_t * meta) {
    Writer(layout, x, use, units, codes, meta).write();
}

} // namespace vidkv
