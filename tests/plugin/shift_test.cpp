// Context shift: packed keys move by an angle, and llama.cpp sees what its own rotation would have made of them.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "bench/random_model.h"
#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "rope_angles.h"
#include "session.h"

namespace vidkv_test {

namespace {

constexpr uint32_t seed = 20261126;

struct Rotation {
    const char * name;
    int dims, mode;
    float base, scale, extrapolated, gain;
    bool factors;
};

struct FreeContext {
    void operator()(ggml_context * context) const { ggml_free(context); }
};
struct FreeBuffer {
    void operator()(ggml_backend_buffer_t buffer) const { ggml_backend_buffer_free(buffer); }
};
struct FreeBackend {
    void operator()(ggml_backend_t backend) const { ggml_backend_free(backend); }
};

// What ggml makes of random rows, and what the angles say, for each shift.
class RopeAnglesTest : public testing::TestWithParam<Rotation> {
  protected:
    static constexpr int head_dim = 64, heads = 2;
    const std::vector<int32_t> shifts = {1, -1, 100, -700, 5000};

    void SetUp() override {
        const Rotation & how = GetParam();
        ggml_backend_load_all();
        backend.reset(ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, nullptr));
        const auto rows = static_cast<int64_t>(shifts.size());
        context.reset(ggml_init({64 * ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, true}));
        memory = ggml_new_tensor_2d(context.get(), GGML_TYPE_F32, head_dim * heads, rows);
        ggml_tensor * positions = ggml_new_tensor_1d(context.get(), GGML_TYPE_I32, rows);
        ggml_tensor * factors = how.factors ? ggml_new_tensor_1d(context.get(), GGML_TYPE_F32, how.dims / 2) : nullptr;
        ggml_tensor * view = ggml_view_3d(context.get(), memory, how.dims, heads, rows, head_dim * 4, memory->nb[1], 0);
        op = ggml_rope_ext(context.get(), view, positions, factors, how.dims, how.mode, 512, how.base, how.scale,
                           how.extrapolated, how.gain, 32, 1);
        buffer.reset(ggml_backend_alloc_ctx_tensors(context.get(), backend.get()));
        ggml_backend_tensor_set(positions, shifts.data(), 0, ggml_nbytes(positions));
        std::mt19937 random(seed);
        std::normal_distribution<float> normal;
        before.resize(static_cast<size_t>(ggml_nelements(memory)));
        for (float & x : before) x = normal(random);
        ggml_backend_tensor_set(memory, before.data(), 0, ggml_nbytes(memory));
        std::vector<float> some(static_cast<size_t>(how.dims / 2));
        for (float & x : some) x = 1 + std::fabs(normal(random));
        if (factors) ggml_backend_tensor_set(factors, some.data(), 0, ggml_nbytes(factors));
    }

