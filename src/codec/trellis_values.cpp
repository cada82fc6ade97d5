// Values as trellis codes: rotated, one scale per token.
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <vector>

#include "codec/log_scale.h"
#include "codec/page_mean.h"
#include "codec/shared_rows.h"
#include "codec/trellis.h"
#include "codec/value_page.h"

namespace vidkv {

namespace {

// The scale that makes dot products unbiased: <x,x> / <x,y> for the code's values y. rho guards against codes that miss.
float unbiased_scale(const float * x, const float * y, int n) {
    const float xx = dot(x, x, n), xy = dot(x, y, n);
    return xy > 0.3f * xx ? xx / xy : 1.0f;
}

// Equal tokens would get equal codes, and attention that averages over a still scene would average nothing. So tokens that are
// alike share what their codes missed so far, and each makes up for an eighth of it: the sum of their errors stays that of a few.
// What no code can reach (a channel beyond the highest level) must not pile up: an eighth stays below half a token's rms, of the token
// that missed and of the one that makes up for it, which may be far shorter.
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

// A head's page on its way.
class Writer {
  public:
    Writer(const ValueLayout & layout, const float * x, const uint8_t * use, int units, uint8_t * codes, uint8_t * meta)
        : layout_(layout), units_(units), codes_(codes), meta_(meta),
          mean_bytes_(codes + layout.head_codes(units) - page_mean_bytes(layout.head_dim)),
          direction_bytes_(mean_bytes_ - page_direction_bytes(layout.head_dim, page_tokens)),
          rows_(x, use, layout.head_dim), rule_(layout, units), like_(layout.head_dim), rest_(layout.head_dim),
          target_(layout.head_dim), aim_(layout.head_dim), value_(layout.head_dim), levels_(layout.head_dim),
          quad_(static_cast<size_t>(layout.head_dim) * 4) {}

    // A page that is packed again must not change its kind: what the rows share is taken if the rows that come out share it too.
    void write() {
        for (const bool may_have_direction : {true, false}) {
            share(find_shared(rows_, layout_, rule_, may_have_direction));
            write_slots();
            if (shared_.kind == Sharing::nothing || is_as_it_was()) return;
            if (shared_.kind == Sharing::mean) break;
        }
        share(Shared{});
        write_slots();
    }

  private:
    static constexpr int most_tries = 2;
    static constexpr float most_off = 0.4f; // of a point, in steps of the direction
    bool is_still() const { return shared_.kind != Sharing::nothing; }
    bool has_direction() const { return shared_.kind == Sharing::direction; }

    // Takes it as the page will say it.
    void share(Shared shared) {
        shared_ = std::move(shared);
        shared_.mean.resize(static_cast<size_t>(layout_.head_dim));
        shared_.direction.resize(static_cast<size_t>(layout_.head_dim));
        store_shared();
        missed_by_all_.assign(static_cast<size_t>(layout_.head_dim), 0.0f);
        missed_along_ = missed_by_all_;
        const float length = dot(shared_.direction.data(), shared_.direction.data(), layout_.head_dim);
        inverse_length_ = length > 0.0f ? 1.0f / length : 0.0f;
        average_along_ = 0.0f;
        for (int slot = 0; slot < page_tokens; ++slot) average_along_ += rows_.share(slot) * shared_.along[slot];
    }

    void store_shared() {
        const int n = layout_.head_dim;
        if (!is_still()) return;
        const uint8_t scale = std::max<uint8_t>(store_shared_vector(shared_.mean.data(), n, mean_bytes_ + 2), 1);
        mean_bytes_[1] = has_direction() ? uint8_t{0} : scale;
        if (!has_direction()) return;
        direction_bytes_[0] = scale;
        direction_bytes_[1] = store_shared_vector(shared_.direction.data(), n, direction_bytes_ + 2);
        store_along(shared_.along.data(), page_tokens, direction_bytes_ + 2 + shared_vector_bytes(n));
    }

