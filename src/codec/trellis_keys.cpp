#include "codec/trellis_keys.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>

#include "base/half.h"
#include "base/softmax_math.h"
#include "codec/two_bit.h"
#include "codec/encoder_loops.h"
#include "codec/log_scale.h"
#include "codec/trellis.h"

namespace vidkv {

namespace {

// Mean squared error of unit-variance Gaussian samples at 0..6 bits (trellis up to 3, uniform above).
constexpr double distortion[] = {1.0, 0.292, 0.081, 0.0256, 0.01154, 0.0035, 0.00104};
constexpr int most_bits = 6;

// Widths are QuadCodes: none, trellis1..3, uniform4..6 are numbered by their bits.
constexpr QuadCode code_of_bits(int bits) { return static_cast<QuadCode>(bits); }

constexpr double damping =
    0.7; // share of the mean diagonal that is added: the next question may look where no earlier query did
constexpr float most_attention = 16.0f; // times the median token's: with more, the other tokens of the page lose too much
constexpr int refinements = 2;
constexpr float least_move = 0.2f;                 // of a channel's target, in shares of what its codes miss
constexpr float trellis_spreads[] = {1.0f, 1.25f}; // of levels: a search for each, as channels have outlying tokens
constexpr float most_searched = 4.0f; // the largest weight in the trellis search: its 16-bit costs would saturate

bool all_finite(const std::vector<float> & x) {
    constexpr uint32_t exponent = 0x7f800000u;
    bool finite = true;
    for (const float v : x) finite &= (std::bit_cast<uint32_t>(v) & exponent) != exponent;
    return finite;
}

// E[q q^T] of a head with damping; the identity where no query was seen.
std::vector<double> damped_second(const QueryStatistics * statistics, int head, int head_dim) {
    const size_t n = static_cast<size_t>(head_dim);
    std::vector<double> h(n * n);
    double diagonal = 0;
    if (statistics && !statistics->empty()) {
        statistics->second(head, h.data());
        for (size_t i = 0; i < n; ++i) diagonal += h[i * n + i];
    }
    const double added = diagonal > 0 ? damping * diagonal / head_dim : 1.0;
    for (size_t i = 0; i < n; ++i) h[i * n + i] += added;
    return h;
}

// Mean over pages of a channel's variance inside a page.
double page_variance(const std::vector<const KeyRows *> & rows, const KeyFeedback & feedback, int channel) {
    double sum = 0;
    for (size_t p = 0; p < rows.size(); ++p) {
        sum += encoder_loops().moments(rows[p]->data() + channel * page_tokens, feedback.page(p)).variance;
    }
    return sum / static_cast<double>(rows.size());
}

// The median over all pages: with a mean, one broken page would move what is subtracted from all others.
float plan_mean(const std::vector<const KeyRows *> & rows, const std::vector<uint8_t> & use, int channel) {
    std::vector<float> used;
    for (size_t p = 0; p < rows.size(); ++p) {
        for (int t = 0; t < page_tokens; ++t) {
            if (use[p * page_tokens + t]) used.push_back((*rows[p])[channel * page_tokens + t]);
        }
    }
    if (used.empty()) return 0.0f;
    const auto middle = used.begin() + static_cast<ptrdiff_t>(used.size() / 2);
    std::nth_element(used.begin(), middle, used.end());
    return *middle;
}

// log E[exp(scale q.k)] for Gaussian queries with the head's statistics, for each token of a page.
class LogAttention {
  public:
    LogAttention(const QueryStatistics & queries, int head, int head_dim)
        : n_(static_cast<size_t>(head_dim)), mean_(n_), triangle_(n_ * n_) {
        const double scale = 1.0 / std::sqrt(static_cast<double>(head_dim));
        std::vector<double> second(n_ * n_), mean(n_);
        queries.second(head, second.data());
        for (size_t i = 0; i < n_; ++i) mean[i] = queries.mean(head, static_cast<int>(i));
        for (size_t i = 0; i < n_; ++i) {
            mean_[i] = static_cast<float>(scale * mean[i]);
            for (size_t j = 0; j <= i; ++j) { // the other triangle is the same: twice the half below the diagonal
                const double covariance = scale * scale * (second[i * n_ + j] - mean[i] * mean[j]);
                triangle_[i * n_ + j] = static_cast<float>(i == j ? 0.5 * covariance : covariance);
            }
        }
    }

