#include "core/attention_reference.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numbers>

#include "base/half.h"
#include "codec/key_codec.h"
#include "codec/value_codec.h"

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

// The keys of one KV head in natural channel order, and what the score's error bound needs.
struct KeyRows {
    std::vector<double> key;       // [cells][dim]
    std::vector<double> stored;    // [cells][dim] as the kernels see it: plan order, DFT coefficients, if transformed
    std::vector<char> transformed; // [cells] sealed and not a sink cell
};

struct Head {
    const Store & store;
    int sequence, kv_head;
    int64_t cells;
};

void copy_halves(const uint16_t * rows, int64_t stride, int count, int dim, int64_t limit, double * out) {
    for (int t = 0; t < std::min<int64_t>(count, limit); ++t) {
        for (int c = 0; c < dim; ++c) out[t * dim + c] = half_to_float(rows[t * stride + c]);
    }
}

KeyRows read_keys(const Head & head) {
    const int dim = head.store.head_dim(), group_size = head.store.group_size();
    KeyRows rows;
    rows.key.assign(static_cast<size_t>(head.cells) * dim, 0.0);
    rows.stored = rows.key;
    rows.transformed.assign(static_cast<size_t>(head.cells), 0);
    const KeyLayout & layout = head.store.key_layout();
    const std::vector<double> & basis = dft_basis(std::max(layout.narrow, 1));
    std::vector<float> tile(static_cast<size_t>(dim) * group_size);
    for (int64_t first = 0; first < head.cells; first += group_size) {
        const GroupView view = head.store.view(head.sequence, first / group_size, head.kv_head);
        const int64_t left = head.cells - first;
        double * key = &rows.key[first * dim];
        if (view.state == GroupState::open) copy_halves(view.rows, head.store.channels(), group_size, dim, left, key);
        if (view.state != GroupState::sealed) continue;
        decode_keys(layout, view.block, tile.data());
        const ChannelPlan & plan = head.store.plan(head.sequence, head.kv_head);
        for (int64_t t = 0; t < std::min<int64_t>(group_size, left); ++t) {
            if (t < view.sink_count) continue;
            rows.transformed[first + t] = 1;
            for (int j = 0; j < dim; ++j) rows.stored[(first + t) * dim + j] = tile[j * group_size + t];
            for (int j = 0; j < layout.wide; ++j) key[t * dim + plan.order[j]] = tile[j * group_size + t];
            for (int i = 0; i < layout.narrow; ++i) {
                double x = 0;
                for (int k = 0; k < layout.narrow; ++k) {
                    x += basis[static_cast<size_t>(k) * layout.narrow + i] * tile[(layout.wide + k) * group_size + t];
                }
                key[t * dim + plan.order[layout.wide + i]] = x;
            }
        }
        copy_halves(view.sink_rows, head.store.channels(), view.sink_count, dim, left, key);
    }
    return rows;
}

std::vector<double> read_values(const Head & head) {
    const int dim = head.store.head_dim(), group_size = head.store.group_size();
    std::vector<double> rows(static_cast<size_t>(head.cells) * dim, 0.0);
    std::vector<float> tile(static_cast<size_t>(dim) * group_size);
    for (int64_t first = 0; first < head.cells; first += group_size) {
        const GroupView view = head.store.view(head.sequence, first / group_size, head.kv_head);
        const int64_t left = head.cells - first;
        double * out = &rows[first * dim];
        if (view.state == GroupState::open) copy_halves(view.rows, head.store.channels(), group_size, dim, left, out);
        if (view.state != GroupState::sealed) continue;
        decode_values(head.store.value_layout(), view.block, tile.data());
        std::copy_n(tile.data(), std::min<int64_t>(group_size, left) * dim, out);
        copy_halves(view.sink_rows, head.store.channels(), view.sink_count, dim, left, out);
    }
    return rows;
}

// A query in the stored keys' domain: [dim] exact, and how far an f32 transform may be off.
struct PlannedQuery {
    std::vector<double> q, error;
};

