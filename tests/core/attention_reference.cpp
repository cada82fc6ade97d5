#include "core/attention_reference.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <numbers>

#include "base/half.h"
#include "codec/key_page.h"
#include "codec/value_page.h"

namespace vidkv::test {
namespace {

constexpr double unit = 0x1p-24; // unit roundoff of f32
constexpr double infinity = std::numeric_limits<double>::infinity();

double gamma(double n) { return n * unit / (1 - n * unit); }

// The orthonormal real DFT as real_dft.h describes it, [n][n].
const std::vector<double> & dft_basis(int n) {
    static std::map<int, std::vector<double>> bases;
    std::vector<double> & basis = bases[n];
    if (!basis.empty()) return basis;
    basis.resize(static_cast<size_t>(n) * n);
    for (int i = 0; i < n; ++i) {
        basis[i] = std::sqrt(1.0 / n);
        for (int k = 1; 2 * k < n; ++k) {
            const double angle = 2.0 * std::numbers::pi * (static_cast<int64_t>(k) * i % n) / n;
            basis[static_cast<size_t>(2 * k - 1) * n + i] = std::sqrt(2.0 / n) * std::cos(angle);
            basis[static_cast<size_t>(2 * k) * n + i] = std::sqrt(2.0 / n) * std::sin(angle);
        }
        if (n % 2 == 0) basis[static_cast<size_t>(n - 1) * n + i] = (i % 2 ? -1 : 1) * std::sqrt(1.0 / n);
    }
    return basis;
}

// What is to be read: one KV head of a sequence.
struct Head {
    const Store & store;
    int sequence, kv_head;
    int64_t cells;
    PageView view(int64_t page) const { return store.view(sequence, page, kv_head); }
};

void copy_halves(const uint16_t * rows, int64_t stride, int64_t count, int dim, double * out) {
    for (int64_t t = 0; t < count; ++t) {
        for (int c = 0; c < dim; ++c) out[t * dim + c] = half_to_float(rows[t * stride + c]);
    }
}

// Sealed keys as the kernels see them, in plan order: element = step * (level - offset) + center.
struct StoredKey {
    double value, step, page_step; // page_step: the channel's largest step in any group of the page
    double deviation, magnitude;   // |level - offset|; of the terms that make up the value
};
struct KeyRows {
    std::vector<double> natural;      // [cells][dim] of open pages and sink cells
    std::vector<StoredKey> stored;    // [cells][dim] of the others
    std::vector<char> sealed;         // [cells] stored counts
    std::vector<const Shift *> shift; // [cells] of those; null: it has not moved
    const Rope * rope = nullptr;
};

void read_key_page(const KeyLayout & layout, const ChannelPlan & plan, const KeyPage & page, int64_t count,
                   StoredKey * out) {
    const int dim = layout.head_dim;
    std::vector<float> a(dim), b(dim);
    std::vector<uint8_t> levels(4 * page_tokens);
    std::vector<double> page_step(dim);
    for (int group = 0; group < layout.groups(); ++group) {
        key_affine(layout, plan, page.meta, group, a.data(), b.data());
        for (int c = 0; c < dim; ++c) page_step[c] = std::max<double>(page_step[c], a[c]);
    }
    const uint8_t * codes = page.codes;
    for (int quad = 0; quad < dim / 4; ++quad) {
        const QuadCode code = key_quad_code(layout, page.meta, quad);
        unpack_quad(code, codes, page_tokens, levels.data());
        codes += quad_bytes(code, page_tokens);
        const bool paper = layout.codec == VIDKV_CODEC_PAPER;
        const double offset = paper ? largest_level(code) / 2.0 : level_grid(code).offset;
        for (int group = 0; group < layout.groups(); ++group) {
            key_affine(layout, plan, page.meta, group, a.data(), b.data());
            for (int t = group * layout.group; t < std::min<int64_t>((group + 1) * layout.group, count); ++t) {
                for (int c = 4 * quad; c < 4 * quad + 4; ++c) {
                    const double level = levels[4 * t + c % 4], step = a[c], base = b[c];
                    const double mean = plan.mean.empty() ? 0.0 : std::abs(half_to_float(plan.mean[c]));
                    out[t * dim + c] = {step * level + base, step, page_step[c], std::abs(level - offset),
                                        2 * (step * (level + offset) + std::abs(base) + mean)};
                }
            }
        }
    }
}

KeyRows read_keys(const Head & head) {
    const int dim = head.store.head_dim();
    KeyRows rows;
    rows.natural.assign(static_cast<size_t>(head.cells) * dim, 0.0);
    rows.stored.resize(rows.natural.size());
    rows.sealed.assign(static_cast<size_t>(head.cells), 0);
    rows.shift.resize(static_cast<size_t>(head.cells));
    const KeyLayout & layout = head.store.key_layout();
    for (int64_t first = 0; first < head.cells; first += page_tokens) {
        const PageView view = head.view(first / page_tokens);
        const int64_t count = std::min<int64_t>(page_tokens, head.cells - first);
        double * natural = &rows.natural[first * dim];
        copy_halves(view.rows, head.store.channels(), std::min<int64_t>(view.held, count), dim, natural);
        if (view.state != PageState::sealed) continue;
        read_key_page(layout, head.store.plan(head.sequence, head.kv_head), key_page(layout, view.page, head.kv_head),
                      count, &rows.stored[first * dim]);
        std::fill_n(&rows.sealed[first], count, 1);
        if (view.shifts) rows.rope = view.shifts->rope.get();
        for (int64_t t = 0; view.shifts && t < count; ++t) rows.shift[first + t] = view.shifts->of(static_cast<int>(t));
        const int64_t sinks = std::min<int64_t>(view.sink_count, count);
        std::fill_n(&rows.sealed[first], sinks, 0);
        copy_halves(view.sink_rows, head.store.channels(), sinks, dim, natural);
    }
    return rows;
}

// Values, and how far rounding a weight by 1 would move the sum: |element - middle of its levels|.
struct ValueRows {
    std::vector<double> value, deviation; // [cells][dim]
    std::vector<double> slot_scale; // [cells] what a weight is multiplied with before it is rounded; 0: it is not rounded
    std::vector<char> rotated;      // [cells] deviation is in rotated channels, in units of slot_scale
    // [cells] what lengths of a row's parts may sum up to beyond its own: of a page with a direction
    std::vector<double> apart;
};

double length_of(const std::vector<float> & x) { return std::sqrt(std::inner_product(x.begin(), x.end(), x.begin(), 0.0)); }

void read_value_page(const ValueLayout & layout, const ValuePage & page, int64_t first, int64_t count, ValueRows & rows) {
    const int dim = layout.head_dim;
    std::vector<float> tile(static_cast<size_t>(page_tokens) * dim), a(dim), b(dim), scale(page_tokens);
    decode_values(layout, page, tile.data());
    if (layout.codec == VIDKV_CODEC_TRELLIS) value_scales(layout, page, scale.data());
    std::vector<uint8_t> levels(static_cast<size_t>(page_tokens) * dim);
    if (layout.codec == VIDKV_CODEC_PAPER) {
        for (int g = 0; g < layout.groups(); ++g)
            unpack_value_group(layout, page, g, &levels[static_cast<size_t>(g * layout.group * dim)]);
    } else {
        const uint8_t * codes = page.codes;
        for (int quad = 0; quad < page_tokens / 4; ++quad) {
            const QuadCode code = layout.quad_code(quad, page.protected_units, page.narrow_quads);
            unpack_quad(code, codes, dim, &levels[static_cast<size_t>(quad * dim * 4)]);
            codes += quad_bytes(code, dim);
        }
    }
    std::vector<float> mean(dim), direction(dim), along(page_tokens);
    if (page.direction) {
        value_mean(layout, page, mean.data());
        value_direction(layout, page, direction.data(), along.data());
    }
    const double mean_length = length_of(mean), direction_length = length_of(direction);
    const auto tokens = slot_tokens(page);
    for (int slot = 0; slot < page_tokens; ++slot) {
        if (tokens[static_cast<size_t>(slot)] < count)
            rows.apart[first + tokens[static_cast<size_t>(slot)]] =
                2 * (mean_length + std::abs(along[slot]) * direction_length);
        const int token = tokens[static_cast<size_t>(slot)], group = slot / layout.group;
        if (token >= count) continue;
        const bool paper = layout.codec == VIDKV_CODEC_PAPER;
        if (paper) value_affine(layout, page, group, a.data(), b.data());
        const double middle = !paper ? 7.5 : layout.is_ternary(group, page.protected_units) ? 1.0 : 1.5;
        rows.slot_scale[first + token] = paper ? 1.0 : scale[slot];
        rows.rotated[first + token] = !paper;
        for (int c = 0; c < dim; ++c) {
            const double level = levels[static_cast<size_t>((slot / 4 * dim + c) * 4 + slot % 4)];
            rows.value[(first + token) * dim + c] = tile[token * dim + c];
            rows.deviation[(first + token) * dim + c] = std::abs(level - middle) * (paper ? std::abs(a[c]) : 1.0);
        }
    }
}

ValueRows read_values(const Head & head) {
    const int dim = head.store.head_dim();
    const size_t cells = static_cast<size_t>(head.cells);
    ValueRows rows{std::vector<double>(cells * dim), std::vector<double>(cells * dim), std::vector<double>(cells),
                   std::vector<char>(cells), std::vector<double>(cells)};
    for (int64_t first = 0; first < head.cells; first += page_tokens) {
        const PageView view = head.view(first / page_tokens);
        const int64_t count = std::min<int64_t>(page_tokens, head.cells - first);
        double * out = &rows.value[first * dim];
        copy_halves(view.rows, head.store.channels(), std::min<int64_t>(view.held, count), dim, out);
        if (view.state != PageState::sealed) continue;
        const ValueLayout & layout = head.store.value_layout();
        read_value_page(layout, value_page(layout, view.page, head.kv_head), first, count, rows);
        const int64_t sinks = std::min<int64_t>(view.sink_count, count);
        copy_halves(view.sink_rows, head.store.channels(), sinks, dim, out);
        std::fill_n(&rows.slot_scale[first], sinks, 0.0);
        std::fill_n(&rows.rotated[first], sinks, 0);
    }
    return rows;
}

// A query in the stored keys' domain: [dim] exact, and how far an f32 transform may be off.
struct PlannedQuery {
    std::vector<double> q, error;
};

// A query as keys that have moved meet it: turned back, by exact angles.
PlannedQuery turned_back(const float * q, int dim, const Shift * shift, const Rope * rope) {
    PlannedQuery out{std::vector<double>(q, q + dim), std::vector<double>(dim, 0.0)};
    for (int i = 0; shift && i < rope->pairs(); ++i) {
        const int a = rope->first + i * rope->step, b = a + rope->apart;
        const double angle = shift->positions * rope->angles[i], x = q[a], y = q[b];
        out.q[a] = shift->gain * (x * std::cos(angle) + y * std::sin(angle));
        out.q[b] = shift->gain * (y * std::cos(angle) - x * std::sin(angle));
        out.error[a] = out.error[b] = 4 * unit * shift->gain * (std::abs(x) + std::abs(y));
    }
    return out;
}

PlannedQuery plan_exactly(const KeyLayout & layout, const ChannelPlan & plan, const PlannedQuery & query) {
    PlannedQuery out{std::vector<double>(layout.head_dim), std::vector<double>(layout.head_dim, 0.0)};
    const int n = layout.narrow, kept = layout.head_dim - n;
    for (int j = 0; j < kept; ++j) {
        out.q[j] = query.q[plan.order[j]];
        out.error[j] = query.error[plan.order[j]];
    }
    const std::vector<double> & basis = dft_basis(std::max(n, 1));
    for (int k = 0; k < n; ++k) {
        double magnitude = 0;
        for (int i = 0; i < n; ++i) {
            const double factor = basis[static_cast<size_t>(k) * n + i], term = factor * query.q[plan.order[kept + i]];
            out.q[kept + k] += term;
            out.error[kept + k] += std::abs(factor) * query.error[plan.order[kept + i]];
            magnitude += std::abs(term);
        }
        out.error[kept + k] += gamma(n + 2) * magnitude;
    }
    return out;
}

double alibi_slope(int head, int heads, double max_bias) {
    if (max_bias == 0) return 1;
    const int power = 1 << static_cast<int>(std::floor(std::log2(heads)));
    if (head < power) return std::pow(2.0, -max_bias / power * (head + 1));
    return std::pow(2.0, -max_bias / 2 / power * (2 * (head - power) + 1));
}

struct Score {
    double value = -infinity; // -inf: hidden
    double error = 0;
};

class Row {
  public:
    Row(const vidkv_attention_args & args, int64_t token, int head) : args_(args), token_(token), head_(head) {}