    void of(const KeyRows & keys, float * out) const {
        std::fill_n(out, page_tokens, 0.0f);
        float along[page_tokens];
        for (size_t i = 0; i < n_; ++i) {
            std::fill_n(along, page_tokens, mean_[i]);
            encoder_loops().pull(along, keys.data(), &triangle_[i * n_], nullptr, i + 1);
            for (size_t t = 0; t < page_tokens; ++t) out[t] += along[t] * keys[i * page_tokens + t];
        }
    }

  private:
    size_t n_;
    std::vector<float> mean_, triangle_;
};

// How much the error of each token counts: the root of its expected attention over the median token's, within bounds.
std::vector<float> expected_attention(const QueryStatistics * statistics, int head, int head_dim,
                                      const std::vector<const KeyRows *> & rows, const std::vector<uint8_t> & use) {
    std::vector<float> weight(use.begin(), use.end());
    if (!statistics || statistics->empty()) return weight;
    std::vector<float> log(weight.size()), used;
    const LogAttention attention(*statistics, head, head_dim);
    for (size_t p = 0; p < rows.size(); ++p) attention.of(*rows[p], &log[p * page_tokens]);
    for (size_t i = 0; i < log.size(); ++i) {
        if (use[i]) used.push_back(log[i]);
    }
    if (used.empty() || !all_finite(used)) return weight;
    const auto middle = used.begin() + static_cast<ptrdiff_t>(used.size() / 2);
    std::nth_element(used.begin(), middle, used.end());
    for (size_t i = 0; i < log.size(); ++i) {
        if (use[i]) weight[i] = std::clamp(exp_weight(std::min(0.5f * (log[i] - *middle), 4.0f)), 1.0f, most_attention);
    }
    return weight;
}

} // namespace

KeyFeedback make_feedback(const QueryStatistics * statistics, int head, int head_dim,
                          const std::vector<const KeyRows *> & rows, const std::vector<uint8_t> & use) {
    const size_t n = static_cast<size_t>(head_dim);
    const std::vector<double> h = damped_second(statistics, head, head_dim);
    KeyFeedback feedback;
    feedback.attention = expected_attention(statistics, head, head_dim, rows, use);
    std::vector<double> importance(n);
    for (size_t c = 0; c < n; ++c) importance[c] = h[c * n + c] * page_variance(rows, feedback, static_cast<int>(c));
    feedback.order.resize(n);
    std::iota(feedback.order.begin(), feedback.order.end(), uint16_t{0});
    std::stable_sort(feedback.order.begin(), feedback.order.end(),
                     [&](uint16_t a, uint16_t b) { return importance[a] < importance[b]; });
    // H in coding order = U U^T with U upper triangular, found from the last column back: the error of channels e costs
    // sum over c of U[c][c]^2 (e_c + sum over j < c of U[j][c] / U[c][c] e_j)^2.
    std::vector<double> ordered(n * n), columns(n * n);
    for (size_t c = 0; c < n; ++c) {
        for (size_t j = 0; j < n; ++j) ordered[c * n + j] = h[feedback.order[c] * n + feedback.order[j]];
    }
    encoder_loops().factor(ordered.data(), n, columns.data());
    feedback.pull.resize(n * n);
    for (size_t c = 0; c < n; ++c) {
        const double inverse = 1.0 / h[c * n + c];
        for (size_t j = 0; j < n; ++j) feedback.pull[c * n + j] = static_cast<float>(h[c * n + j] * inverse);
        feedback.pull[c * n + c] = 0.0f;
    }
    feedback.carry.resize(n * n);
    feedback.weight.resize(n);
    for (size_t c = 0; c < n; ++c) {
        const double *column = &columns[c * n], inverse = 1.0 / column[c];
        feedback.weight[feedback.order[c]] = static_cast<float>(column[c] * column[c]);
        for (size_t j = 0; j < c; ++j) feedback.carry[c * n + j] = static_cast<float>(column[j] * inverse);
    }
    const bool sound = all_finite(feedback.pull) && all_finite(feedback.carry) && all_finite(feedback.weight);
    if (statistics && !sound) return make_feedback(nullptr, head, head_dim, rows, use);
    return feedback;
}

ChannelPlan plan_trellis_keys(const KeyFeedback & feedback, const std::vector<const KeyRows *> & rows,
                              const std::vector<uint8_t> & use) {
    const size_t n = feedback.order.size();
    std::vector<double> weight(n);
    for (size_t c = 0; c < n; ++c) weight[c] = feedback.weight[c] * page_variance(rows, feedback, static_cast<int>(c));
    ChannelPlan plan;
    plan.order.resize(n);
    std::iota(plan.order.begin(), plan.order.end(), uint16_t{0});
    std::stable_sort(plan.order.begin(), plan.order.end(), [&](uint16_t a, uint16_t b) { return weight[a] > weight[b]; });
    plan.mean.resize(n);
    for (size_t i = 0; i < n; ++i) plan.mean[i] = float_to_half(plan_mean(rows, use, plan.order[i]));
    return plan;
}

std::vector<QuadCode> allot_bits(const KeyLayout & layout, const std::vector<ChannelPlan> & plans,
                                 const std::vector<KeyFeedback> & feedback, const std::vector<const KeyRows *> & rows,
                                 size_t page) {
    struct Gain {
        double gain;
        int bits, quad; // the step from bits to bits + 1
    };
    const int quads = layout.head_dim / 4;
    std::vector<Gain> gains;
    for (int head = 0; head < layout.kv_heads; ++head) {
        for (int quad = 0; quad < quads; ++quad) {
            double weight = 0;
            for (int i = 0; i < 4; ++i) {
                const int channel = plans[head].order[4 * quad + i];
                weight +=
                    feedback[head].weight[channel] *
                    encoder_loops().moments(rows[head]->data() + channel * page_tokens, feedback[head].page(page)).variance;
            }
            for (int bits = 0; bits < most_bits; ++bits) {
                gains.push_back({weight * (distortion[bits] - distortion[bits + 1]), bits, head * quads + quad});
            }
        }
    }
    std::sort(gains.begin(), gains.end(), [](const Gain & a, const Gain & b) {
        if (a.gain != b.gain) return a.gain > b.gain;
        return a.bits != b.bits ? a.bits < b.bits : a.quad < b.quad;
    });
    std::vector<int> bits(static_cast<size_t>(layout.kv_heads * quads), 0);
    for (int i = 0; i < layout.quad_bits; ++i) bits[gains[i].quad] = std::max(bits[gains[i].quad], gains[i].bits + 1);
    std::vector<QuadCode> codes;
    codes.reserve(bits.size());
    for (const int b : bits) codes.push_back(code_of_bits(b));
    return codes;
}

namespace {

// One channel of a page on its way into codes.
struct ChannelCode {
    uint8_t scale = 0;
    int8_t mean = 0;
};

// The nearest level of a uniform code.
void encode_uniform_lane(QuadCode code, const float * x, uint8_t * levels) {
    const LevelGrid grid = level_grid(code);
    const float most = static_cast<float>(largest_level(code));
    for (int t = 0; t < page_tokens; ++t) {
        levels[t] = static_cast<uint8_t>(std::clamp(std::floor(x[t] / grid.step + grid.offset + 0.5f), 0.0f, most));
    }
}

// How much farther apart than for Gaussian samples the levels of a uniform code should be, so that outlying tokens are not cut off: what
// misses least of z, in units of its deviation.
float best_spread(QuadCode code, const float * z, const float * weight) {
    const LevelGrid grid = level_grid(code);
    float best = 1.0f, least = -1.0f;
    for (const float spread : {1.0f, 1.15f, 1.3f, 1.5f, 1.75f, 2.1f, 2.6f, 3.2f}) {
        float scaled[page_tokens];
        uint8_t levels[page_tokens];
        for (int t = 0; t < page_tokens; ++t) scaled[t] = z[t] / spread;
        encode_uniform_lane(code, scaled, levels);
        float miss = 0;
        for (int t = 0; t < page_tokens; ++t) {
            const float d = z[t] - spread * grid.step * (static_cast<float>(levels[t]) - grid.offset);
            miss += weight[t] * d * d;
        }
        if (least >= 0.0f && !(miss < least)) continue;
        least = miss;
        best = spread;
    }
    return best;
}

// A channel of a page on its way into a code, with the scale and the mean as they will be stored: levels that are chosen for other ones
// would share an error, and what all tokens of a page share does not average out.
class ChannelEncoder {
  public:
    // target: [128], what the channel should be; lane: its place in the quad at `codes`; again: which has a code of it. decoded: [128],
    // what it became, without the plan's mean. quad_levels: [128][4] of the quad, for uniform codes, which are packed when all four lanes
    // are there.
    ChannelEncoder(QuadCode code, const float * target, const float * weight, int lane, bool again, uint8_t * codes,
                   uint8_t * quad_levels, float * decoded)
        : code_(code), target_(target), weight_(weight), lane_(lane), again_(again), codes_(codes),
          quad_levels_(quad_levels), decoded_(decoded), moments_(loops_.moments(target, weight)),
          least_(std::fabs(moments_.mean) * (8.0f / 127.0f)), deviation_(std::max(std::sqrt(moments_.variance), least_)) {}