PlannedQuery plan_exactly(const KeyLayout & layout, const ChannelPlan & plan, const float * q) {
    PlannedQuery out{std::vector<double>(layout.head_dim), std::vector<double>(layout.head_dim, 0.0)};
    for (int j = 0; j < layout.wide; ++j) out.q[j] = q[plan.order[j]];
    const int n = layout.narrow;
    const std::vector<double> & basis = dft_basis(std::max(n, 1));
    for (int k = 0; k < n; ++k) {
        double magnitude = 0;
        for (int i = 0; i < n; ++i) {
            const double term = basis[static_cast<size_t>(k) * n + i] * q[plan.order[layout.wide + i]];
            out.q[layout.wide + k] += term;
            magnitude += std::abs(term);
        }
        out.error[layout.wide + k] = gamma(n + 2) * magnitude;
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
        Score s{args_.scale * dot, std::abs(args_.scale) * dot_error + 3 * unit * std::abs(args_.scale * dot)};
        if (args_.softcap != 0) {
            s.value = args_.softcap * std::tanh(s.value / args_.softcap);
            s.error += 12 * unit * args_.softcap;
        }
        s.error += (2 * args_.heads + 4) * unit * std::abs(bias) + unit * std::abs(s.value + bias);
        s.value += bias;
        return s;
    }
    const float * q() const { return args_.q + token_ * args_.q_token_stride + head_ * args_.q_head_stride; }

  private:
    const vidkv_attention_args & args_;
    int64_t token_;
    int head_;
};

std::vector<Score> score_row(const Row & row, const KeyRows & rows, const PlannedQuery & planned, int64_t cells, int dim) {
    std::vector<Score> scores(static_cast<size_t>(cells));
    for (int64_t cell = 0; cell < cells; ++cell) {
        double dot = 0, magnitude = 0, query_error = 0;
        for (int c = 0; c < dim; ++c) {
            dot += row.q()[c] * rows.key[cell * dim + c];
            if (rows.transformed[cell]) {
                const double stored = std::abs(rows.stored[cell * dim + c]);
                magnitude += (std::abs(planned.q[c]) + planned.error[c]) * stored;
                query_error += planned.error[c] * stored;
            } else {
                magnitude += std::abs(row.q()[c] * rows.key[cell * dim + c]);
            }
        }
        scores[cell] = row.score(dot, gamma(dim) * magnitude + query_error, cell);
    }
    return scores;
}

// Relative error of a softmax weight and of the sums, without the scores' own.
double summation_error(const Store & store, int64_t cells) {
    const double tiles = static_cast<double>(cells / store.group_size() + 2), chunks = 128, range = 2 * 88;
    return (4 * (tiles + 2) + range + static_cast<double>(cells) + 2 * tiles + chunks + 8) * unit;
}

// Softmax and weighted sum of one row, with their bound.
void weigh(const std::vector<Score> & scores, const float * sink, const std::vector<double> & values, int dim,
           double summation, double * out, double * bound) {
    double maximum = sink ? *sink : -infinity, score_error = 0, visible = 0;
    for (const Score & s : scores) {
        if (s.value == -infinity) continue;
        maximum = std::max(maximum, s.value);
        score_error = std::max(score_error, s.error);
        ++visible;
    }
    if (visible == 0) return;
    double total = sink ? std::exp(*sink - maximum) : 0.0;
    for (const Score & s : scores) total += std::exp(s.value - maximum);
    const double relative = std::expm1(2 * (score_error + summation));
    for (size_t cell = 0; cell < scores.size(); ++cell) {
        if (scores[cell].value == -infinity) continue;
        const double share = std::exp(scores[cell].value - maximum) / total;
        for (int c = 0; c < dim; ++c) {
            const double value = values[cell * dim + c];
            out[c] += share * value;
            bound[c] += (relative * share + std::exp(-87.0)) * std::abs(value);
        }
    }
}

} // namespace

Reference reference_attention(const Store & keys, const Store & values, const vidkv_attention_args & args) {
    const int dim = keys.head_dim(), value_dim = values.head_dim(), ratio = args.heads / keys.kv_heads();
    const double summation = summation_error(keys, args.cells);
    Reference result;
    result.out.assign(static_cast<size_t>(args.tokens) * args.heads * value_dim, 0.0);
    result.bound = result.out;
    for (int kv_head = 0; kv_head < keys.kv_heads(); ++kv_head) {
        const KeyRows key_rows = read_keys({keys, args.sequence, kv_head, args.cells});
        const std::vector<double> value_rows = read_values({values, args.value_sequence, kv_head, args.cells});
        const bool any_transformed = std::ranges::count(key_rows.transformed, 1) > 0;
        for (int64_t i = 0; i < args.tokens * ratio; ++i) {
            const int64_t token = i / ratio;
            const int head = kv_head * ratio + static_cast<int>(i % ratio);
            const Row row(args, token, head);
            PlannedQuery planned;
            if (any_transformed) planned = plan_exactly(keys.key_layout(), keys.plan(args.sequence, kv_head), row.q());
            const size_t at = static_cast<size_t>(token * args.heads + head) * value_dim;
            weigh(score_row(row, key_rows, planned, args.cells, dim), args.sinks ? args.sinks + head : nullptr, value_rows,
                  value_dim, summation, &result.out[at], &result.bound[at]);
        }
    }
    return result;
}

} // namespace vidkv::test