    void write_slots() {
        left_by_mean_ = left_by_all_ = {};
        like_ = LikeTokens(layout_.head_dim);
        uint8_t * codes = codes_;
        for (int slot = 0; slot < page_tokens; ++slot) {
            const QuadCode code = layout_.quad_code(slot / 4, units_, rule_.narrow_quads(shared_.kind));
            take_rest(slot);
            const float scale = write_slot(code, slot, codes);
            note_missed(slot, scale);
            if (slot % 4 == 3) codes += quad_bytes(code, layout_.head_dim);
        }
        if (!is_still()) return;
        refit(rows_, missed_by_all_.data(), missed_along_.data(), shared_);
        store_shared();
    }

    bool is_as_it_was() const {
        const float by_all = left_by_all_.average(), infinite = std::numeric_limits<float>::infinity();
        return has_direction()
                   ? rule_.choose(left_by_mean_.average(), 1.1f * by_all) == Sharing::direction // with some room
                   : rule_.choose(by_all, infinite) == Sharing::mean;
    }

    // What the slot's codes have to say.
    void take_rest(int slot) {
        const int n = layout_.head_dim;
        std::copy_n(rows_.at(slot), n, rest_.begin());
        off_ = 0.0f;
        if (!is_still() || !rows_.is_used(slot)) return;
        add_scaled(shared_.mean.data(), -1.0f, n, rest_.data());
        if (!has_direction()) return;
        add_scaled(shared_.direction.data(), -shared_.along[slot], n, rest_.data());
        if (!shared_.only_across) return;
        off_ = dot(rest_.data(), shared_.direction.data(), n) * inverse_length_;
        add_scaled(shared_.direction.data(), -off_, n, rest_.data());
    }

    // What the codes' levels stand for -> value_; returns the slot's scale.
    float write_slot(QuadCode code, int slot, uint8_t * codes) {
        const int head_dim = layout_.head_dim;
        target_ = rest_;
        own_ = rms_of(rest_.data(), head_dim);
        missed_ = own_ > 0.0f ? like_.missed(rest_.data(), own_) : nullptr;
        const float most = LikeTokens::most * own_;
        for (int c = 0; c < head_dim && missed_; ++c) target_[c] += LikeTokens::share * std::clamp(missed_[c], -most, most);
        float scale = write_target(code, slot, codes);
        for (int tries = 0; tries < most_tries && std::fabs(off_point(scale)) > most_off; ++tries) {
            aim_at_point(off_point(scale));
            scale = write_target(code, slot, codes);
        }
        const float off = std::fabs(off_point(scale));
        return off > most_off ? write_scale(slot, scale * (most_off / off)) : scale;
    }

    float write_target(QuadCode code, int slot, uint8_t * codes) {
        const int head_dim = layout_.head_dim;
        aim_ = target_;
        const float rms = rms_of(aim_.data(), head_dim), inverse = rms > 0.0f ? 1.0f / rms : 0.0f;
        for (float & r : aim_) r = std::isfinite(inverse) ? r * inverse : 0.0f;
        write_levels(code, slot, codes);
        const LevelGrid grid = level_grid(code);
        for (int c = 0; c < head_dim; ++c) value_[c] = (static_cast<float>(levels_[c]) - grid.offset) * grid.step;
        return write_scale(slot,
                           code == QuadCode::none ? 0.0f : rms * unbiased_scale(aim_.data(), value_.data(), head_dim));
    }

    // How far codes move a row along the direction, in its steps. Those that take it nearer to another point than its own would move it
    // there when the page is packed again, each time: they are to aim elsewhere, or else to say less.
    float off_point(float scale) const {
        if (!has_direction()) return 0.0f;
        return scale * dot(value_.data(), shared_.direction.data(), layout_.head_dim) * inverse_length_;
    }
    void aim_at_point(float off) {
        const float less = off - std::clamp(off, -0.5f * most_off, 0.5f * most_off);
        add_scaled(shared_.direction.data(), -less, layout_.head_dim, target_.data());
    }