    std::unique_ptr<ggml_backend, FreeBackend> backend;
    std::unique_ptr<ggml_context, FreeContext> context;
    std::unique_ptr<ggml_backend_buffer, FreeBuffer> buffer;
    ggml_tensor *memory = nullptr, *op = nullptr;
    std::vector<float> before;
};

TEST_P(RopeAnglesTest, AreWhatGgmlDoes) {
    const Rotation & how = GetParam();
    ggml_cgraph * graph = ggml_new_graph(context.get());
    ggml_build_forward_expand(graph, op);
    ASSERT_EQ(ggml_backend_graph_compute(backend.get(), graph), GGML_STATUS_SUCCESS);
    std::vector<float> after(static_cast<size_t>(ggml_nelements(op)));
    ggml_backend_tensor_get(op, after.data(), 0, ggml_nbytes(op));
    const auto rope = vidkv_ggml::rope_angles(op);
    ASSERT_TRUE(rope.has_value());
    ASSERT_EQ(static_cast<int>(rope->angles.size()), how.dims / 2);
    for (size_t row = 0; row < shifts.size() * heads; ++row) {
        const int shift = shifts[row / heads];
        const float *from = &before[row * head_dim], *to = &after[row * static_cast<size_t>(how.dims)];
        const double allowed = 2e-6 * std::abs(shift) + 1e-5; // ggml multiplies its angles up in f32
        for (int i = 0; i < how.dims / 2; ++i) {
            const int a = rope->first + i * rope->step, b = a + rope->apart;
            const double c = rope->gain * std::cos(shift * rope->angles[i]),
                         s = rope->gain * std::sin(shift * rope->angles[i]);
            ASSERT_NEAR(to[a], from[a] * c - from[b] * s, allowed) << shift << " pair " << i;
            ASSERT_NEAR(to[b], from[a] * s + from[b] * c, allowed) << shift << " pair " << i;
        }
    }
}

INSTANTIATE_TEST_SUITE_P(Rotations, RopeAnglesTest,
                         testing::Values(Rotation{"neighbours", 64, GGML_ROPE_TYPE_NORMAL, 10000, 1, 0, 1, false},
                                         Rotation{"halves", 64, GGML_ROPE_TYPE_NEOX, 1e6f, 1, 0, 1, false},
                                         Rotation{"part_of_the_head", 32, GGML_ROPE_TYPE_NEOX, 10000, .25f, 0, 1, false},
                                         Rotation{"yarn", 64, GGML_ROPE_TYPE_NORMAL, 10000, .25f, 1, 1, false},
                                         Rotation{"yarn_with_gain", 64, GGML_ROPE_TYPE_NEOX, 10000, .5f, 1, 1.2f, false},
                                         Rotation{"factors", 64, GGML_ROPE_TYPE_NEOX, 500000, 1, 0, 1, true}),
                         [](const auto & each) { return std::string(each.param.name); });

TEST(RopeAngles, OtherRotationsAreNotTaken) {
    const std::unique_ptr<ggml_context, FreeContext> context(ggml_init({16 * ggml_tensor_overhead(), nullptr, true}));
    ggml_tensor * rows = ggml_new_tensor_3d(context.get(), GGML_TYPE_F32, 64, 2, 8);
    ggml_tensor * positions = ggml_new_tensor_1d(context.get(), GGML_TYPE_I32, 32);
    int sections[4] = {8, 12, 12, 0};
    const ggml_tensor * op = ggml_rope_multi(context.get(), rows, positions, nullptr, 64, sections, GGML_ROPE_TYPE_MROPE,
                                             512, 10000, 1, 0, 1, 32, 1);
    EXPECT_FALSE(vidkv_ggml::rope_angles(op).has_value());
}

std::string model(const char * architecture) {
    ModelShape shape;
    shape.architecture = architecture;
    return write_random_model(shape, seed);
}

double half(uint16_t bits) { return ggml_fp16_to_fp32(bits); }

// Cells n_kept .. are thrown away, those behind them move up.
void shift(Session & s, int kept, int discarded) {
    ASSERT_TRUE(llama_memory_seq_rm(s.memory(), 0, kept, kept + discarded));
    llama_memory_seq_add(s.memory(), 0, kept + discarded, -1, -discarded);
    s.feed(9000, 1, llama_memory_seq_pos_max(s.memory(), 0) + 1);
}

// [cells][head] keys rotated by `positions` from those before, to f16 and the angles' roundings.
void expect_rotated(const std::vector<uint16_t> & before, const std::vector<uint16_t> & after, bool halves, int positions) {
    constexpr int dim = 64;
    double worst = 0;
    for (size_t at = 0; at < before.size(); at += dim) {
        for (int i = 0; i < dim / 2; ++i) {
            const size_t a = at + static_cast<size_t>(halves ? i : 2 * i), b = a + (halves ? dim / 2 : 1);
            const double angle = positions * std::pow(10000.0, -2.0 * i / dim), x = half(before[a]), y = half(before[b]);
            worst = std::max(worst, std::abs(half(after[a]) - x * std::cos(angle) + y * std::sin(angle)));
            worst = std::max(worst, std::abs(half(after[b]) - x * std::sin(angle) - y * std::cos(angle)));
        }
    }
    std::printf("  worst: %.2e\n", worst);
    EXPECT_LT(worst, 2e-2);
    EXPECT_GT(worst, 0);
}

TEST(ContextShift, PackedKeysAreRotatedWithoutPackingAgain) {
    for (const char * architecture : {"llama", "gemma2"}) { // neighbours, halves
        const std::string path = model(architecture);
        SessionOptions options;
        options.preset = "t1.65";
        options.full_window_cache = true;
        {
            Session s(path, options);
            s.feed(0, 800, 0);
            const int64_t sealed = stats().cells_sealed;
            const auto before = rows_of(0, 0, 800, 128);
            shift(s, 4, 300);
            EXPECT_EQ(stats().pages_reopened, 0);
            EXPECT_EQ(stats().cells_sealed, sealed - 6) << "one cell, of three layers' keys and values, was written anew";
            const auto after = rows_of(0, 0, 800, 128);
            EXPECT_TRUE(std::equal(after.begin(), after.begin() + 4 * 128, before.begin()));
            const std::vector<uint16_t> from(before.begin() + 304 * 128, before.end()),
                to(after.begin() + 304 * 128, after.end());
            expect_rotated(from, to, architecture != std::string("llama"), -300);
        }
        std::remove(path.c_str());
    }
}

// Again and again, with what is packed meanwhile.
TEST(ContextShift, ManyShifts) {
    const std::string path = model("llama");
    SessionOptions options;
    options.preset = "t1.65";
    {
        Session s(path, options);
        s.feed(0, 700, 0);
        for (int i = 0; i < 6; ++i) {
            shift(s, 4, 130);
            s.feed(1000 * i, 120, llama_memory_seq_pos_max(s.memory(), 0) + 1);
        }
        EXPECT_EQ(stats().pages_reopened, 0);
        for (const float x : s.trace().back()) ASSERT_TRUE(std::isfinite(x));
    }
    std::remove(path.c_str());
}

// Rows that a host saves carry the page and how its cells have moved.
TEST(ContextShift, SavedAndRestored) {
    const std::string path = model("llama");
    SessionOptions options;
    options.preset = "t1.65";
    {
        Session s(path, options);
        s.feed(0, 800, 0);
        shift(s, 128, 128); // whole pages: a page without some of its cells is packed again when it is restored
        const int next = llama_memory_seq_pos_max(s.memory(), 0) + 1;
        const Logits before = s.feed(5, 1, next);
        ASSERT_TRUE(llama_memory_seq_rm(s.memory(), 0, next, -1));
        std::vector<uint8_t> state(llama_state_seq_get_size(s.context(), 0));
        ASSERT_EQ(llama_state_seq_get_data(s.context(), state.data(), state.size(), 0), state.size());
        llama_memory_clear(s.memory(), true);
        ASSERT_EQ(llama_state_seq_set_data(s.context(), state.data(), state.size(), 0), state.size());
        const double error = relative_error(s.feed(5, 1, next), before);
        std::printf("  relative error after the restore: %.2e\n", error);
        EXPECT_LT(error, 1e-5);
    }
    std::remove(path.c_str());
}

// Two conversations in one cache: one moves, the other does not see it.
TEST(ContextShift, OfOneConversationOfAPool) {
    const std::string path = model("llama");
    SessionOptions options;
    options.preset = "t1.65";
    options.sequences = 2;
    options.unified = true;
    options.cells = 2048;
    Logits alone;
    for (const bool shifts : {false, true}) {
        Session s(path, options);
        for (int part = 0; part < 4; ++part) {
            s.feed(200 * part, 200, 200 * part, 0);
            s.feed(5000 + 150 * part, 150, 150 * part, 1);
        }
        if (shifts) shift(s, 4, 300);
        const Logits & other = s.feed(77, 1, 600, 1);
        if (shifts) {
            EXPECT_LT(relative_error(other, alone), 1e-5);
        }
        alone = other;
        EXPECT_EQ(stats().pages_reopened, 0);
    }
    std::remove(path.c_str());
}

} // namespace

} // namespace vidkv_test
