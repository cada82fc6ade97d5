#include "codec/trellis_keys.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/half.h"
#include "codec/affine2.h"
#include "codec/log_scale.h"
#include "codec/trellis.h"

namespace vidkv {

namespace {

// Mean squared error of unit-variance Gaussian samples at 0..6 bits (trellis up to 3, uniform above).
constexpr double distortion[] = {1.0, 0.292, 0.081, 0.0256, 0.01154, 0.0035, 0.00104};
constexpr int most_bits = 6;

// Widths are QuadCodes: none, trellis1..3, uniform4..6 are numbered by their bits.
constexpr QuadCode code_of_bits(int bits) { return static_cast<QuadCode>(bits); }

constexpr double damping = 0.01; // of the mean diagonal, so that directions no query looked at stay bounded

struct Moments {
    double mean = 0, variance = 0;
};

Moments moments(const float * x, const uint8_t * use) {
    double sum = 0, squares = 0;
    int count = 0;
    for (int t = 0; t < page_tokens; ++t) {
        if (!use[t]) continue;
        sum += x[t];
        squares += static_cast<double>(x[t]) * x[t];
        ++count;
    }
    if (count == 0) return {};
    const double mean = sum / count;
    return {mean, std::max(0.0, squares / count - mean * mean)};
}

// E[q q^T] of a head with damping; the identity where no query was seen.
std::vector<double> damped_second(const QueryStatistics * statistics, int head, int head_dim) {
    const size_t n = static_cast<size_t>(head_dim);
    std::vector<double> h(n * n);
    double diagonal = 0;
    if (statistics && !statistics->empty()) {
        for (int i = 0; i < head_dim; ++i) {
            for (int j = 0; j <= i; ++j) h[i * n + j] = h[j * n + i] = statistics->second(head, i, j);
            diagonal += h[i * n + i];
        }
    }
    const double added = diagonal > 0 ? damping * diagonal / head_dim : 1.0;
    for (size_t i = 0; i < n; ++i) h[i * n + i] += added;
    return h;
}

// Mean over pages of a channel's variance inside a page.
double page_variance(const std::vector<const KeyRows *> & rows, const std::vector<uint8_t> & use, int channel) {
    double sum = 0;
    for (size_t p = 0; p < rows.size(); ++p) {
        sum += moments(rows[p]->data() + channel * page_tokens, &use[p * page_tokens]).variance;
    }
    return sum / static_cast<double>(rows.size());
}

// The median over all pages: a mean would let one broken page move what is subtracted in the others.
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

} // namespace

KeyFeedback make_feedback(const QueryStatistics * statistics, int head, int head_dim, const std::vector<const KeyRows *> & rows,
                          const std::vector<uint8_t> & use) {
    const size_t n = static_cast<size_t>(head_dim);
    const std::vector<double> h = damped_second(statistics, head, head_dim);
    KeyFeedback feedback;
    std::vector<double> importance(n);
    for (size_t c = 0; c < n; ++c) importance[c] = h[c * n + c] * page_variance(rows, use, static_cast<int>(c));
    feedback.order.resize(n);
    std::iota(feedback.order.begin(), feedback.order.end(), uint16_t{0});
    std::stable_sort(feedback.order.begin(), feedback.order.end(),
                     [&](uint16_t a, uint16_t b) { return importance[a] < importance[b]; });
    // H in coding order = U U^T with U upper triangular, found from the last column back: the error of channels e costs
    // sum over c of U[c][c]^2 (e_c + sum over j < c of U[j][c] / U[c][c] e_j)^2.
    std::vector<double> u(n * n);
    for (size_t c = n; c-- > 0;) {
        for (size_t j = c + 1; j-- > 0;) {
            double sum = h[feedback.order[j] * n + feedback.order[c]];
            for (size_t k = c + 1; k < n; ++k) sum -= u[j * n + k] * u[c * n + k];
            u[j * n + c] = j == c ? std::sqrt(std::max(sum, 1e-30)) : sum / u[c * n + c];
        }
    }
    feedback.carry.resize(n * n);
    feedback.weight.resize(n);
    for (size_t c = 0; c < n; ++c) {
        feedback.weight[feedback.order[c]] = static_cast<float>(u[c * n + c] * u[c * n + c]);
        for (size_t j = 0; j < c; ++j) feedback.carry[c * n + j] = static_cast<float>(u[j * n + c] / u[c * n + c]);
    }
    return feedback;
}

ChannelPlan plan_trellis_keys(const KeyFeedback & feedback, const std::vector<const KeyRows *> & rows,
                              const std::vector<uint8_t> & use) {
    const size_t n = feedback.order.size();
    std::vector<double> weight(n);
    for (size_t c = 0; c < n; ++c) weight[c] = feedback.weight[c] * page_variance(rows, use, static_cast<int>(c));
    ChannelPlan plan;
    plan.order.resize(n);
    std::iota(plan.order.begin(), plan.order.end(), uint16_t{0});
    std::stable_sort(plan.order.begin(), plan.order.end(), [&](uint16_t a, uint16_t b) { return weight[a] > weight[b]; });
    for (const uint16_t channel : plan.order) plan.mean.push_back(float_to_half(plan_mean(rows, use, channel)));
    return plan;
}

std::vector<QuadCode> allot_bits(const KeyLayout & layout, const std::vector<ChannelPlan> & plans,
                                 const std::vector<KeyFeedback> & feedback, const std::vector<const KeyRows *> & rows,
                                 const uint8_t * use) {
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
                weight += feedback[head].weight[channel] * moments(rows[head]->data() + channel * page_tokens, use).variance;
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

// target: [128], what the channel should be; lane: of the quad at `codes`. decoded: [128], what it became, plan mean left out.
// quad_levels: [128][4] of the quad, for uniform codes, which are packed when all four lanes are there.
ChannelCode encode_channel(QuadCode code, const float * target, const uint8_t * use, int lane, uint8_t * codes,
                           uint8_t * quad_levels, float * decoded) {
    const Moments m = moments(target, use);
    const float mean = static_cast<float>(m.mean);
    // The mean is stored in eighths of the scale, -127..127.
    const float least = std::fabs(mean) * (8.0f / 127.0f), deviation = std::max(static_cast<float>(std::sqrt(m.variance)), least);
    float scale = least;
    float z[page_tokens], y[page_tokens] = {};
    if (code != QuadCode::none && deviation > 0.0f) {
        for (int t = 0; t < page_tokens; ++t) z[t] = use[t] ? (target[t] - mean) / deviation : 0.0f;
        uint8_t levels[page_tokens];
        if (code <= QuadCode::trellis3) encode_trellis_lane(code, z, page_tokens, lane, codes, levels);
        else encode_uniform_lane(code, z, levels);
        const LevelGrid grid = level_grid(code);
        float zz = 0, zy = 0;
        for (int t = 0; t < page_tokens; ++t) {
            quad_levels[4 * t + lane] = levels[t];
            y[t] = (static_cast<float>(levels[t]) - grid.offset) * grid.step;
            if (!use[t]) continue;
            zz += z[t] * z[t];
            zy += z[t] * y[t];
        }
        // Unbiased for dot products: <z, z> / <z, y>, unless the code misses altogether.
        scale = std::max(zy > 0.3f * zz && zz > 0.0f ? deviation * (zz / zy) : deviation, least);
    }
    ChannelCode out;
    out.scale = log_scale_code(scale);
    const float stored = log_scale_value(out.scale);
    out.mean = stored > 0.0f ? static_cast<int8_t>(std::clamp(std::nearbyint(8.0f * mean / stored), -127.0f, 127.0f)) : int8_t{0};
    const float offset = 0.125f * stored * static_cast<float>(out.mean);
    for (int t = 0; t < page_tokens; ++t) decoded[t] = stored * y[t] + offset;
    return out;
}

} // namespace

void encode_trellis_keys(const KeyLayout & layout, const ChannelPlan & plan, const KeyFeedback & feedback, const QuadCode * quads,
                         const KeyRows & rows, const uint8_t * use, uint8_t * codes, uint8_t * meta) {
    const size_t n = static_cast<size_t>(layout.head_dim);
    std::vector<int> place(n); // of a natural channel in the plan
    for (size_t i = 0; i < n; ++i) place[plan.order[i]] = static_cast<int>(i);
    std::vector<size_t> start(n / 4 + 1, 0);
    for (size_t q = 0; q < n / 4; ++q) start[q + 1] = start[q] + quad_bytes(quads[q], page_tokens);
    std::fill_n(codes, start[n / 4], uint8_t{0});
    std::vector<uint8_t> levels(n * page_tokens);
    std::vector<float> errors(n * page_tokens); // by coding order
    float target[page_tokens], decoded[page_tokens];
    for (size_t c = 0; c < n; ++c) {
        const int channel = feedback.order[c], at = place[channel], quad = at / 4;
        const float mean = half_to_float(plan.mean[at]);
        const float * x = rows.data() + channel * page_tokens;
        for (int t = 0; t < page_tokens; ++t) target[t] = use[t] ? x[t] - mean : 0.0f;
        for (size_t j = 0; j < c; ++j) {
            const float carry = feedback.carry[c * n + j];
            const float * error = &errors[j * page_tokens];
            for (int t = 0; t < page_tokens; ++t) target[t] += carry * error[t];
        }
        for (float & x_t : target) x_t = sanitize(x_t);
        const ChannelCode coded = encode_channel(quads[quad], target, use, at % 4, codes + start[quad],
                                                 &levels[static_cast<size_t>(quad) * 4 * page_tokens], decoded);
        for (int t = 0; t < page_tokens; ++t) errors[c * page_tokens + t] = use[t] ? x[t] - mean - decoded[t] : 0.0f;
        meta[at] = coded.scale;
        meta[n + at] = static_cast<uint8_t>(coded.mean);
    }
    for (size_t q = 0; q < n / 4; ++q) {
        if (quads[q] > QuadCode::trellis3) pack_uniform(quads[q], &levels[q * 4 * page_tokens], page_tokens, codes + start[q]);
        uint8_t & pair = meta[2 * n + q / 2];
        const unsigned code = static_cast<unsigned>(quads[q]);
        pair = static_cast<uint8_t>(q % 2 ? pair | code << 4 : code);
    }
}

} // namespace vidkv