    void write_levels(QuadCode code, int slot, uint8_t * codes) {
        const LevelGrid grid = level_grid(code);
        if (code == QuadCode::none) {
            std::fill(levels_.begin(), levels_.end(), uint8_t{0});
        } else if (code == QuadCode::uniform4) {
            for (int c = 0; c < layout_.head_dim; ++c) {
                const float level = std::clamp(aim_[c] / grid.step + grid.offset, 0.0f, 15.0f);
                quad_[static_cast<size_t>(4 * c + slot % 4)] = levels_[c] = static_cast<uint8_t>(std::nearbyint(level));
            }
            if (slot % 4 == 3) pack_uniform(code, quad_.data(), layout_.head_dim, codes);
        } else {
            encode_trellis_lane(code, aim_.data(), layout_.head_dim, slot % 4, codes, levels_.data());
        }
    }

    float write_scale(int slot, float scale) {
        const bool last = slot == page_tokens - 1;
        uint8_t code = log_scale_code(scale);
        if (last && !is_still()) code = std::min<uint8_t>(code, still_mark - 1);
        if (last && is_still()) meta_[slot] = still_mark;
        (last && is_still() ? mean_bytes_[0] : meta_[slot]) = code;
        return log_scale_value(code);
    }

    void note_missed(int slot, float scale) {
        const int n = layout_.head_dim;
        const float most = LikeTokens::most * own_;
        float * const miss = target_.data(); // no longer needed
        for (int c = 0; c < n; ++c) {
            value_[c] *= scale;
            miss[c] = rest_[c] - value_[c];
        }
        for (int c = 0; c < n && missed_; ++c) missed_[c] = std::clamp(missed_[c] + miss[c], -most, most);
        if (!is_still()) return;
        if (has_direction()) add_scaled(shared_.direction.data(), off_, n, miss);
        add_scaled(miss, rows_.share(slot), n, missed_by_all_.data());
        if (has_direction()) add_scaled(miss, rows_.share(slot) * shared_.along[slot], n, missed_along_.data());
        if (rows_.is_used(slot)) note_left(slot);
    }

    // Of the row that comes out.
    void note_left(int slot) {
        const int n = layout_.head_dim;
        float all = 0, by_mean = 0;
        for (int c = 0; c < n; ++c) {
            const float moved = (shared_.along[slot] - average_along_) * shared_.direction[c] + value_[c];
            const float row = shared_.mean[c] + shared_.along[slot] * shared_.direction[c] + value_[c];
            by_mean += moved * moved;
            all += row * row;
        }
        left_by_mean_.add(by_mean, all);
        left_by_all_.add(dot(value_.data(), value_.data(), n), all);
    }

    const ValueLayout & layout_;
    int units_;
    uint8_t *codes_, *meta_, *mean_bytes_, *direction_bytes_;
    PageRows rows_;
    SharingRule rule_;
    Shared shared_;                                   // as the page says it
    std::vector<float> missed_by_all_, missed_along_; // by the codes, on average
    float average_along_ = 0, inverse_length_ = 0;    // of the direction, squared
    ShareLeft left_by_mean_, left_by_all_;            // of the rows that come out
    LikeTokens like_;
    std::vector<float> rest_, target_, aim_, value_; // of the slot at hand
    std::vector<uint8_t> levels_, quad_;
    float own_ = 0, off_ = 0; // what the codes leave alone, in directions
    float * missed_ = nullptr;
};

} // namespace

void encode_trellis_values(const ValueLayout & layout, const float * x, const uint8_t * use, int units, uint8_t * codes,
                           uint8_t * meta) {
    Writer(layout, x, use, units, codes, meta).write();
}

} // namespace vidkv
