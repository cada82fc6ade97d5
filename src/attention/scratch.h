// Per-thread working memory of attention: it does not grow with the context.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <vector>

#include "cache/page_shifts.h"
#include "codec/channel_plan.h"
#include "kernels/kernels.h"

namespace vidkv {

// n values that are written before they are read, aligned to 64 bytes.
template <typename T> struct AlignedDelete {
    void operator()(T * p) const { ::operator delete[](p, std::align_val_t{64}); }
};
template <typename T> using AlignedArray = std::unique_ptr<T[], AlignedDelete<T>>;
template <typename T> AlignedArray<T> uninitialized(size_t n) {
    return AlignedArray<T>(static_cast<T *>(::operator new[](n * sizeof(T), std::align_val_t{64})));
}

struct ScratchShape {
    int key_dim, value_dim;
    int rows, tokens;                                        // of the largest query block
    int heads = 1;                                           // KV heads that go through pages together
    bool own_plans = false;                                  // every key page has a channel plan of its own
    bool shifts = false;                                     // keys have moved since their page was sealed
    bool plans_pages() const { return own_plans || shifts; } // queries are brought to single pages
    bool operator==(const ScratchShape &) const = default;
};

constexpr int most_heads = 4; // KV heads that go through a page together

// What the quads of a key page are coded as.
struct KeyCodes {
    bool known = false;  // paper: the same for all pages
    bool joined = false; // paper: runs of small levels are one
    // Those that have a code, sorted by it; behind them is room for the others.
    std::array<KeyQuad, largest_head_dim / 4 + 2 * most_sorted> quads;
    std::array<KeyRun, largest_head_dim / 4> runs;    // of `quads`: what products go through
    std::array<LevelRun, largest_head_dim / 4> parts; // neighbours of one code: what is unpacked at once
    int quad_count = 0, run_count = 0, part_count = 0;
    alignas(64) float step[largest_head_dim];     // trellis: in units of the channel's scale
    alignas(64) uint8_t offset[largest_head_dim]; // twice the levels' middle
};

inline size_t value_meta_size(int value_dim) {
    return static_cast<size_t>(
        std::max(2 * largest_groups * round_up(value_dim, 16), 2 * (page_tokens + round_up(value_dim, 16))));
}

// Which queries lie in `planned`.
struct PlannedFor {
    const Shift * shift = nullptr; // null: none that could be used again
    int64_t block = -1;
    int plan = 0, first_row = 0, rows = 0;
    bool operator==(const PlannedFor &) const = default;
};

// What the tiles of one KV head's part of a page work in.
struct TileScratch {
    TileScratch(const ScratchShape & s, uint8_t * levels);

    uint8_t * levels; // of keys, then of values; the heads share them
    KeyCodes codes;
    AlignedArray<float> step, center; // [largest_groups][key_dim rounded up to 64]
    // Paper: steps and minima of all groups; trellis: scales of slots, mean, places along the direction, direction.
    AlignedArray<float> value_meta;
    std::array<uint8_t, page_tokens> slot_tokens; // of values, where some tokens are protected
    ValueProduct product;                         // of the page at hand: all but what is of the rows
    FoldedQueries folded[largest_groups];         // of the row block at hand
    AlignedArray<float> scores;                   // [row_block][page_tokens]: scores, then weights
    AlignedArray<PackedWeights> weights;          // [row blocks]
    AlignedArray<float> planned, bases; // own plans or shifts: [rows][key_dim rounded up to 64] and [rows], of this page
    PlannedFor planned_for;
};

struct Scratch {
    explicit Scratch(const ScratchShape & s);

