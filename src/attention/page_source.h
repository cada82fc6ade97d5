// Where attention finds the pages of one text: in a sequence of a store, or in blocks that a host pages by itself.
#pragma once

#include "cache/store.h"

namespace vidkv {

// One side, keys or values. The layout of the other side is not looked at, nor any where the side is in f16.
struct PageShape {
    bool packs = false;
    int head_dim = 0, kv_heads = 0;
    const KeyLayout * key_layout = nullptr;
    const ValueLayout * value_layout = nullptr;
    int channels() const { return kv_heads * head_dim; }
};

class PageSource {
  public:
    // Calls, of those that attend at once, whose sequences have a page.
    struct Readers {
        int first, last;
    };
    explicit PageSource(const PageShape & of_all) : shape(of_all) {}
    virtual ~PageSource() = default;
    // Of the first of `heads` KV heads, which are about to be attended to.
    virtual PageView view(int64_t page, int kv_head, int heads) const = 0;
    virtual void fetch_view(int64_t) const {} // into the cache: what `view` reads
    // Where it stands in its sequence, and who reads it.
    virtual int64_t place(int64_t page) const { return page; }
    virtual Readers readers(int64_t) const { return {0, 0}; }
    virtual int64_t pages(int64_t cells) const { return (cells + page_tokens - 1) / page_tokens; }
    // Keys: how many channel plans the sealed pages are packed with; 0 where each has its own, which page_plan copies.
    virtual int plan_sets() const = 0;
    virtual const ChannelPlan & plan(int kv_head, int set) const = 0;
    virtual bool uses(int, int) const { return true; } // whether a call has pages of this set of plans
    virtual void page_plan(int64_t page, int kv_head, ChannelPlan & out) const = 0;

    const PageShape shape;
};

} // namespace vidkv
