// The pages of several sequences as one list: those that copies of a sequence still share stand in it once.
#pragma once

#include <span>
#include <vector>

#include "attention/page_source.h"
#include "attention/store_pages.h"

namespace vidkv {

class PagesOfMany {
  public:
    struct Entry {
        int64_t page;
        PageSource::Readers readers;
    };
    PagesOfMany(const Store & keys, const Store & values, std::span<const vidkv_attention_args> calls);

    std::vector<Entry> entries; // those of the same readers one after the other
};

// One side of them.
class SequencePages : public PageSource {
  public:
    SequencePages(const Store & store, const PagesOfMany & pages, std::span<const vidkv_attention_args> calls);
    PageView view(int64_t page, int kv_head, int heads) const override;
    void fetch_view(int64_t page) const override {
        store_.fetch_view(sequence(entry(page).readers.first), entry(page).page);
    }
    int64_t place(int64_t page) const override { return entry(page).page; }
    Readers readers(int64_t page) const override { return entry(page).readers; }
    int64_t pages(int64_t) const override { return static_cast<int64_t>(pages_.entries.size()); }
    int plan_sets() const override { return static_cast<int>(sets_.size()); }
    const ChannelPlan & plan(int kv_head, int set) const override;
    bool uses(int set, int call) const override;
    void page_plan(int64_t, int, ChannelPlan &) const override {}

  private:
    struct Set { // of plans
        int call, number;
    };
    const PagesOfMany::Entry & entry(int64_t page) const { return pages_.entries[static_cast<size_t>(page)]; }
    int sequence(int call) const { return sequences_[static_cast<size_t>(call)]; }

    const Store & store_;
    const PagesOfMany & pages_;
    std::vector<int> sequences_;        // [call]
    std::vector<Set> sets_;             // each once, by the first call that has it
    std::vector<std::vector<int>> set_; // [call][its own number]
};

} // namespace vidkv
