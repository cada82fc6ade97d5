// The operations of device.h on the CPU, for tests: every thread of a block is a fiber, and what a warp or a block does together
// waits until all of its threads are there. Memory is the host's.
#pragma once

#include <ucontext.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <stdexcept>
#include <vector>

#include "base/half.h"

#define VIDKV_DEVICE inline
#define VIDKV_UNROLL
#define VIDKV_UNROLL_BY(n)

namespace vidkv::cuda {

namespace emulated {

constexpr int warp_size = 32;
constexpr size_t stack_bytes = 128 << 10, exchange_bytes = 32;

// Threads that meet: `arrived` of `size` have come for the round.
struct Meeting {
    int size = 0, arrived = 0;
    uint64_t round = 0;
};

struct Warp {
    Meeting meeting;
    uint8_t exchange[2][warp_size][exchange_bytes]; // by parity of the round: the one before may still be read
};

class Block {
  public:
    // Runs body(thread) on `threads` fibers to their end.
    void run(int threads, const std::function<void(int)> & body) {
        body_ = &body;
        warps_.assign(static_cast<size_t>(threads / warp_size), {});
        for (Warp & warp : warps_) warp.meeting.size = warp_size;
        all_ = {threads, 0, 0};
        fibers_.clear();
        for (int i = 0; i < threads; ++i) fibers_.push_back(std::make_unique<Fiber>());
        running_ = this;
        for (int i = 0; i < threads; ++i) start(i);
        for (int left = threads; left > 0;) {
            left = 0;
            for (thread_ = 0; thread_ < threads; ++thread_) left += resume();
        }
        running_ = nullptr;
    }
    static Block & running() { return *running_; }

    int lane() const { return thread_ % warp_size; }
    Warp & warp() { return warps_[static_cast<size_t>(thread_ / warp_size)]; }
    Meeting & all() { return all_; }

    void meet(Meeting & meeting) {
        const uint64_t round = meeting.round;
        if (++meeting.arrived == meeting.size) {
            meeting.arrived = 0;
            ++meeting.round;
        }
        while (meeting.round == round) yield();
    }

  private:
    struct Fiber {
        ucontext_t context;
        std::vector<char> stack = std::vector<char>(stack_bytes);
        bool done = false;
    };

    static void enter() {
        Block & block = running();
        (*block.body_)(block.thread_);
        block.fiber().done = true;
        block.yield();
    }
    Fiber & fiber() { return *fibers_[static_cast<size_t>(thread_)]; }
    void start(int thread) {
        Fiber & fiber = *fibers_[static_cast<size_t>(thread)];
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.data();
        fiber.context.uc_stack.ss_size = fiber.stack.size();
        fiber.context.uc_link = &scheduler_;
        makecontext(&fiber.context, &Block::enter, 0);
    }
    int resume() {
        if (!fiber().done) swapcontext(&scheduler_, &fiber().context);
        return !fiber().done;
    }
    void yield() {
        Fiber & mine = fiber();
        const int thread = thread_;
        swapcontext(&mine.context, &scheduler_);
        thread_ = thread;
    }

    inline static Block * running_ = nullptr;
    const std::function<void(int)> * body_ = nullptr;
    std::vector<std::unique_ptr<Fiber>> fibers_;
    std::vector<Warp> warps_;
    Meeting all_;
    ucontext_t scheduler_;
    int thread_ = 0;
};

// What every lane of the warp gives in this round, by lane.
template <typename T> class Exchange {
  public:
    explicit Exchange(const T & given) {
        static_assert(sizeof(T) <= exchange_bytes);
        Block & block = Block::running();
        Warp & warp = block.warp();
        slots_ = warp.exchange[warp.meeting.round % 2];
        std::memcpy(slots_[block.lane()], &given, sizeof(T));
        block.meet(warp.meeting);
    }
    T operator[](int lane) const {
        T value;
        std::memcpy(&value, slots_[lane], sizeof(T));
        return value;
    }

  private:
    uint8_t (*slots_)[exchange_bytes];
};

} // namespace emulated

inline uint32_t permute(uint32_t a, uint32_t b, uint32_t selector) {
    const uint64_t bytes = a | static_cast<uint64_t>(b) << 32;
    uint32_t out = 0;
    for (int i = 0; i < 4; ++i) out |= static_cast<uint32_t>(bytes >> (8 * (selector >> 4 * i & 7)) & 255) << 8 * i;
    return out;
}
inline int dot4(uint32_t a, uint32_t b, int sum) {
    for (int i = 0; i < 4; ++i) sum += static_cast<int8_t>(a >> 8 * i) * static_cast<int8_t>(b >> 8 * i);
    return sum;
}
inline uint32_t float_bits(float x) { return std::bit_cast<uint32_t>(x); }
inline float half_value(uint16_t bits) { return half_to_float(bits); }
inline uint16_t half_bits(float x) { return float_to_half(x); }
inline float exp2_fast(float x) { return std::exp2(x); }

template <typename T> T from_lane(T x, int lane) { return emulated::Exchange<T>(x)[lane & (emulated::warp_size - 1)]; }
template <typename T> T from_lane_xor(T x, int mask) {
    const int lane = emulated::Block::running().lane();
    return emulated::Exchange<T>(x)[lane ^ mask];
}
inline void warp_sync() { emulated::Block::running().meet(emulated::Block::running().warp().meeting); }
inline void block_sync() { emulated::Block::running().meet(emulated::Block::running().all()); }

// The lanes' parts as PTX has them for mma.m16n8k16 of 8-bit numbers: lane 4 g + t holds rows g and g + 8 of a, columns 4 t .. 4 t + 3;
// column g of b, rows 4 t ..; and rows g and g + 8 of c, columns 2 t and 2 t + 1.
inline void multiply(int (&c)[4], uint32_t a0, uint32_t a1, uint32_t b) {
    struct Part {
        uint32_t a[2], b;
    };
    const emulated::Exchange<Part> parts({{a0, a1}, b});
    const int lane = emulated::Block::running().lane();
    for (int i = 0; i < 4; ++i) {
        const int row = lane / 4, column = lane % 4 * 2 + i % 2;
        for (int k = 0; k < 16; ++k) {
            const uint8_t left = static_cast<uint8_t>(parts[row * 4 + k / 4].a[i / 2] >> 8 * (k % 4));
            const int8_t right = static_cast<int8_t>(parts[column * 4 + k / 4].b >> 8 * (k % 4));
            c[i] += left * right;
        }
    }
}

inline void copy_16(void * shared, const void * global) {
    if ((reinterpret_cast<uintptr_t>(shared) | reinterpret_cast<uintptr_t>(global)) % 16)
        throw std::logic_error("copy_16: not aligned");
    std::memcpy(shared, global, 16);
}
inline void commit_copies() {}
template <int but> void wait_copies() {}

inline float read_shared_result(const float * at) { return *at; }
inline void publish() {}
inline int count_up(int * counter) { return (*counter)++; }

} // namespace vidkv::cuda
