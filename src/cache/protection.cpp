// Which tokens of a value store get more bits: the marked ones, or those that the observed queries attend to most.
#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>

#include "base/error.h"
#include "base/half.h"
#include "cache/store.h"
#include "codec/two_bit.h"

namespace vidkv {

namespace {

// log E[exp(scale q.k)] for q Gaussian with the head's statistics: scale mu.k + scale^2 / 2 k' C k, C the covariance. Keys of a
// page, f32 rows [head_dim] per token; the largest over the heads is the token's saliency.
class Saliency {
  public:
    Saliency(const QueryStatistics & queries, int head, int head_dim, double scale)
        : head_dim_(static_cast<size_t>(head_dim)), mean_(head_dim_), half_covariance_(head_dim_ * head_dim_) {
        for (size_t i = 0; i < head_dim_; ++i) mean_[i] = scale * queries.mean(head, static_cast<int>(i));
        for (size_t i = 0; i < head_dim_; ++i) {
            for (size_t j = 0; j < head_dim_; ++j) {
                const double second = queries.second(head, static_cast<int>(i), static_cast<int>(j));
                half_covariance_[i * head_dim_ + j] = 0.5 * (scale * scale * second - mean_[i] * mean_[j]);
            }
        }
    }

    double operator()(const uint16_t * key) const {
        std::vector<double> k(head_dim_);
        for (size_t i = 0; i < head_dim_; ++i) k[i] = sanitize(half_to_float(key[i]));
        double sum = 0;
        for (size_t i = 0; i < head_dim_; ++i) {
            double row = mean_[i];
            for (size_t j = 0; j < head_dim_; ++j) row += half_covariance_[i * head_dim_ + j] * k[j];
            sum += row * k[i];
        }
        return sum;
    }

  private:
    size_t head_dim_;
    std::vector<double> mean_, half_covariance_;
};

void mark(Page & page, int64_t token) { page.marked[token / 64] |= uint64_t{1} << (token % 64); }

} // namespace

vidkv_status Store::protect(int sequence, const int64_t * cells, int64_t n) {
    if (shape_.side != VIDKV_VALUES) return fail(VIDKV_E_ARGUMENT, "cells are protected in a value store");
    if (vidkv_status status = check_range(sequence, 0, 0)) return status;
    for (int64_t i = 0; i < n; ++i) {
        if (vidkv_status status = check_range(sequence, cells[i], 1)) return status;
    }
    PageTable & pages = sequences_[sequence].pages;
    for (int64_t i = 0; i < n; ++i) pages.own(cells[i] / page_tokens); // what may fail comes first
    if (n > 0) sequences_[sequence].host_marks = true;
    for (int64_t i = 0; i < n; ++i) mark(pages.edit(cells[i] / page_tokens), cells[i] % page_tokens);
    return VIDKV_OK;
}

vidkv_status Store::protect_by_queries(const Store & keys, float scale) {
    if (shape_.side != VIDKV_VALUES || keys.shape_.side != VIDKV_KEYS || keys.shape_.sequences != shape_.sequences ||
        keys.shape_.cells != shape_.cells) {
        return fail(VIDKV_E_ARGUMENT, "protection by queries needs the values and the keys of one layer");
    }
    if (!packs() || params_.protect <= 0.0f) return VIDKV_OK;
    for (int s = 0; s < shape_.sequences; ++s) mark_by_queries(s, due_pages(sequences_[s]), keys, scale);
    return VIDKV_OK;
}

void Store::mark_by_queries(int s, const std::vector<int64_t> & candidates, const Store & keys, float scale) {
    Sequence & sequence = sequences_[s];
    const Sequence & key_sequence = keys.sequences_[s];
    if (!packs() || params_.protect <= 0.0f || sequence.host_marks || !key_sequence.queries ||
        key_sequence.queries->empty())
        return;
    std::vector<int64_t> pages;
    for (const int64_t index : candidates) {
        const Page & page = sequence.pages[index];
        const bool marked = page.marked[0] || page.marked[1], open = page.state == PageState::open;
        if (open && !marked && key_sequence.pages[index].state == PageState::open) pages.push_back(index);
    }
    if (pages.empty()) return;
    std::vector<double> salient(pages.size() * page_tokens, -HUGE_VAL);
    for (int head = 0; head < keys.kv_heads(); ++head) {
        const Saliency saliency(*key_sequence.queries, head, keys.shape_.head_dim, scale);
        for (size_t i = 0; i < salient.size(); ++i) {
            const int64_t index = pages[i / page_tokens];
            const Page & page = key_sequence.pages[index];
            const size_t token = i % page_tokens;
            if (static_cast<int>(token) >= keys.rows_held(page)) continue; // not written
            const uint16_t * key =
                rows_of(page) + token * keys.channels() + static_cast<size_t>(head) * keys.shape_.head_dim;
            salient[i] = std::max(salient[i], saliency(key));
        }
    }
    std::vector<size_t> order;
    for (size_t i = 0; i < salient.size(); ++i) {
        const PageBits use = used_cells(sequence, pages[i / page_tokens]);
        if (use[i % page_tokens / 64] >> (i % 64) & 1u) order.push_back(i);
    }
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return salient[a] > salient[b]; });
    order.resize(static_cast<size_t>(std::lround(params_.protect * static_cast<float>(order.size()))));
    for (const int64_t index : pages) sequence.pages.own(index); // what may fail comes first
    for (const size_t i : order) mark(sequence.pages.edit(pages[i / page_tokens]), i % page_tokens);
}

} // namespace vidkv
