#include "codec/packed_keys.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "base/half.h"
#include "codec/log_scale.h"
#include "codec/trellis.h"

namespace vidkv {

namespace {

constexpr size_t most_values = 64; // levels of the widest code
constexpr int most_mean = 127;     // eighths of the scale

constexpr QuadCode codes_of_keys[] = {QuadCode::trellis1, QuadCode::trellis2, QuadCode::trellis3,
                                      QuadCode::uniform4, QuadCode::uniform5, QuadCode::uniform6};

// The distinct values of a channel in rising order; empty if there are more than codes can give.
std::vector<float> values_of(const float * row, const uint8_t * use) {
    std::vector<float> values;
    for (int t = 0; t < page_tokens; ++t) {
        if (!use[t]) continue;
        const auto at = std::lower_bound(values.begin(), values.end(), row[t]);
        if (at != values.end() && *at == row[t]) continue;
        if (values.size() == most_values) return {};
        values.insert(at, row[t]);
    }
    return values;
}

// What rounding to f16 may have added to the difference of two values.
float rounding_of(const std::vector<float> & values) {
    int exponent;
    std::frexp(std::max(std::fabs(values.front()), std::fabs(values.back())), &exponent);
    return std::ldexp(1.001f, std::max(exponent - 11, -24));
}

bool is_trellis(QuadCode code) { return code != QuadCode::none && code <= QuadCode::trellis3; }

bool has_level(QuadCode code, int level) {
    if (level < 0 || level > largest_level(code)) return false;
    if (!is_trellis(code)) return true;
    const auto & values = trellis_table(code).values[0];
    return std::find(values.begin(), values.end(), level) != values.end();
}

// Levels of the values above the lowest one, at this step; empty if they do not lie on such a grid.
std::vector<int> levels_above(const std::vector<float> & values, float step, float slack, int most) {
    std::vector<int> levels;
    for (const float v : values) {
        const float x = v - values.front(), level = std::nearbyint(x / step);
        if (level > static_cast<float>(most) || std::fabs(x - level * step) > slack) return {};
        levels.push_back(static_cast<int>(level));
        if (levels.size() > 1 && levels.back() == levels[levels.size() - 2]) return {};
    }
    return levels;
}

// One channel under one code and scale.
class Match {
  public:
    Match(const float * row, const uint8_t * use, const std::vector<float> & values, QuadCode code, uint8_t scale,
          float slack, int & searches)
        : row_(row), use_(use), values_(values), searches_(searches), grid_(level_grid(code)),
          step_(grid_.step * log_scale_value(scale)), above_(levels_above(values, step_, slack, largest_level(code))) {
        out_.code = code;
        out_.scale = scale;
    }

    bool find() {
        if (above_.empty()) return false;
        const int room = largest_level(out_.code) - above_.back(), guess = likely_lowest();
        for (int i = 0; i <= 2 * room + 1; ++i) { // the likely one first, then its neighbours
            const int lowest = guess + (i % 2 ? (i + 1) / 2 : -i / 2);
            if (lowest >= 0 && lowest <= room && fits(lowest)) return true;
        }
        return false;
    }
    const PackedChannel & found() const { return out_; }

  private:
    int above(float value) const {
        return above_[std::lower_bound(values_.begin(), values_.end(), value) - values_.begin()];
    }

    // Codes were made around the mean.
    int likely_lowest() const {
        float sum = 0, count = 0;
        for (int t = 0; t < page_tokens; ++t) {
            if (!use_[t]) continue;
            sum += static_cast<float>(above(row_[t]));
            ++count;
        }
        const float lowest = std::nearbyint(grid_.offset - sum / count);
        return static_cast<int>(std::clamp(lowest, 0.0f, static_cast<float>(largest_level(out_.code) - above_.back())));
    }

    bool fits(int lowest) {
        if (!std::all_of(above_.begin(), above_.end(), [&](int a) { return has_level(out_.code, a + lowest); }))
            return false;
        uint8_t wanted[page_tokens], packed[4 * page_tokens];
        float sum = 0, count = 0;
        for (int t = 0; t < page_tokens; ++t) {
            wanted[t] = use_[t] ? static_cast<uint8_t>(above(row_[t]) + lowest) : uint8_t{0};
            if (!use_[t]) continue;
            sum += row_[t] - (static_cast<float>(wanted[t]) - grid_.offset) * step_;
            ++count;
        }
        out_.center = sum / count;
        std::copy_n(wanted, page_tokens, out_.levels.begin());
        if (!is_trellis(out_.code)) {
            out_.least_shift = -lowest;
            out_.most_shift = largest_level(out_.code) - above_.back() - lowest;
            return true;
        }
        if (--searches_ < 0) return false;
        if (!encode_trellis_levels(out_.code, use_, page_tokens, 0, packed, out_.levels.data())) return false;
        ++searches_;
        return true;
    }