    ChannelCode encode() {
        ChannelCode out{log_scale_at_least(least_), 0};
        if (code_ != QuadCode::none && deviation_ > 0.0f) out.scale = uniform() ? encode_uniform() : encode_trellis();
        out.mean = static_cast<int8_t>(decode(log_scale_value(out.scale)));
        return out;
    }

  private:
    bool uniform() const { return code_ > QuadCode::trellis3; }
    // How much larger than the deviation an unbiased scale is, as a rule.
    float gain() const { return static_cast<float>(1.0 / (1.0 - distortion[static_cast<int>(code_)])); }
    uint8_t scale_code(float scale) const { return scale > least_ ? log_scale_code(scale) : log_scale_at_least(least_); }
    // The mean is stored in eighths of the scale, -127..127.
    static float mean_code(float mean, float scale) {
        return scale > 0.0f ? std::clamp(std::nearbyint(8.0f * mean / scale), -127.0f, 127.0f) : 0.0f;
    }

    // Fills decoded_; returns the mean that the levels do not express: without it the page would be shifted against the others.
    float decode(float stored) {
        const float mean = mean_code(loops_.mean_rest(target_, y_, stored, weight_), stored),
                    offset = 0.125f * stored * mean;
        for (int t = 0; t < page_tokens; ++t) decoded_[t] = stored * y_[t] + offset;
        return mean;
    }

