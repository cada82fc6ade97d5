// Copies of sequences and stores, and changes of capacity: codes move as they are.
#include <algorithm>
#include <cstring>
#include <string>

#include "base/error.h"
#include "cache/store.h"

namespace vidkv {

Store::Sequence Store::copy_of(const Sequence & source) const {
    Sequence copy;
    copy.plans = source.plans;
    copy.writes = source.writes;
    copy.host_marks = source.host_marks;
    copy.host_begins = source.host_begins;
    if (source.queries) copy.queries = std::make_unique<QueryStatistics>(*source.queries);
    copy.pages.resize(source.pages.size());
    for (size_t i = 0; i < source.pages.size(); ++i) {
        const Page & page = source.pages[i];
        Page & target = copy.pages[i];
        target.written = page.written;
        target.marked = page.marked;
        target.last_write = page.last_write;
        target.bytes = page.bytes;
        target.state = page.state;
        target.released = page.released;
        target.begins = page.begins;
        if (page.sink_rows) {
            target.sink_rows = std::make_unique<uint16_t[]>(sink_bytes() / 2);
            std::memcpy(target.sink_rows.get(), page.sink_rows.get(), sink_bytes());
        }
        if (page.state == PageState::empty) continue;
        target.data = make_page(page.bytes);
        std::memcpy(target.data.get(), page.data.get(), page.bytes);
    }
    recount(copy);
    return copy;
}

vidkv_status Store::copy_sequence(int from, int to) {
    if (vidkv_status status = check_range(from, 0, 0)) return status;
    if (vidkv_status status = check_range(to, 0, 0)) return status;
    if (from != to) sequences_[to] = copy_of(sequences_[from]);
    return VIDKV_OK;
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
    for (Sequence & sequence : sequences_) sequence.pages.reserve(static_cast<size_t>(pages));
    std::vector<Sequence> added(static_cast<size_t>(std::max(0, sequences - shape_.sequences)));
    for (Sequence & sequence : added) sequence.pages.resize(static_cast<size_t>(pages));
    if (sequences < shape_.sequences) sequences_.resize(static_cast<size_t>(sequences));
    for (Sequence & sequence : sequences_) {
        sequence.pages.resize(static_cast<size_t>(pages));
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
    copy->sequences_.clear();
    for (const Sequence & sequence : sequences_) copy->sequences_.push_back(copy_of(sequence));
    copy->keep_open_ = keep_open_;
    copy->pages_reopened_ = pages_reopened_;
    return copy;
}

const uint8_t * Store::sealed_page(int sequence, int64_t page, size_t & bytes) const {
    bytes = 0;
    if (sequence < 0 || sequence >= shape_.sequences || page < 0 || page >= pages_per_sequence_) return nullptr;
    const Page & p = sequences_[sequence].pages[page];
    if (p.state != PageState::sealed) return nullptr;
    bytes = p.bytes;
    return p.data.get();
}

vidkv_status Store::channel_plan(int sequence, int kv_head, uint16_t * order, uint16_t * means) const {
    if (vidkv_status status = check_range(sequence, 0, 0)) return status;
    const std::vector<ChannelPlan> & plans = sequences_[sequence].plans;
    if (plans.empty()) return fail(VIDKV_E_ARGUMENT, "the sequence has no channel plan: no page of keys is sealed");
    if (kv_head < 0 || kv_head >= kv_heads()) return fail(VIDKV_E_ARGUMENT, "no such KV head in the cache");
    const ChannelPlan & plan = plans[kv_head];
    if (!plan.mean.empty() && !means) return fail(VIDKV_E_ARGUMENT, "means must not be null: trellis keys have them");
    std::copy(plan.order.begin(), plan.order.end(), order);
    std::copy(plan.mean.begin(), plan.mean.end(), means);
    return VIDKV_OK;
}

vidkv_status Store::release_page(int sequence, int64_t index) {
    if (vidkv_status status = check_range(sequence, 0, 0)) return status;
    if (index < 0 || index >= pages_per_sequence_)
        return fail(VIDKV_E_ARGUMENT, "there is no page " + std::to_string(index));
    Page & page = sequences_[sequence].pages[index];
    if (page.state == PageState::empty) return fail(VIDKV_E_ARGUMENT, "page " + std::to_string(index) + " is empty");
    const PageBits marked = page.marked;
    page = Page();
    page.marked = marked;
    page.released = true;
    recount(sequences_[sequence]);
    return VIDKV_OK;
}

} // namespace vidkv
