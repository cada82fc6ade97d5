// Keys that moved to other positions after they were packed: the codes stay, attention and reading see rotated keys.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <numeric>
#include <string>
#include <vector>

#include <unistd.h>

#include "attention/attention.h"
#include "base/half.h"
#include "core/attention_reference.h"
#include "core/forged_file.h"
#include "core/random.h"
#include "kernels/dispatch.h"
#include "vidkv/file.h"

namespace vidkv {
namespace {

using test::Random;

constexpr int64_t tokens = 900;
constexpr int kv_heads = 2, ratio = 3, query_tokens = 4;
constexpr int few_query_tokens = 2; // KV heads go through pages together

struct Turning {
    const char * preset = "t1.65";
    int head_dim = 64, first = 0, pairs = 32;
    bool halves = true;
    float gain = 1;
};

std::vector<double> angles_of(int pairs) {
    std::vector<double> angles;
    for (int i = 0; i < pairs; ++i) angles.push_back(std::pow(10000.0, -static_cast<double>(i) / pairs));
    return angles;
}

std::vector<int64_t> range(int64_t first, int64_t n) {
    std::vector<int64_t> all(static_cast<size_t>(n));
    std::iota(all.begin(), all.end(), first);
    return all;
}

// Stores with packed pages, a window, sink tokens, and queries over them.
class Layer {
  public:
    explicit Layer(const Turning & turning, int sequences = 1)
        : turning_(turning), angles_(angles_of(turning.pairs)), keys(make(VIDKV_KEYS, sequences)),
          values(make(VIDKV_VALUES, sequences)),
          q_(rng_.normals(static_cast<size_t>(query_tokens * heads() * head_dim()))) {
        for (Store * store : {&keys, &values}) {
            const std::vector<float> rows = rng_.normals(static_cast<size_t>(tokens * store->channels()));
            const std::vector<int64_t> cells = range(0, tokens);
            EXPECT_EQ(store->write(0, cells.data(), tokens, rows.data(), store->channels()), VIDKV_OK);
            EXPECT_EQ(store->seal(1), VIDKV_OK);
        }
    }

    vidkv_store * api() { return reinterpret_cast<vidkv_store *>(&keys); }
    vidkv_rotation rotation() const {
        const int pairs = turning_.pairs;
        return {turning_.first, turning_.halves ? 1 : 2, turning_.halves ? pairs : 1, pairs, angles_.data(), turning_.gain};
    }
    std::vector<int64_t> shift(const std::vector<int64_t> & cells, int positions, int sequence = 0) {
        const std::vector<int32_t> by(cells.size(), positions);
        std::vector<int64_t> left(cells.size());
        int64_t n_left = 0;
        const vidkv_rotation how = rotation();
        EXPECT_EQ(vidkv_store_shift(api(), sequence, cells.data(), by.data(), static_cast<int64_t>(cells.size()), &how,
                                    left.data(), &n_left),
                  VIDKV_OK)
            << vidkv_last_error();
        left.resize(static_cast<size_t>(n_left));
        return left;
    }
    vidkv_attention_args args(int sequence = 0, int64_t n = query_tokens) const {
        vidkv_attention_args all{};
        all.q = q_.data();
        all.q_head_stride = all.out_head_stride = head_dim();
        all.q_token_stride = all.out_token_stride = int64_t{heads()} * head_dim();
        all.tokens = n;
        all.heads = heads();
        all.cells = tokens;
        all.sequence = all.value_sequence = sequence;
        all.causal = 1;
        all.scale = 0.125f;
        all.threads = 1;
        return all;
    }
    std::vector<float> attend(const Kernels & kernels = scalar_kernels, int sequence = 0, int64_t n = query_tokens) const {
        vidkv_attention_args all = args(sequence, n);
        std::vector<float> out(static_cast<size_t>(n * all.out_token_stride));
        all.out = out.data();
        vidkv::attend(keys, values, all, kernels);
        return out;
    }
    std::vector<uint16_t> read(int64_t first, int64_t n) const {
        std::vector<uint16_t> rows(static_cast<size_t>(n * keys.channels()));
        EXPECT_EQ(keys.read(0, first, n, rows.data()), VIDKV_OK);
        return rows;
    }
    std::vector<uint8_t> page(int64_t index) const {
        size_t bytes = 0;
        const uint8_t * data = keys.sealed_page(0, index, bytes);
        return std::vector<uint8_t>(data, data + bytes);
    }
    int head_dim() const { return turning_.head_dim; }