    uint8_t encode_uniform() {
        float z[page_tokens];
        loops_.standardize(target_, moments_.mean, deviation_, weight_, z);
        const uint8_t first = scale_code(deviation_ * gain() * best_spread(code_, z, weight_));
        const uint8_t fitting = first > 0 ? search(first) : first;
        return fitting != first && fitting > 0 ? search(fitting) : fitting;
    }

    // One search for each spread; what misses least stays.
    uint8_t encode_trellis() {
        const size_t bytes = quad_bytes(code_, page_tokens);
        uint8_t best = 0, codes[4 * page_tokens];
        float y[page_tokens], least = -1.0f;
        for (const float spread : trellis_spreads) {
            const uint8_t first = scale_code(deviation_ * gain() * spread), scale = first > 0 ? search(first) : first;
            decode(log_scale_value(scale));
            const float miss = loops_.distance(target_, decoded_, weight_);
            if (least >= 0.0f && !(miss < least)) continue;
            least = miss;
            best = scale;
            std::copy_n(codes_, bytes, codes);
            std::copy_n(y_, page_tokens, y);
        }
        std::copy_n(codes, bytes, codes_);
        std::copy_n(y, page_tokens, y_);
        return best;
    }

    // Chooses the levels for such a scale; returns the one that then is nearest to an unbiased one.
    uint8_t search(uint8_t scale) {
        const float stored = log_scale_value(scale), unit = uniform() ? stored : stored / gain();
        float z[page_tokens];
        loops_.standardize(target_, 0.125f * stored * mean_code(moments_.mean, stored), unit, weight_, z);
        choose_levels(z);
        // Unbiased for dot products: <z, z> / <z, y>, unless the code misses altogether.
        loops_.standardize(target_, moments_.mean, unit, weight_, z);
        const float zz = loops_.dot(z, z, weight_), zy = loops_.dot(z, y_, weight_);
        return zy > 0.3f * zz && zz > 0.0f ? scale_code(unit * (zz / zy)) : scale;
    }