    AlignedArray<uint8_t> levels;
    std::vector<TileScratch> tiles; // [heads]
    AlignedArray<float> bias;       // [tokens][page_tokens]: mask, -inf past the end
    AlignedArray<MaskKind> mask;    // [tokens]: what the token sees of this page
    ChannelPlan plan;               // own plans: that of the page and head at hand
};

inline TileScratch::TileScratch(const ScratchShape & s, uint8_t * levels_of_all)
    : levels(levels_of_all), step(uninitialized<float>(static_cast<size_t>(largest_groups * round_up(s.key_dim, 64)))),
      center(uninitialized<float>(static_cast<size_t>(largest_groups * round_up(s.key_dim, 64)))),
      value_meta(uninitialized<float>(value_meta_size(s.value_dim))),
      scores(uninitialized<float>(static_cast<size_t>(row_block * page_tokens))),
      weights(uninitialized<PackedWeights>(static_cast<size_t>((s.rows + row_block - 1) / row_block))),
      planned(uninitialized<float>(s.plans_pages() ? static_cast<size_t>(s.rows * round_up(s.key_dim, 64)) : 0)),
      bases(uninitialized<float>(s.plans_pages() ? static_cast<size_t>(s.rows) : 0)) {
    std::fill_n(value_meta.get(), value_meta_size(s.value_dim), 0.0f); // kernels read on to a multiple of 16
}

inline Scratch::Scratch(const ScratchShape & s)
    : levels(uninitialized<uint8_t>(static_cast<size_t>(
          page_tokens * (s.key_dim > s.value_dim ? s.key_dim : round_up(s.value_dim, 16)) + level_slack))),
      bias(uninitialized<float>(static_cast<size_t>(s.tokens * page_tokens))),
      mask(uninitialized<MaskKind>(static_cast<size_t>(s.tokens))) {
    tiles.reserve(static_cast<size_t>(s.heads));
    for (int h = 0; h < s.heads; ++h) tiles.emplace_back(s, levels.get());
    if (s.own_plans) {
        plan.order.reserve(static_cast<size_t>(s.key_dim));
        plan.mean.reserve(static_cast<size_t>(s.key_dim));
    }
}

// One Scratch for each of `count` threads, made up front so that nothing is allocated inside a parallel loop.
class ScratchPool {
    struct Slot {
        std::unique_ptr<Scratch> scratch;
        std::atomic<bool> taken{false};
    };

  public:
    ScratchPool(size_t count, const ScratchShape & shape)
        : shape_(shape), count_(count), slots_(std::make_unique<Slot[]>(count)) {
        for (size_t i = 0; i < count; ++i) slots_[i].scratch = std::make_unique<Scratch>(shape);
    }

    bool serves(size_t count, const ScratchShape & shape) const {
        ScratchShape with_fewer_heads = shape_;
        with_fewer_heads.heads = std::min(shape_.heads, shape.heads);
        return count <= count_ && shape == with_fewer_heads;
    }
    // The next store is another one: forget what is known of the last one.
    void forget() {
        for (size_t i = 0; i < count_; ++i) {
            for (TileScratch & tile : slots_[i].scratch->tiles) {
                tile.codes.known = false;
                tile.planned_for = {};
            }
        }
    }

    // Held by one thread until it goes out of scope. At most `count` may be held at once.
    class Lease {
      public:
        explicit Lease(ScratchPool & pool) {
            for (size_t i = 0;; i = (i + 1) % pool.count_) {
                slot_ = &pool.slots_[i];
                if (!slot_->taken.exchange(true, std::memory_order_acquire)) return;
            }
        }
        ~Lease() { slot_->taken.store(false, std::memory_order_release); }
        Lease(const Lease &) = delete;
        Lease & operator=(const Lease &) = delete;
        Scratch & operator*() const { return *slot_->scratch; }

      private:
        Slot * slot_;
    };

  private:
    ScratchShape shape_;
    size_t count_;
    std::unique_ptr<Slot[]> slots_;
};

// Memory that a thread keeps between its calls of attention: fresh memory would cost a page fault for every 4 KB.
class Workspace {
  public:
    static Workspace & of_this_thread() {
        thread_local Workspace workspace;
        return workspace;
    }

    // Begins a call that takes at most `bytes` in pieces. Pieces that earlier calls took are no longer valid.
    void begin(size_t bytes) {
        used_ = 0;
        if (bytes <= size_) return;
        size_ = 0;
        memory_ = uninitialized<uint8_t>(bytes);
        size_ = bytes;
    }
    template <typename T> static size_t size_of(size_t n) { return (n * sizeof(T) + 63) / 64 * 64; }
    template <typename T> T * take(size_t n) {
        T * at = reinterpret_cast<T *>(memory_.get() + used_);
        used_ += size_of<T>(n);
        return at;
    }

    ScratchPool & scratch(size_t count, const ScratchShape & shape) {
        if (!pool_ || !pool_->serves(count, shape)) {
            pool_.reset();
            pool_ = std::make_unique<ScratchPool>(count, shape);
        }
        pool_->forget();
        return *pool_;
    }

    // Gives memory back that only a large prefill needs.
    void end() {
        if (size_ <= most_kept) return;
        memory_.reset();
        size_ = 0;
    }

  private:
    static constexpr size_t most_kept = size_t{8} << 20;
    AlignedArray<uint8_t> memory_;
    size_t size_ = 0, used_ = 0;
    std::unique_ptr<ScratchPool> pool_;
};

} // namespace vidkv