    const float * row_;
    const uint8_t * use_;
    const std::vector<float> & values_;
    int & searches_; // that may still fail
    LevelGrid grid_;
    float step_;
    std::vector<int> above_;
    PackedChannel out_;
};

bool find_channel(const float * row, const uint8_t * use, const std::vector<float> & values, int & searches,
                  PackedChannel & out) {
    if (values.size() == 1) {
        out.center = values[0];
        return true;
    }
    const float slack = rounding_of(values), span = values.back() - values.front();
    float gap = span;
    for (size_t i = 1; i < values.size(); ++i) gap = std::min(gap, values[i] - values[i - 1]);
    for (const QuadCode code : codes_of_keys) {
        const float step = level_grid(code).step;
        const float least = (span - slack) / (static_cast<float>(largest_level(code)) * step), most = (gap + slack) / step;
        for (int scale = std::max<int>(log_scale_code(least), 1); scale <= 255; ++scale) {
            if (log_scale_value(static_cast<uint8_t>(scale)) > most) break;
            Match match(row, use, values, code, static_cast<uint8_t>(scale), slack, searches);
            if (searches < 0) return false;
            if (!match.find()) continue;
            out = match.found();
            return true;
        }
    }
    return false;
}

int eighths(float distance, float scale) {
    return static_cast<int>(std::nearbyint(std::clamp(8.0f * distance / scale, -1e6f, 1e6f)));
}

float shifted_center(const PackedChannel & channel, int shift) {
    return channel.center - static_cast<float>(shift) * level_grid(channel.code).step * log_scale_value(channel.scale);
}

// How the center of a page is stored: eighths of its scale from the plan's mean, and what is lost by that.
struct Place {
    int shift = 0, eighths = 0;
    float miss = std::numeric_limits<float>::infinity(); // in eighths
};
Place place_of(const PackedChannel & channel, float mean) {
    const float scale = log_scale_value(channel.scale);
    Place best;
    for (int shift = channel.least_shift; shift <= channel.most_shift; ++shift) {
        const float distance = shifted_center(channel, shift) - mean;
        const int k = eighths(distance, scale);
        const float miss = std::fabs(8.0f * distance / scale - static_cast<float>(k));
        if (std::abs(k) <= most_mean && miss < best.miss) best = {shift, k, miss};
    }
    return best;
}

// A channel without codes: the scale is only there for its mean.
struct ChannelMeta {
    uint8_t scale = 0;
    int8_t mean = 0;
};
ChannelMeta constant_channel(float distance) {
    const uint8_t scale = log_scale_at_least(std::fabs(distance) * (8.0f / most_mean));
    if (scale == 0) return {};
    return {scale, static_cast<int8_t>(std::clamp(eighths(distance, log_scale_value(scale)), -most_mean, most_mean))};
}

double misfit(const std::vector<const PackedChannel *> & pages, float mean) {
    double sum = 0;
    for (const PackedChannel * page : pages) {
        const double miss = place_of(*page, mean).miss;
        sum += miss * miss;
    }
    return sum;
}

// The mean that all centers are whole eighths of their scales away from. Constant channels say little: the median of all
// serves them.
uint16_t mean_of(const std::vector<const PackedHead *> & heads, size_t channel, uint16_t otherwise) {
    std::vector<const PackedChannel *> pages;
    std::vector<float> centers;
    for (const PackedHead * head : heads) {
        centers.push_back((*head)[channel].center);
        if ((*head)[channel].code != QuadCode::none) pages.push_back(&(*head)[channel]);
    }
    std::nth_element(centers.begin(), centers.begin() + static_cast<ptrdiff_t>(centers.size() / 2), centers.end());
    if (pages.empty()) return float_to_half(centers[centers.size() / 2]);
    const auto fewer_shifts = [](const auto * a, const auto * b) {
        return a->most_shift - a->least_shift < b->most_shift - b->least_shift;
    };
    const PackedChannel & first = **std::min_element(pages.begin(), pages.end(), fewer_shifts);
    double least = misfit(pages, half_to_float(otherwise));
    uint16_t best = otherwise;
    for (int shift = first.least_shift; shift <= first.most_shift; ++shift) {
        for (int k = -most_mean; k <= most_mean; ++k) {
            const uint16_t mean =
                float_to_half(shifted_center(first, shift) - 0.125f * static_cast<float>(k) * log_scale_value(first.scale));
            const double miss = misfit(pages, half_to_float(mean));
            if (miss >= least) continue;
            least = miss;
            best = mean;
        }
    }
    return best;
}

} // namespace

PackedHead find_codes(const KeyRows & rows, const uint8_t * use) {
    const size_t n = rows.size() / page_tokens;
    std::vector<std::vector<float>> values;
    for (size_t c = 0; c < n; ++c) {
        values.push_back(values_of(&rows[c * page_tokens], use));
        if (values.back().empty()) return {};
    }
    PackedHead head(n);
    int searches = static_cast<int>(2 * n); // enough for packed rows, and a bound for others of few values
    for (size_t c = 0; c < n; ++c) {
        if (!find_channel(&rows[c * page_tokens], use, values[c], searches, head[c])) return {};
    }
    return head;
}

void fit_plan(const std::vector<const PackedHead *> & heads, ChannelPlan & plan) {
    if (heads.empty()) return;
    const auto wider = [&](uint16_t a, uint16_t b) {
        for (const PackedHead * head : heads) {
            if ((*head)[a].code != (*head)[b].code) return (*head)[a].code > (*head)[b].code;
        }
        return false;
    };
    std::vector<uint16_t> mean(plan.order.size());
    for (size_t i = 0; i < mean.size(); ++i) mean[plan.order[i]] = mean_of(heads, plan.order[i], plan.mean[i]);
    std::stable_sort(plan.order.begin(), plan.order.end(), wider);
    for (size_t i = 0; i < mean.size(); ++i) plan.mean[i] = mean[plan.order[i]];
}

std::vector<QuadCode> fitting_codes(const KeyLayout & layout, const std::vector<ChannelPlan> & plans,
                                    const PackedHead * heads) {
    std::vector<QuadCode> codes;
    size_t bytes = 0;
    for (size_t h = 0; h < plans.size(); ++h) {
        for (size_t i = 0; i < heads[h].size(); ++i) {
            const PackedChannel & channel = heads[h][plans[h].order[i]];
            if (i % 4 == 0) {
                codes.push_back(channel.code);
                bytes += quad_bytes(channel.code, page_tokens);
            }
            if (channel.code != codes.back()) return {};
            if (channel.code == QuadCode::none) continue;
            if (std::isinf(place_of(channel, half_to_float(plans[h].mean[i])).miss)) return {};
        }
    }
    return bytes == layout.head_codes ? codes : std::vector<QuadCode>();
}

void encode_packed_keys(const ChannelPlan & plan, const PackedHead & head, const uint8_t * use, uint8_t * codes,
                        uint8_t * meta) {
    const size_t n = plan.order.size();
    uint8_t quad_levels[4 * page_tokens];
    for (size_t i = 0; i < n; ++i) {
        const PackedChannel & channel = head[plan.order[i]];
        const float mean = half_to_float(plan.mean[i]);
        if (channel.code == QuadCode::none) {
            const ChannelMeta constant = constant_channel(channel.center - mean);
            meta[i] = constant.scale;
            meta[n + i] = static_cast<uint8_t>(constant.mean);
        } else {
            const Place place = place_of(channel, mean);
            meta[i] = channel.scale;
            meta[n + i] = static_cast<uint8_t>(place.eighths);
            auto levels = channel.levels;
            for (uint8_t & level : levels) level = static_cast<uint8_t>(level + place.shift);
            if (is_trellis(channel.code))
                encode_trellis_levels(channel.code, use, page_tokens, static_cast<int>(i % 4), codes, levels.data());
            for (size_t t = 0; t < page_tokens; ++t) quad_levels[4 * t + i % 4] = levels[t];
        }
        if (i % 4 != 3) continue;
        if (channel.code > QuadCode::trellis3) pack_uniform(channel.code, quad_levels, page_tokens, codes);
        codes += quad_bytes(channel.code, page_tokens);
        uint8_t & pair = meta[2 * n + i / 8];
        const unsigned code = static_cast<unsigned>(channel.code);
        pair = static_cast<uint8_t>(i / 4 % 2 ? pair | code << 4 : code);
    }
}

} // namespace vidkv