    void choose_levels(const float * z) {
        uint8_t levels[page_tokens];
        if (uniform()) {
            encode_uniform_lane(code_, z, levels);
        } else {
            float searched[page_tokens];
            for (int t = 0; t < page_tokens; ++t) searched[t] = std::min(weight_[t], most_searched);
            encode_trellis_lane(code_, z, page_tokens, lane_, codes_, levels, searched, again_);
        }
        const LevelGrid grid = level_grid(code_);
        for (int t = 0; t < page_tokens; ++t) {
            quad_levels_[4 * t + lane_] = levels[t];
            y_[t] = (static_cast<float>(levels[t]) - grid.offset) * grid.step;
        }
    }

    const EncoderLoops & loops_ = encoder_loops();
    const QuadCode code_;
    const float *target_, *weight_;
    const int lane_;
    const bool again_;
    uint8_t *codes_, *quad_levels_;
    float * decoded_;
    const Moments moments_;
    const float least_, deviation_; // least: with a smaller scale the mean could not be stored
    float y_[page_tokens] = {};     // what the levels stand for
};

// One head of one page while it is being coded.
class HeadEncoder {
  public:
    HeadEncoder(const ChannelPlan & plan, const KeyFeedback & feedback, const QuadCode * quads, const KeyRows & rows,
                const float * attention, uint8_t * codes, uint8_t * meta)
        : n_(plan.order.size()), plan_(plan), feedback_(feedback), quads_(quads), rows_(rows), attention_(attention),
          codes_(codes), meta_(meta), place_(n_), start_(n_ / 4 + 1), levels_(n_ * page_tokens), errors_(n_ * page_tokens),
          aimed_at_(n_ * page_tokens) {
        for (size_t i = 0; i < n_; ++i) place_[plan.order[i]] = i;
        for (size_t q = 0; q < n_ / 4; ++q) start_[q + 1] = start_[q] + quad_bytes(quads[q], page_tokens);
        std::fill_n(codes, start_[n_ / 4], uint8_t{0});
    }

    // Codes every channel in coding order; each makes good the errors of those before it.
    void code_in_order() {
        for (size_t c = 0; c < n_; ++c) {
            const size_t channel = feedback_.order[c];
            aim(channel);
            loops_.pull(target_, errors_.data(), &feedback_.carry[c * n_], feedback_.order.data(), c);
            hold_target();
            std::copy_n(target_, page_tokens, &aimed_at_[channel * page_tokens]);
            keep(channel, encode(channel, false));
        }
    }

    // Codes every channel once more, now against the errors of all others; the new codes stay where the queries' error falls. Where
    // what a channel should be has hardly moved since it was coded, its codes are as good as new ones.
    void refine() {
        for (const size_t channel : feedback_.order) {
            const size_t quad = place_[channel] / 4;
            if (quads_[quad] == QuadCode::none) continue;
            aim(channel);
            loops_.pull(target_, errors_.data(), &feedback_.pull[channel * n_], nullptr, n_);
            hold_target();
            const float before = miss_of_kept(channel);
            float * aimed_at = &aimed_at_[channel * page_tokens];
            if (loops_.distance(target_, aimed_at, attention_) < least_move * before) continue;
            std::copy_n(target_, page_tokens, aimed_at);
            uint8_t old_codes[4 * page_tokens], old_levels[4 * page_tokens];
            std::copy(codes_ + start_[quad], codes_ + start_[quad + 1], old_codes);
            std::copy_n(quad_levels(quad), 4 * page_tokens, old_levels);
            const ChannelCode coded = encode(channel, true);
            if (loops_.distance(target_, decoded_, attention_) < before) {
                keep(channel, coded);
            } else {
                std::copy(old_codes, old_codes + (start_[quad + 1] - start_[quad]), codes_ + start_[quad]);
                std::copy_n(old_levels, 4 * page_tokens, quad_levels(quad));
            }
        }
    }

