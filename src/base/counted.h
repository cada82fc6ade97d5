// Things that several owners share, with the count of the owners inside.
#pragma once

#include <atomic>
#include <cstdint>
#include <utility>

namespace vidkv {

class Counted {
  public:
    Counted() = default;
    Counted(const Counted &) : Counted() {} // a copy is a thing of its own
    Counted & operator=(const Counted &) { return *this; }

    void add_user() const { users_.fetch_add(1, std::memory_order_relaxed); }
    bool drop_user() const { return users_.fetch_sub(1, std::memory_order_acq_rel) == 1; } // true: it was the last one
    bool has_one_user() const { return users_.load(std::memory_order_acquire) == 1; }

  private:
    mutable std::atomic<uint32_t> users_{0};
};

// An owner of a T, which derives from Counted. T::destroy(T *) frees it.
template <typename T> class Ref {
  public:
    Ref() = default;
    explicit Ref(T * thing) : thing_(thing) {
        if (thing_) thing_->add_user();
    }
    Ref(const Ref & other) : Ref(other.thing_) {}
    Ref(Ref && other) noexcept : thing_(std::exchange(other.thing_, nullptr)) {}
    Ref & operator=(Ref other) noexcept {
        std::swap(thing_, other.thing_);
        return *this;
    }
    ~Ref() { reset(); }
    void reset() {
        if (T * thing = std::exchange(thing_, nullptr); thing && thing->drop_user()) T::destroy(thing);
    }

    T * get() const { return thing_; }
    T * operator->() const { return thing_; }
    T & operator*() const { return *thing_; }
    explicit operator bool() const { return thing_ != nullptr; }
    bool operator==(const Ref &) const = default;
    // Whether writing to it is seen by this owner alone.
    bool is_alone() const { return thing_->has_one_user(); }

  private:
    T * thing_ = nullptr;
};

} // namespace vidkv
