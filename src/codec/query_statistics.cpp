#include "codec/query_statistics.h"

#include <algorithm>
#include <cmath>

namespace vidkv {

namespace {

// A query counts 1/e after 300 tokens: exp(-1/300) and exp(-4/300), the same on every machine.
constexpr float decay_of_one = 0x1.fe4bd2p-1f, decay_of_four = 0x1.f937f8p-1f;
constexpr int64_t small_batch = 8; // a batch of at most so many tokens is decoding: every fourth token is observed
constexpr int stride = 4;

constexpr float largest = 1e6f; // a query with a larger element is taken for broken

constexpr int64_t most = int64_t{1} << 62; // queries that a file may say were seen
constexpr float most_sum = 1e30f;

bool is_bounded(const float * x, size_t n) {
    return std::all_of(x, x + n, [](float v) { return std::fabs(v) < most_sum; });
}

bool is_sane(const float * q, int heads, int64_t head_stride, int n) {
    for (int head = 0; head < heads; ++head) {
        const float * row = q + head * head_stride;
        if (!std::all_of(row, row + n, [](float v) { return std::fabs(v) < largest; })) return false;
    }
    return true;
}

} // namespace

QueryStatistics::QueryStatistics(int kv_heads, int head_dim)
    : kv_heads_(kv_heads), head_dim_(head_dim), triangle_(static_cast<size_t>(head_dim) * (head_dim + 1) / 2),
      second_(triangle_ * kv_heads), mean_(static_cast<size_t>(head_dim) * kv_heads) {}

void QueryStatistics::observe(const float * q, int64_t tokens, int heads, int64_t token_stride, int64_t head_stride) {
    const int step = tokens <= small_batch ? stride : 1;
    const float decay = step == stride ? decay_of_four : decay_of_one;
    const int heads_per_kv_head = heads / kv_heads_;
    for (int64_t t = 0; t < tokens; ++t) {
        if (seen_++ % step != 0 || !is_sane(q + t * token_stride, heads, head_stride, head_dim_)) continue;
        ++sampled_;
        for (float & x : second_) x *= decay;
        for (float & x : mean_) x *= decay;
        weight_ = weight_ * decay + heads_per_kv_head;
        for (int head = 0; head < heads; ++head) {
            const float * row = q + t * token_stride + head * head_stride;
            float * out = &second_[static_cast<size_t>(head / heads_per_kv_head) * triangle_];
            float * mean = &mean_[static_cast<size_t>(head / heads_per_kv_head) * head_dim_];
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
    const bool counts = weight_ >= (sampled_ > 0 ? 1.0 : 0.0) && weight_ < 1e18 && sampled_ >= 0 && sampled_ <= seen_ && seen_ < most;
    return in.ok() && counts && is_bounded(second_.data(), second_.size()) && is_bounded(mean_.data(), mean_.size());
}

} // namespace vidkv
