// The pages of one sequence of a store, as attention reads them.
#pragma once

#include "attention/page_source.h"

namespace vidkv {

inline PageShape shape_of(const Store & store) {
    const bool packs = !is_f16(store.params(), store.side());
    return {packs, store.head_dim(), store.kv_heads(), &store.key_layout(), &store.value_layout()};
}

class StorePages : public PageSource {
  public:
    StorePages(const Store & store, int sequence) : PageSource(shape_of(store)), store_(store), sequence_(sequence) {}
    PageView view(int64_t page, int kv_head, int) const override { return store_.view(sequence_, page, kv_head); }
    void fetch_view(int64_t page) const override { store_.fetch_view(sequence_, page); }
    int plan_sets() const override { return store_.plan_sets(sequence_); }
    const ChannelPlan & plan(int kv_head, int set) const override { return store_.plan(sequence_, kv_head, set); }
    void page_plan(int64_t, int, ChannelPlan &) const override {}

  private:
    const Store & store_;
    int sequence_;
};

} // namespace vidkv