  private:
    static int heads() { return kv_heads * ratio; }
    Store make(vidkv_side side, int sequences) const {
        vidkv_params params;
        EXPECT_EQ(vidkv_params_from_preset(turning_.preset, &params), VIDKV_OK);
        return Store({side, kv_heads * turning_.head_dim, turning_.head_dim, tokens + 60, sequences}, params);
    }

    Turning turning_;
    std::vector<double> angles_;
    Random rng_{42};

  public:
    Store keys, values;

  private:
    std::vector<float> q_;
};

const std::vector<Turning> & turnings() {
    static const std::vector<Turning> all = {{},
                                             {"t2.2", 128, 0, 64, false},
                                             {"k2v2", 64, 0, 32, true, 1.1f},
                                             {"k1.5v1.58", 128, 0, 32, true}, // a part of the head
                                             {"t1.15", 80, 16, 32, false, 0.9f}};
    return all;
}

// Largest error in units of the bound.
double worst(const std::vector<float> & got, const test::Reference & want) {
    double most = 0;
    for (size_t i = 0; i < got.size(); ++i) most = std::max(most, std::abs(got[i] - want.out[i]) / want.bound[i]);
    return most;
}

void expect_as_reference(const Layer & layer) {
    for (const int n : {few_query_tokens, query_tokens}) {
        const std::vector<float> out = layer.attend(scalar_kernels, 0, n);
        EXPECT_LE(worst(out, test::reference_attention(layer.keys, layer.values, layer.args(0, n))), 1.0);
        for (const KernelChoice & choice : kernel_choices()) {
            if (!choice.supported()) continue;
            EXPECT_EQ(layer.attend(*choice.kernels, 0, n), out) << choice.kernels->name;
        }
    }
}

TEST(Shift, AttentionSeesRotatedKeys) {
    for (const Turning & turning : turnings()) {
        SCOPED_TRACE(turning.preset);
        Layer layer(turning);
        const std::vector<float> before = layer.attend();
        layer.shift(range(128, 512), -300);
        EXPECT_NE(layer.attend(), before);
        expect_as_reference(layer);
        layer.shift(range(256, 256), 7000);
        expect_as_reference(layer);
    }
}

TEST(Shift, PartsOfAPage) {
    for (const Turning & turning : turnings()) {
        SCOPED_TRACE(turning.preset);
        Layer layer(turning);
        layer.shift(range(200, 300), -77); // pages 1 and 3 move in part
        expect_as_reference(layer);
        layer.shift(range(230, 100), 31);
        layer.shift(range(150, 90), 5);
        expect_as_reference(layer);
    }
}

// What is read is what was read before, rotated; codes are not touched.
TEST(Shift, ReadingTurnsAndCodesStay) {
    for (const Turning & turning : turnings()) {
        SCOPED_TRACE(turning.preset);
        Layer layer(turning);
        const std::vector<uint8_t> codes = layer.page(2);
        const std::vector<uint16_t> before = layer.read(256, 128);
        layer.shift(range(260, 50), -45);
        EXPECT_EQ(layer.page(2), codes);
        const std::vector<uint16_t> after = layer.read(256, 128);
        const vidkv_rotation how = layer.rotation();
        const int dim = layer.head_dim();
        for (size_t row = 0; row < before.size() / dim; ++row) {
            const size_t token = row / kv_heads, at = row * dim;
            std::vector<double> want;
            for (int c = 0; c < dim; ++c) want.push_back(half_to_float(before[at + c]));
            for (int i = 0; i < how.pairs && token >= 4 && token < 54; ++i) {
                double &a = want[how.first + i * how.step], &b = want[how.first + i * how.step + how.apart];
                const double c = how.gain * std::cos(-45 * how.angles[i]), s = how.gain * std::sin(-45 * how.angles[i]);
                const double x = a, y = b;
                a = x * c - y * s;
                b = x * s + y * c;
            }
            for (int c = 0; c < dim; ++c) ASSERT_NEAR(half_to_float(after[at + c]), want[c], 8e-3) << token << " " << c;
        }
    }
}

TEST(Shift, ThereAndBackIsNoShift) {
    Layer layer({});
    const std::vector<float> before = layer.attend();
    const uint64_t held = layer.keys.stats().bytes;
    layer.shift(range(4, 500), -45);
    EXPECT_NE(layer.attend(), before);
    EXPECT_GT(layer.keys.stats().bytes, held);
    layer.shift(range(4, 500), 45);
    EXPECT_EQ(layer.attend(), before);
    EXPECT_EQ(layer.keys.stats().bytes, held);
    EXPECT_EQ(layer.keys.stats().pages_reopened, 0);
}

TEST(Shift, KeysInF16AreLeft) {
    Layer layer({});
    std::vector<int64_t> wanted = range(0, 4);                             // sink tokens
    const int64_t open = tokens / page_tokens * page_tokens - page_tokens; // the window's pages
    for (const int64_t cell : range(open, tokens - open)) wanted.push_back(cell);
    EXPECT_EQ(layer.shift(range(0, tokens), -10), wanted);
    const std::vector<uint16_t> row(static_cast<size_t>(layer.keys.channels()), float_to_half(0.5f));
    const int64_t sink = 2;
    EXPECT_EQ(layer.keys.write(0, &sink, 1, row.data(), 0), VIDKV_OK);
    EXPECT_EQ(layer.read(2, 1), row);
    EXPECT_EQ(layer.keys.stats().pages_reopened, 0) << "sink tokens lie beside the codes";
    expect_as_reference(layer);
}

// More ways than a page can hold: its cells are left as they are, all of them.
TEST(Shift, TooManyShiftsOfAPageAreLeft) {
    Layer layer({});
    for (int way = 1; way <= 4; ++way) EXPECT_TRUE(layer.shift(range(128 + 10 * way, 10), way).empty());
    const std::vector<float> before = layer.attend();
    EXPECT_EQ(layer.shift(range(200, 10), 9), range(0, 10));
    EXPECT_EQ(layer.attend(), before);
    EXPECT_TRUE(layer.shift(range(200, 10), 4).empty()) << "as the fourth";
    const std::vector<int64_t> cells = {200};
    const std::vector<float> row(static_cast<size_t>(layer.keys.channels()), 1.0f);
    EXPECT_EQ(layer.keys.write(0, cells.data(), 1, row.data(), 0), VIDKV_OK); // opened: rows are rotated
    expect_as_reference(layer);
}

TEST(Shift, AnotherRotationIsLeft) {
    Layer layer({});
    layer.shift(range(128, 128), 5);
    const std::vector<double> others = angles_of(20);
    const vidkv_rotation other = {0, 1, 20, 20, others.data(), 1};
    const std::vector<int64_t> cells = {130, 300};
    const std::vector<int32_t> by = {1, 1};
    std::vector<int64_t> left(2);
    int64_t n_left = 0;
    ASSERT_EQ(vidkv_store_shift(layer.api(), 0, cells.data(), by.data(), 2, &other, left.data(), &n_left), VIDKV_OK);
    EXPECT_EQ(n_left, 1);
    EXPECT_EQ(left[0], 0);
}

TEST(Shift, CopiesMoveOnTheirOwn) {
    Layer layer({}, 2);
    ASSERT_EQ(layer.keys.copy_sequence(0, 1), VIDKV_OK);
    ASSERT_EQ(layer.values.copy_sequence(0, 1), VIDKV_OK);
    const std::vector<float> before = layer.attend();
    layer.shift(range(128, 256), -50, 1);
    EXPECT_EQ(layer.attend(), before);
    EXPECT_NE(layer.attend(scalar_kernels, 1), before);
}

TEST(Shift, ExportedPagesKeepThem) {
    for (const Turning & turning : turnings()) {
        SCOPED_TRACE(turning.preset);
        Layer from(turning);
        from.shift(range(128, 100), -50);
        std::vector<uint8_t> bytes;
        int sinks = 0;
        ASSERT_EQ(from.keys.export_page(0, 1, bytes, sinks), VIDKV_OK);
        Layer to(turning);
        const std::vector<uint16_t> rows = from.read(128, 128);
        const std::vector<int64_t> cells = range(128, 128);
        ASSERT_EQ(to.keys.write(0, cells.data(), 128, rows.data(), to.keys.channels()), VIDKV_OK);
        ASSERT_EQ(to.keys.import_page(0, 1, bytes.data(), bytes.size()), VIDKV_OK) << vidkv_last_error();
        EXPECT_EQ(to.read(128, 128), rows);
        EXPECT_EQ(to.attend(), from.attend());
        ASSERT_EQ(to.keys.write(0, cells.data(), 128, rows.data(), to.keys.channels()), VIDKV_OK);
        bytes.pop_back();
        EXPECT_EQ(to.keys.import_page(0, 1, bytes.data(), bytes.size()), VIDKV_E_FORMAT);
    }
}

TEST(Shift, FilesKeepThem) {
    const std::string path = testing::TempDir() + "/shift-" + std::to_string(getpid()) + ".vidkv";
    Layer from({});
    from.shift(range(128, 300), -50);
    vidkv_file_writer * writer = nullptr;
    const vidkv_params params = from.keys.params();
    ASSERT_EQ(vidkv_file_create(path.c_str(), &params, &writer), VIDKV_OK);
    ASSERT_EQ(vidkv_file_add_store(writer, 0, 0, from.api(), 0, nullptr, 0), VIDKV_OK) << vidkv_last_error();
    ASSERT_EQ(vidkv_file_finish(writer), VIDKV_OK);
    vidkv_file_abandon(writer);

    Layer to({});
    const auto load = [&] {
        vidkv_file * file = nullptr;
        vidkv_status status = vidkv_file_open(path.c_str(), 0, &file);
        if (status == VIDKV_OK) status = vidkv_file_verify(file, 1);
        if (status == VIDKV_OK) status = vidkv_file_load(file, 0, 0, to.api(), 0, nullptr, 0);
        vidkv_file_close(file);
        return status;
    };
    ASSERT_EQ(load(), VIDKV_OK) << vidkv_last_error();
    EXPECT_EQ(to.attend(), from.attend());
    EXPECT_EQ(to.read(0, tokens), from.read(0, tokens));
    to.shift(range(128, 300), 50); // pages of a file move as others do
    EXPECT_EQ(to.attend(), Layer({}).attend());

    const auto file = test::ForgedFile::read(path);
    const size_t state_end = file.state_at(0) + file.entry(0).data.bytes;
    for (const size_t back : {size_t{16}, size_t{24}, size_t{32}, size_t{40}}) {
        test::ForgedFile forged = file;
        forged.put(state_end - back, ~uint64_t{0});
        forged.sign();
        forged.write(path);
        const vidkv_status status = load();
        EXPECT_TRUE(status == VIDKV_OK || status == VIDKV_E_FORMAT) << back;
        if (status == VIDKV_OK) to.attend();
    }
    std::filesystem::remove(path);
}

TEST(Shift, BadRotationsAreRefused) {
    Layer layer({});
    std::vector<double> angles = angles_of(40);
    const int64_t cell = 200;
    const int32_t by = 1;
    int64_t left = 0, n_left = 0;
    const auto status = [&](const vidkv_rotation & how, vidkv_store * store) {
        return vidkv_store_shift(store, 0, &cell, &by, 1, &how, &left, &n_left);
    };
    EXPECT_EQ(status({0, 1, 32, 32, angles.data(), 1}, layer.api()), VIDKV_OK);
    EXPECT_EQ(status({0, 1, 40, 40, angles.data(), 1}, layer.api()), VIDKV_E_ARGUMENT); // too many
    EXPECT_EQ(status({8, 1, 32, 32, angles.data(), 1}, layer.api()), VIDKV_E_ARGUMENT); // beyond the head
    EXPECT_EQ(status({0, 1, 16, 32, angles.data(), 1}, layer.api()), VIDKV_E_ARGUMENT); // channels twice
    EXPECT_EQ(status({-1, 2, 1, 32, angles.data(), 1}, layer.api()), VIDKV_E_ARGUMENT);
    EXPECT_EQ(status({0, 1, 32, 32, nullptr, 1}, layer.api()), VIDKV_E_ARGUMENT);
    EXPECT_EQ(status({0, 1, 32, 32, angles.data(), 0}, layer.api()), VIDKV_E_ARGUMENT);
    EXPECT_EQ(status({0, 1, 32, 32, angles.data(), 1}, reinterpret_cast<vidkv_store *>(&layer.values)), VIDKV_E_ARGUMENT);
    angles[3] = NAN;
    EXPECT_EQ(status({0, 1, 32, 32, angles.data(), 1}, layer.api()), VIDKV_E_ARGUMENT);
}

} // namespace
} // namespace vidkv
