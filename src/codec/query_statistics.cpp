#include "codec/query_statistics.h"

#include <algorithm>
#include <cmath>

namespace vidkv {

namespace {

constexpr int stride = 4;       // every fourth token is looked at
constexpr double horizon = 512; // tokens after which a query counts 1/e

constexpr float largest = 1e6f; // of a query's elements: larger ones are taken for broken

bool is_finite(const float * x, size_t n) {
    return std::all_of(x, x + n, [](float v) { return std::isfinite(v); });
}

bool is_sane(const float * row, int n) {
    return std::all_of(row, row + n, [](float v) { return std::fabs(v) < largest; });
}

} // namespace

QueryStatistics::QueryStatistics(int kv_heads, int head_dim)
    : kv_heads_(kv_heads), head_dim_(head_dim), triangle_(static_cast<size_t>(head_dim) * (head_dim + 1) / 2),
      second_(triangle_ * kv_heads), mean_(static_cast<size_t>(head_dim) * kv_heads) {}

void QueryStatistics::observe(const float * q, int64_t tokens, int heads, int64_t token_stride, int64_t head_stride) {
    const float decay = static_cast<float>(std::exp(-stride / horizon));
    const int heads_a_group = heads / kv_heads_;
    for (int64_t t = 0; t < tokens; ++t) {
        if (seen_++ % stride != 0) continue;
        ++sampled_;
        for (float & x : second_) x *= decay;
        for (float & x : mean_) x *= decay;
        weight_ = weight_ * decay + heads_a_group;
        for (int head = 0; head < heads; ++head) {
            const float * row = q + t * token_stride + head * head_stride;
            if (!is_sane(row, head_dim_)) continue;
            float * out = &second_[static_cast<size_t>(head / heads_a_group) * triangle_];
            float * mean = &mean_[static_cast<size_t>(head / heads_a_group) * head_dim_];
            for (int i = 0; i < head_dim_; ++i) {
                mean[i] += row[i];
                for (int j = 0; j <= i; ++j) out[j] += row[i] * row[j];
                out += i + 1;
            }
        }
    }
}

double QueryStatistics::second(int head, int i, int j) const {
    if (i < j) std::swap(i, j);
    const size_t at = static_cast<size_t>(i) * (i + 1) / 2 + j;
    return weight_ > 0 ? static_cast<double>(second_[head * triangle_ + at]) / weight_ : 0;
}

double QueryStatistics::mean(int head, int i) const {
    return weight_ > 0 ? static_cast<double>(mean_[static_cast<size_t>(head) * head_dim_ + i]) / weight_ : 0;
}

void QueryStatistics::save(std::vector<uint8_t> & out) const {
    append_number(out, weight_);
    append_number(out, seen_);
    append_number(out, sampled_);
    append_bytes(out, second_.data(), second_.size() * sizeof(float));
    append_bytes(out, mean_.data(), mean_.size() * sizeof(float));
}

bool QueryStatistics::load(ByteReader & in) {
    weight_ = in.number<double>();
    seen_ = in.number<int64_t>();
    sampled_ = in.number<int64_t>();
    in.bytes(second_.data(), second_.size() * sizeof(float));
    in.bytes(mean_.data(), mean_.size() * sizeof(float));
    return in.ok() && std::isfinite(weight_) && is_finite(second_.data(), second_.size()) && is_finite(mean_.data(), mean_.size());
}

} // namespace vidkv
