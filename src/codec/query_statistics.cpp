#include "codec/query_statistics.h"

#include <algorithm>
#include <cmath>

#include "base/thread_pool.h"
#include "codec/encoder_loops.h"

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

// heads_per_kv_head rows of each token, one after the other; weight: what is left of a row's at the end of the batch.
struct QueryStatistics::Sample {
    const float * q;
    int64_t head_stride;
    int heads_per_kv_head;
    std::vector<int64_t> offsets; // [token], in q
    std::vector<float> weights;   // [token]

    size_t rows() const { return offsets.size() * static_cast<size_t>(heads_per_kv_head); }
    const float * row(size_t r, int kv_head) const {
        const size_t token = r / static_cast<size_t>(heads_per_kv_head), head = r % static_cast<size_t>(heads_per_kv_head);
        return q + offsets[token] + (int64_t{kv_head} * heads_per_kv_head + static_cast<int64_t>(head)) * head_stride;
    }
    float weight(size_t r) const { return weights[r / static_cast<size_t>(heads_per_kv_head)]; }
};

// Channels from .. to - 1 of one KV head.
void QueryStatistics::add(const Sample & sample, int kv_head, int from, int to, float decay) {
    constexpr size_t at_once = 256;
    const size_t rows = sample.rows(), channels = static_cast<size_t>(head_dim_);
    float * mean = &mean_[static_cast<size_t>(kv_head) * channels];
    float * second = &second_[static_cast<size_t>(kv_head) * triangle_];
    const float * row[at_once];
    float weight[at_once];
    for (size_t done = 0; done < rows; done += at_once) {
        const size_t some = std::min(at_once, rows - done);
        for (size_t r = 0; r < some; ++r) {
            row[r] = sample.row(done + r, kv_head);
            weight[r] = sample.weight(done + r);
        }
        encoder_loops().add_products(second, mean, from, to, done == 0 ? decay : 1.0f, row, weight, some);
    }
}

void QueryStatistics::observe(const float * q, int64_t tokens, int heads, int64_t token_stride, int64_t head_stride,
                              int threads) {
    constexpr int band = 64; // channels that a thread takes at once
    const int step = tokens <= small_batch ? stride : 1;
    Sample sample{q, head_stride, heads / kv_heads_, {}, {}};
    for (int64_t t = 0; t < tokens; ++t) {
        if ((seen_ + t) % step != 0 || !is_sane(q + t * token_stride, heads, head_stride, head_dim_)) continue;
        sample.offsets.push_back(t * token_stride);
    }
    sample.weights.resize(sample.offsets.size());
    if (sample.offsets.empty()) {
        seen_ += tokens;
        return;
    }
    const float step_decay = step == stride ? decay_of_four : decay_of_one;
    float weight = 1.0f;
    for (size_t i = sample.weights.size(); i-- > 0; weight *= step_decay) {
        sample.weights[i] = weight;
    }
    const float decay = sample.weights.front() * step_decay;
    const int bands = (head_dim_ + band - 1) / band;
    parallel_for(int64_t{kv_heads_} * bands, sample.rows() > static_cast<size_t>(small_batch) * 4 ? threads : 1,
                 [&](int64_t task) {
                     const int from = static_cast<int>(task % bands) * band;
                     add(sample, static_cast<int>(task / bands), from, std::min(from + band, head_dim_), decay);
                 });
    seen_ += tokens; // not before the loop above has begun: it may find no memory
    for (size_t i = 0; i < sample.weights.size(); ++i) weight_ = weight_ * step_decay + sample.heads_per_kv_head;
    sampled_ += static_cast<int64_t>(sample.weights.size());
}

void QueryStatistics::count(const float * q, int64_t tokens, int heads, int64_t token_stride, int64_t head_stride) {
    Sample sample{q, head_stride, heads / kv_heads_, {0}, {1.0f}};
    for (int64_t t = 0; t < tokens; ++t) { // one by one: sums depend on which rows are added together
        if (!is_sane(q + t * token_stride, heads, head_stride, head_dim_)) continue;
        sample.offsets[0] = t * token_stride;
        for (int kv_head = 0; kv_head < kv_heads_; ++kv_head) add(sample, kv_head, 0, head_dim_, 1.0f);
        weight_ += sample.heads_per_kv_head;
        ++sampled_;
    }
    seen_ += tokens;
}

void QueryStatistics::begin_with(const QueryStatistics & other, int tokens) {
    const double factor = other.sampled_ > 0 ? static_cast<double>(tokens) / static_cast<double>(other.sampled_) : 0;
    for (size_t i = 0; i < second_.size(); ++i) second_[i] = static_cast<float>(other.second_[i] * factor);
    for (size_t i = 0; i < mean_.size(); ++i) mean_[i] = static_cast<float>(other.mean_[i] * factor);
    weight_ = other.weight_ * factor;
    sampled_ = seen_ = other.sampled_ > 0 ? tokens : 0;
}

void QueryStatistics::second(int head, double * out) const {
    const size_t n = static_cast<size_t>(head_dim_);
    const float * from = &second_[static_cast<size_t>(head) * triangle_];
    const double factor = weight_ > 0 ? 1.0 / weight_ : 0.0;
    for (size_t i = 0; i < n; ++i) {
        for (size_t j = 0; j <= i; ++j) out[i * n + j] = out[j * n + i] = factor * static_cast<double>(*from++);
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
    const bool counts =
        weight_ >= (sampled_ > 0 ? 1.0 : 0.0) && weight_ < 1e18 && sampled_ >= 0 && sampled_ <= seen_ && seen_ < most;
    return in.ok() && counts && is_bounded(second_.data(), second_.size()) && is_bounded(mean_.data(), mean_.size());
}

} // namespace vidkv