    Score score(double dot, double dot_error, int64_t cell) const {
        double bias = args_.mask ? half_to_float(args_.mask[token_ * args_.mask_stride + cell]) : 0.0;
        if (bias == -infinity || (args_.causal && cell > args_.cells - args_.tokens + token_)) return {};
        bias *= alibi_slope(head_, args_.heads, args_.max_bias);
        Score s{args_.scale * dot, std::abs(args_.scale) * dot_error + 6 * unit * std::abs(args_.scale * dot)};
        if (args_.softcap != 0) {
            s.value = args_.softcap * std::tanh(s.value / args_.softcap);
            s.error += 12 * unit * args_.softcap;
        }
        s.error += (2 * args_.heads + 6) * unit * std::abs(bias) + unit * std::abs(s.value + bias);
        s.value += bias;
        return s;
    }
    const float * q() const { return args_.q + token_ * args_.q_token_stride + head_ * args_.q_head_stride; }

  private:
    const vidkv_attention_args & args_;
    int64_t token_;
    int head_;
};

// A dot product and how far it may be off.
struct Dot {
    double value = 0, error = 0;
};

// Factors q * step are rounded to 1/127 of the largest one in the page.
Dot stored_dot(const PlannedQuery & planned, const StoredKey * key, int dim) {
    Dot dot;
    double largest = 0, deviation = 0, magnitude = 0;
    for (int c = 0; c < dim; ++c) {
        dot.value += planned.q[c] * key[c].value;
        largest = std::max(largest, (std::abs(planned.q[c]) + planned.error[c]) * key[c].page_step);
        deviation += key[c].step != 0 ? key[c].deviation : 0.0;
        magnitude += (std::abs(planned.q[c]) + planned.error[c]) * key[c].magnitude;
        dot.error += planned.error[c] * std::abs(key[c].value);
    }
    dot.error += largest / 254 * (1 + 8 * unit) * deviation + gamma(dim + 24) * magnitude;
    return dot;
}

Dot open_dot(const float * q, const double * key, int dim) {
    Dot dot;
    double magnitude = 0;
    for (int c = 0; c < dim; ++c) {
        dot.value += q[c] * key[c];
        magnitude += std::abs(q[c] * key[c]);
    }
    dot.error = gamma(dim + 2) * magnitude;
    return dot;
}

std::vector<Score> score_row(const Row & row, const KeyRows & rows, const KeyLayout & layout, const ChannelPlan * plan,
                             int64_t cells, int dim) {
    std::vector<Score> scores(static_cast<size_t>(cells));
    std::map<const Shift *, PlannedQuery> planned;
    for (int64_t cell = 0; cell < cells; ++cell) {
        const Shift * shift = rows.shift[cell];
        if (rows.sealed[cell] && !planned.contains(shift))
            planned[shift] = plan_exactly(layout, *plan, turned_back(row.q(), dim, shift, rows.rope));
        const Dot dot = rows.sealed[cell] ? stored_dot(planned[shift], &rows.stored[cell * dim], dim)
                                          : open_dot(row.q(), &rows.natural[cell * dim], dim);
        scores[cell] = row.score(dot.value, dot.error, cell);
    }
    return scores;
}

// Relative error of a softmax weight and of the sums, without the scores' own.
double summation_error(int64_t cells) {
    const int64_t touched = cells / page_tokens + 2;
    const double pages = static_cast<double>(touched), chunks = 128, exponentials = 2 * (4 * 96 + 48);
    return (4 * (pages + 2) + exponentials + static_cast<double>(cells) + 2 * pages + chunks + 8) * unit;
}

// What rounding the weights of one page moves the sum by, at most: bound[c] in units of the total.
void add_rounding(const ValueRows & values, const std::vector<double> & weight, int64_t first, int64_t end, int dim,
                  std::vector<double> & bound) {
    double largest = 0;
    for (int64_t cell = first; cell < end; ++cell) largest = std::max(largest, weight[cell] * values.slot_scale[cell]);
    double rotated_squares = 0;
    for (int c = 0; c < dim; ++c) {
        double natural = 0, rotated = 0;
        for (int64_t cell = first; cell < end; ++cell) {
            if (weight[cell] == 0 || values.slot_scale[cell] == 0) continue;
            (values.rotated[cell] ? rotated : natural) += values.deviation[cell * dim + c];
        }
        bound[c] += largest / 254 * natural;
        rotated_squares += rotated * rotated;
    }
    for (int c = 0; c < dim; ++c) bound[c] += largest / 254 * std::sqrt(rotated_squares); // a rotation keeps lengths
}

// Softmax and weighted sum of one row, with their bound.
void weigh(const std::vector<Score> & scores, const float * sink, const ValueRows & values, int dim, double summation,
           double * out, double * bound) {
    const int64_t cells = static_cast<int64_t>(scores.size());
    double maximum = sink ? *sink : -infinity, score_error = 0, visible = 0;
    for (const Score & s : scores) {
        if (s.value == -infinity) continue;
        maximum = std::max(maximum, s.value);
        score_error = std::max(score_error, s.error);
        ++visible;
    }
    if (visible == 0) return;
    std::vector<double> weight(scores.size()), rounding(static_cast<size_t>(dim));
    double total = sink ? std::exp(*sink - maximum) : 0.0;
    for (int64_t cell = 0; cell < cells; ++cell) total += weight[cell] = std::exp(scores[cell].value - maximum);
    const double relative = std::expm1(2 * (score_error + summation + gamma(dim + 16)));
    for (int64_t cell = 0; cell < cells; ++cell) {
        if (scores[cell].value == -infinity) continue;
        double length = 0; // the rotated domain mixes the errors of a token's channels
        for (int c = 0; c < dim; ++c) length += values.value[cell * dim + c] * values.value[cell * dim + c];
        length = std::sqrt(length);
        for (int c = 0; c < dim; ++c) {
            const double value = values.value[cell * dim + c];
            const double magnitude = values.rotated[cell] ? length + values.apart[cell] : std::abs(value);
            out[c] += weight[cell] / total * value;
            bound[c] += (relative * weight[cell] / total + std::exp(-78.0)) * magnitude;
        }
    }
    for (int64_t first = 0; first < cells; first += page_tokens) {
        add_rounding(values, weight, first, std::min(first + page_tokens, cells), dim, rounding);
    }
    for (int c = 0; c < dim; ++c) bound[c] += rounding[c] / total * (1 + relative);
}

} // namespace

Reference reference_attention(const Store & keys, const Store & values, const vidkv_attention_args & args) {
    const int dim = keys.head_dim(), value_dim = values.head_dim(), ratio = args.heads / keys.kv_heads();
    const double summation = summation_error(args.cells);
    Reference result;
    result.out.assign(static_cast<size_t>(args.tokens) * args.heads * value_dim, 0.0);
    result.bound = result.out;
    for (int kv_head = 0; kv_head < keys.kv_heads(); ++kv_head) {
        const KeyRows key_rows = read_keys({keys, args.sequence, kv_head, args.cells});
        const ValueRows value_rows = read_values({values, args.value_sequence, kv_head, args.cells});
        const bool any_sealed = std::ranges::count(key_rows.sealed, 1) > 0;
        for (int64_t i = 0; i < args.tokens * ratio; ++i) {
            const int64_t token = i / ratio;
            const int head = kv_head * ratio + static_cast<int>(i % ratio);
            const Row row(args, token, head);
            const ChannelPlan * plan = any_sealed ? &keys.plan(args.sequence, kv_head) : nullptr;
            const size_t at = static_cast<size_t>(token * args.heads + head) * value_dim;
            weigh(score_row(row, key_rows, keys.key_layout(), plan, args.cells, dim),
                  args.sinks ? args.sinks + head : nullptr, value_rows, value_dim, summation, &result.out[at],
                  &result.bound[at]);
        }
    }
    return result;
}

} // namespace vidkv::test
