// States that a host saves and restores as numbers, as llama-server does with its slots: packed pages travel in them.
#include <gtest/gtest.h>

#include <cstdio>
#include <cstring>
#include <cmath>
#include <memory>

#include "bench/random_model.h"
#include "session.h"

namespace vidkv_test {

namespace {

constexpr uint32_t seed = 20251127;
constexpr int tokens = 600;

const std::string & model() {
    struct File {
        std::string path = write_random_model({}, seed);
        ~File() { std::remove(path.c_str()); }
    };
    static const File file;
    return file.path;
}

using State = std::vector<uint8_t>;

State get(Session & s, int sequence = 0) {
    State state(llama_state_seq_get_size(s.context(), sequence));
    EXPECT_EQ(llama_state_seq_get_data(s.context(), state.data(), state.size(), sequence), state.size());
    return state;
}

void set(Session & s, const State & state, int sequence = 0) {
    ASSERT_EQ(llama_state_seq_set_data(s.context(), state.data(), state.size(), sequence), state.size());
}

SessionOptions options_of(const std::string & preset, uint32_t cells = 2048) {
    SessionOptions options;
    options.preset = preset;
    options.cells = cells;
    return options;
}

// Logits of what follows, until another page is packed.
std::vector<Logits> go_on(Session & s, int sequence = 0) {
    const size_t before = s.trace().size();
    for (int i = 0; i < 20; ++i) s.feed(tokens + i, 1, tokens + i, sequence);
    return {s.trace().begin() + static_cast<ptrdiff_t>(before), s.trace().end()};
}

void expect_same_bits(const std::vector<Logits> & got, const std::vector<Logits> & want) {
    ASSERT_EQ(got.size(), want.size());
    for (size_t i = 0; i < got.size(); ++i)
        EXPECT_EQ(std::memcmp(got[i].data(), want[i].data(), got[i].size() * sizeof(float)), 0) << "step " << i;
}

TEST(Slots, TheSameCodesComeBack) {
    for (const char * preset : {"t1.65", "t2.2", "t1.15", "k1.5v1.58"}) {
        SCOPED_TRACE(preset);
        State state;
        std::vector<Logits> want;
        int64_t sealed = 0;
        {
            Session s(model(), options_of(preset));
            s.feed(0, tokens, 0);
            state = get(s);
            sealed = stats().cells_sealed;
            want = go_on(s);
        }
        Session again(model(), options_of(preset));
        set(again, state);
        EXPECT_EQ(stats().cells_sealed, sealed);
        EXPECT_TRUE(get(again) == state);
        expect_same_bits(go_on(again), want);
    }
}

// The state as a session has it that holds nothing else: where pages lie in a pool is in it too.
State by_itself(const std::string & preset, const State & state) {
    Session s(model(), options_of(preset));
    set(s, state);
    return get(s);
}

TEST(Slots, NoDriftFromSwaps) {
    for (const char * preset : {"t1.65", "k1.5v1.58"}) {
        SCOPED_TRACE(preset);
        Session s(model(), options_of(preset));
        s.feed(0, tokens, 0);
        const State first = get(s);
        llama_memory_clear(s.memory(), true);
        s.feed(5000, 500, 0);
        const State other = get(s);
        for (int i = 0; i < 3; ++i) {
            set(s, first);
            set(s, other);
        }
        EXPECT_TRUE(by_itself(preset, get(s)) == by_itself(preset, other));
        set(s, first);
        EXPECT_TRUE(by_itself(preset, get(s)) == by_itself(preset, first));
    }
}

// A page of which some tokens were taken back is not whole, and does not travel. What is left of it is packed again, once: in whole pages,
// which travel.
TEST(Slots, TakenBackTokensWearOutOnce) {
    for (const char * preset : {"t2.2", "t1.65", "k1.5v1.58"}) {
        SCOPED_TRACE(preset);
        Session s(model(), options_of(preset));
        s.feed(0, tokens, 0);
        ASSERT_TRUE(llama_memory_seq_rm(s.memory(), 0, 300, -1));
        s.feed(7000, 400, 300);
        set(s, get(s));
        set(s, get(s));
        const State second = get(s);
        for (int i = 0; i < 8; ++i) set(s, get(s));
        EXPECT_TRUE(by_itself(preset, get(s)) == by_itself(preset, second));
    }
}

// A pool of several conversations, whose cells lie between each other's.
TEST(Slots, Scattered) {
    SessionOptions options = options_of("t1.65", 4096);
    options.sequences = 3;
    options.unified = true;
    Session s(model(), options);
    for (int i = 0; i < tokens; i += 150) {
        s.feed(10000 + i, 150, i, 1);
        s.feed(i, 150, i, 0);
        s.feed(20000 + i, 70, i / 150 * 70, 2);
    }
    const State state = get(s);
    const std::vector<Logits> want = go_on(s);
    Session again(model(), options);
    again.feed(30000, 333, 0, 1);
    again.feed(31000, 200, 0, 2);
    ASSERT_TRUE(llama_memory_seq_rm(again.memory(), 1, -1, -1));
    again.feed(40000, 100, 200, 2);
    const int64_t sealed = stats().cells_sealed;
    set(again, state);
    EXPECT_TRUE(by_itself("t1.65", get(again)) == by_itself("t1.65", state));
    EXPECT_GE(stats().cells_sealed - sealed, 6 * (tokens / 128 - 2) * 128); // of 3 layers' keys and values
    const std::vector<Logits> got = go_on(again);
    for (size_t i = 0; i < got.size(); ++i)
        EXPECT_LT(relative_error(got[i], want[i]), 1e-3) << "step " << i; // another order of sums
}

TEST(Slots, AServerWithoutThePlugInReadsNumbers) {
    Session s(model(), options_of("t1.65"));
    s.feed(0, tokens, 0);
    const State state = get(s);
    const std::vector<Logits> want = go_on(s);
    SessionOptions stock;
    stock.cells = 2048;
    Session alone(model(), stock);
    set(alone, state);
    std::vector<Logits> got = go_on(alone);
    for (size_t i = 0; i < got.size(); ++i) EXPECT_LT(relative_error(got[i], want[i]), 0.05) << "step " << i;
    // And back: what it wrote itself is packed anew, what was packed is found again.
    const State back = get(alone);
    Session again(model(), options_of("t1.65"));
    set(again, back);
    EXPECT_GT(stats().cells_sealed, 6 * 3 * 128);
}

TEST(Slots, AlteredRowsAreNumbersStill) {
    Session s(model(), options_of("t1.65"));
    s.feed(0, tokens, 0);
    State state = get(s);
    for (size_t i = state.size() / 8; i < state.size(); i += 4001) state[i & ~size_t(1)] ^= 1; // lowest bits
    Session again(model(), options_of("t1.65"));
    set(again, state);
    for (const Logits & logits : go_on(again)) {
        for (const float x : logits) ASSERT_TRUE(std::isfinite(x));
    }
}

TEST(Slots, OfAnotherPreset) {
    State state;
    {
        Session s(model(), options_of("t2.2"));
        s.feed(0, tokens, 0);
        state = get(s);
    }
    for (const char * preset : {"t1.65", "k2v2", "f16"}) {
        Session again(model(), options_of(preset));
        set(again, state);
        EXPECT_EQ(stats().cells_sealed > 0, std::string(preset) != "f16");
        for (const Logits & logits : go_on(again)) {
            for (const float x : logits) ASSERT_TRUE(std::isfinite(x));
        }
    }
}

} // namespace

} // namespace vidkv_test
