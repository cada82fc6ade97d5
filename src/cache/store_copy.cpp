// Copies of sequences and stores, which share their pages, and changes of capacity: codes stay as they are.
#include <algorithm>
#include <string>
#include <utility>

#include "base/error.h"
#include "cache/store.h"

namespace vidkv {

vidkv_status Store::copy_sequence(int from, int to) {
    if (vidkv_status status = check_range(from, 0, 0)) return status;
    if (vidkv_status status = check_range(to, 0, 0)) return status;
    if (from != to) sequences_[to] = Sequence(sequences_[from]);
    return VIDKV_OK;
}

bool Store::shares_page(int a, int b, int64_t page) const {
    const Sequence &x = sequences_[a], &y = sequences_[b];
    const Page &p = x.pages[page], &q = y.pages[page];
    if (!p.bytes || p.bytes != q.bytes || p.state != q.state || p.shifts != q.shifts) return false;
    if (sinks_in(x, page) != sinks_in(y, page)) return false;
    return p.state != PageState::sealed || shape_.side == VIDKV_VALUES || x.plans[p.plan] == y.plans[q.plan];
}

vidkv_status Store::resize(int64_t cells, int sequences) {
    vidkv_store_shape wanted = shape_;
    wanted.cells = cells;
    wanted.sequences = sequences;
    if (vidkv_status status = check_store(wanted, params_)) return status;
    const int64_t pages = (cells + page_tokens - 1) / page_tokens;
    for (const Sequence & sequence : sequences_) {
        for (int64_t i = cells; i < shape_.cells; ++i) {
            const PageBits & written = sequence.pages[i / page_tokens].written;
            if (written[i % page_tokens / 64] >> (i % 64) & 1u) {
                return fail(VIDKV_E_ARGUMENT,
                            "cell " + std::to_string(i) + " is written: truncate before making a store smaller");
            }
        }
    }
    // All memory first; from then on nothing fails.
    sequences_.reserve(static_cast<size_t>(sequences));
    for (Sequence & sequence : sequences_) {
        sequence.pages.reserve(pages);
        if (pages < pages_per_sequence_) sequence.pages.prepare_clear_from(pages);
    }
    std::vector<Sequence> added(static_cast<size_t>(std::max(0, sequences - shape_.sequences)));
    for (Sequence & sequence : added) sequence.pages.resize(pages);
    if (sequences < shape_.sequences) sequences_.resize(static_cast<size_t>(sequences));
    for (Sequence & sequence : sequences_) {
        if (pages < pages_per_sequence_) sequence.pages.clear_from(pages);
        sequence.pages.resize(pages);
        recount(sequence);
    }
    for (Sequence & sequence : added) sequences_.push_back(std::move(sequence));
    shape_.cells = cells;
    shape_.sequences = sequences;
    pages_per_sequence_ = pages;
    return VIDKV_OK;
}

std::unique_ptr<Store> Store::clone() const {
    vidkv_store_shape shape = shape_;
    shape.sequences = 1; // the sequences follow as copies
    auto copy = std::make_unique<Store>(shape, params_);
    copy->shape_.sequences = shape_.sequences;
    copy->sequences_ = sequences_;
    copy->keep_open_ = keep_open_;
    copy->pages_reopened_ = pages_reopened_;
    return copy;
}

const uint8_t * Store::sealed_page(int sequence, int64_t page, size_t & bytes) const {
    bytes = 0;
    if (sequence < 0 || sequence >= shape_.sequences || page < 0 || page >= pages_per_sequence_) return nullptr;
    const Page & p = sequences_[sequence].pages[page];
    if (p.state != PageState::sealed || check_mapped(sequence, page, page + 1) != VIDKV_OK) return nullptr;
    bytes = p.bytes->size();
    return p.bytes->data();
}

vidkv_status Store::channel_plan(int sequence, int kv_head, uint16_t * order, uint16_t * means) const {
    if (vidkv_status status = check_range(sequence, 0, 0)) return status;
    const Sequence & seq = sequences_[sequence];
    if (seq.plans.empty()) return fail(VIDKV_E_ARGUMENT, "the sequence has no channel plan: no page of keys is sealed");
    if (kv_head < 0 || kv_head >= kv_heads()) return fail(VIDKV_E_ARGUMENT, "no such KV head in the cache");
    const ChannelPlan & plan = this->plan(sequence, kv_head, seq.plan);
    if (!plan.mean.empty() && !means) return fail(VIDKV_E_ARGUMENT, "means must not be null: trellis keys have them");
    std::copy(plan.order.begin(), plan.order.end(), order);
    std::copy(plan.mean.begin(), plan.mean.end(), means);
    return VIDKV_OK;
}

vidkv_status Store::release_page(int sequence, int64_t index) {
    if (vidkv_status status = check_range(sequence, 0, 0)) return status;
    if (index < 0 || index >= pages_per_sequence_)
        return fail(VIDKV_E_ARGUMENT, "there is no page " + std::to_string(index));
    Page & page = sequences_[sequence].pages.edit(index);
    if (page.state == PageState::empty) return fail(VIDKV_E_ARGUMENT, "page " + std::to_string(index) + " is empty");
    Page released;
    released.marked = page.marked;
    released.plan = page.plan;
    released.released = true;
    page = std::move(released);
    recount(sequences_[sequence]);
    return VIDKV_OK;
}

} // namespace vidkv
