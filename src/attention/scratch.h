// Per-thread working memory of attention: it does not grow with the context.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

namespace vidkv {

// n values that are written before they are read.
template <typename T> std::unique_ptr<T[]> uninitialized(size_t n) { return std::make_unique_for_overwrite<T[]>(n); }

struct ScratchShape {
    size_t key_dim, value_dim, group_size;
    size_t rows, tokens; // of the largest query block
};

struct Scratch {
    explicit Scratch(const ScratchShape & s)
        : tile(uninitialized<float>(std::max(s.key_dim, s.value_dim) * s.group_size)),
          dots(uninitialized<float>(s.rows * s.group_size)), sink_dots(uninitialized<float>(s.rows * s.group_size)),
          bias(uninitialized<float>(s.tokens * s.group_size)), visible(uninitialized<uint8_t>(s.tokens)) {}

    std::unique_ptr<float[]> tile;      // keys [head_dim][group_size], then values [group_size][head_dim]
    std::unique_ptr<float[]> dots;      // [rows][group_size]: dot products, then softmax weights
    std::unique_ptr<float[]> sink_dots; // [rows][group_size]: the same for sink cells of a sealed group
    std::unique_ptr<float[]> bias;      // [tokens][group_size]: mask, -inf past the end
    std::unique_ptr<uint8_t[]> visible; // [tokens]: sees something of this tile
    bool biased = false;                // bias counts; else everything is visible
};

// One Scratch for each of `count` threads, made up front so that nothing is allocated inside a parallel loop.
class ScratchPool {
    struct Slot {
        std::unique_ptr<Scratch> scratch;
        std::atomic<bool> taken{false};
    };

  public:
    ScratchPool(size_t count, const ScratchShape & shape) : count_(count), slots_(std::make_unique<Slot[]>(count)) {
        for (size_t i = 0; i < count; ++i) slots_[i].scratch = std::make_unique<Scratch>(shape);
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
    size_t count_;
    std::unique_ptr<Slot[]> slots_;
};

} // namespace vidkv