    // Packs the uniform codes, whose lanes are all final now, then writes the widths.
    void finish() {
        for (size_t q = 0; q < n_ / 4; ++q) {
            if (quads_[q] > QuadCode::trellis3) pack_uniform(quads_[q], quad_levels(q), page_tokens, codes_ + start_[q]);
            uint8_t & pair = meta_[2 * n_ + q / 2];
            const unsigned code = static_cast<unsigned>(quads_[q]);
            pair = static_cast<uint8_t>(q % 2 ? pair | code << 4 : code);
        }
    }

  private:
    uint8_t * quad_levels(size_t quad) { return &levels_[quad * 4 * page_tokens]; }
    void aim(size_t channel) {
        loops_.aim(&rows_[channel * page_tokens], half_to_float(plan_.mean[place_[channel]]), attention_, wanted_);
        std::copy_n(wanted_, page_tokens, target_);
    }
    // Statistics that no queries gave, from a file that was forged, may carry errors on beyond all bounds.
    void hold_target() {
        for (int t = 0; t < page_tokens; ++t) target_[t] = std::fabs(target_[t]) < 1e9f ? target_[t] : wanted_[t];
    }
    // again: it has codes already.
    ChannelCode encode(size_t channel, bool again) {
        const size_t at = place_[channel], quad = at / 4;
        return ChannelEncoder(quads_[quad], target_, attention_, static_cast<int>(at % 4), again, codes_ + start_[quad],
                              quad_levels(quad), decoded_)
            .encode();
    }
    void keep(size_t channel, const ChannelCode & coded) {
        for (int t = 0; t < page_tokens; ++t)
            errors_[channel * page_tokens + t] = attention_[t] > 0.0f ? wanted_[t] - decoded_[t] : 0.0f;
        meta_[place_[channel]] = coded.scale;
        meta_[n_ + place_[channel]] = static_cast<uint8_t>(coded.mean);
    }
    // Squared distance of the codes kept so far to the target.
    float miss_of_kept(size_t channel) const {
        float kept[page_tokens];
        for (int t = 0; t < page_tokens; ++t) kept[t] = wanted_[t] - errors_[channel * page_tokens + t];
        return loops_.distance(target_, kept, attention_);
    }

    const EncoderLoops & loops_ = encoder_loops();
    const size_t n_;
    const ChannelPlan & plan_;
    const KeyFeedback & feedback_;
    const QuadCode * quads_;
    const KeyRows & rows_;
    const float * attention_;
    uint8_t *codes_, *meta_;
    std::vector<size_t> place_; // [natural channel]: its place in the plan
    std::vector<size_t> start_; // [quad]: where its codes begin
    std::vector<uint8_t> levels_;
    std::vector<float> errors_;                                              // [channel][128]: wanted minus decoded
    std::vector<float> aimed_at_;                                            // [channel][128]: the target it was coded for
    float wanted_[page_tokens], target_[page_tokens], decoded_[page_tokens]; // of the channel at hand
};

} // namespace

void encode_trellis_keys(const ChannelPlan & plan, const KeyFeedback & feedback, const QuadCode * quads,
                         const KeyRows & rows, const float * attention, uint8_t * codes, uint8_t * meta) {
    HeadEncoder encoder(plan, feedback, quads, rows, attention, codes, meta);
    encoder.code_in_order();
    for (int pass = 0; pass < refinements; ++pass) encoder.refine();
    encoder.finish();
}

} // namespace vidkv
