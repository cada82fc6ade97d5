// Attention on every preset against a double reference, with a derived bound (docs/numerics.md).
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "attention/attention.h"
#include "base/half.h"
#include "core/attention_reference.h"
#include "core/random.h"
#include "kernels/dispatch.h"

namespace vidkv {
namespace {

using test::Random;
using test::Reference;

constexpr uint16_t hidden = 0xfc00; // -inf

enum class Mask { none, holes, window, biased };
constexpr const char * mask_names[] = {"none", "holes", "window", "biased"};

struct Case {
    const char * preset = "k2v2";
    int head_dim = 64, value_dim = 64, kv_heads = 1, ratio = 1, group_size = 32;
    int64_t cells = 300, tokens = 1;
    int sequences = 1, sink_tokens = 4;
    Mask mask = Mask::none;
    bool causal = false, sinks = false, still = false, moving = false; // moving: with still
    float softcap = 0, max_bias = 0;

    bool protects() const { return std::strstr(preset, "stp") != nullptr; }
    std::string trace() const {
        return std::string(preset) + " head_dim " + std::to_string(head_dim) + "/" + std::to_string(value_dim) +
               " kv_heads " + std::to_string(kv_heads) + " ratio " + std::to_string(ratio) + " group " +
               std::to_string(group_size) + " cells " + std::to_string(cells) + " tokens " + std::to_string(tokens) +
               " sequences " + std::to_string(sequences) + " sink_tokens " + std::to_string(sink_tokens) + " mask " +
               mask_names[static_cast<int>(mask)] + " causal " + std::to_string(causal) + " sinks " +
               std::to_string(sinks) + " still " + std::to_string(still) + " moving " + std::to_string(moving) +
               " softcap " + std::to_string(softcap) + " max_bias " + std::to_string(max_bias);
    }
};

// Two filled stores and arguments that fit them.
class Problem {
  public:
    Problem(const Case & c, Random & rng)
        : case_(c), keys(make(c, VIDKV_KEYS, c.head_dim)), values(make(c, VIDKV_VALUES, c.value_dim)) {
        for (int s = 0; s < c.sequences; ++s) fill(s, rng);
        fill_arguments(rng);
    }

    std::vector<float> run(const Kernels & kernels, int threads = 1) const {
        vidkv_attention_args a = args;
        std::vector<float> out(static_cast<size_t>(a.tokens) * a.heads * case_.value_dim, -1.0f);
        a.out = out.data();
        a.threads = threads;
        EXPECT_EQ(check_attention(keys, values, a), VIDKV_OK) << vidkv_last_error();
        attend(keys, values, a, kernels);
        return out;
    }

  private:
    static Store make(const Case & c, vidkv_side side, int dim) {
        vidkv_params params;
        EXPECT_EQ(vidkv_params_from_preset(c.preset, &params), VIDKV_OK);
        if (params.key_codec == VIDKV_CODEC_PAPER && params.value_codec == VIDKV_CODEC_PAPER)
            params.group_size = c.group_size;
        params.residual_length = 40;
        params.sink_tokens = c.sink_tokens;
        return Store({side, c.kv_heads * dim, dim, c.cells + 37, c.sequences}, params);
    }

    // Writes in steps with seals between them; some channels are large, as in real keys; one range is never written.
    void fill(int sequence, Random & rng) {
        for (Store * store : {&keys, &values}) {
            const size_t channels = static_cast<size_t>(store->channels());
            std::vector<float> rows =
                rng.normals(static_cast<size_t>(case_.cells) * channels, store == &keys ? 0.7f : 1.0f);
            for (size_t i = 0; i < rows.size(); ++i) {
                if (i % channels % 11 == 3) rows[i] = 3 + 2 * rows[i];
            }
            for (size_t i = channels; case_.still && store == &values && i < rows.size(); ++i)
                rows[i] = rows[i % channels] + 0.3f * rows[i] + turning(i / channels, i % channels);
            std::vector<int64_t> index(static_cast<size_t>(case_.cells));
            std::iota(index.begin(), index.end(), 0);
            for (int64_t at = 0; at < case_.cells; at += 23) {
                const int64_t n = std::min<int64_t>(23, case_.cells - at);
                if (in_gap(at)) continue;
                ASSERT_EQ(store->write(sequence, &index[at], n, &rows[at * channels], static_cast<int64_t>(channels)),
                          VIDKV_OK);
                if (store == &keys) observe(sequence, rng);
                if (store == &values && case_.protects()) {
                    for (int64_t i = at; i < at + n; i += 3) ASSERT_EQ(store->protect(sequence, &i, 1), VIDKV_OK);
                }
                ASSERT_EQ(store->seal(1), VIDKV_OK);
            }
            const int64_t again = case_.cells / 3; // a rewritten cell: its page is open once more
            if (in_gap(again / 23 * 23)) continue;
            ASSERT_EQ(store->write(sequence, &again, 1, rows.data(), 0), VIDKV_OK);
        }
    }
    // Where the scene moves: most rows of a page lie along a direction.
    float turning(size_t token, size_t channel) const {
        if (!case_.moving) return 0.0f;
        return 2.0f * std::sin(0.03f * static_cast<float>(token)) * std::cos(static_cast<float>(7 * channel));
    }
    // Queries that look at some channels far more than at others, so that trellis keys get 0 to 6 bits.
    void observe(int sequence, Random & rng) {
        std::vector<float> q = rng.normals(static_cast<size_t>(case_.kv_heads * case_.head_dim));
        for (size_t i = 0; i < q.size(); ++i) q[i] *= std::exp2(static_cast<float>(i % 13) - 8.0f);
        ASSERT_EQ(keys.observe_queries(sequence, q.data(), 1, case_.kv_heads, 0, case_.head_dim), VIDKV_OK);
    }
    bool in_gap(int64_t step) const { return case_.mask == Mask::holes && step >= 69 && step < 69 + 5 * 23; }

    void fill_arguments(Random & rng) {
        const int heads = case_.kv_heads * case_.ratio;
        const size_t elements = static_cast<size_t>(case_.tokens) * heads;
        q_ = rng.normals(elements * case_.head_dim);
        sinks_ = rng.normals(static_cast<size_t>(heads));
        args.q = q_.data();
        args.q_head_stride = case_.head_dim;
        args.q_token_stride = static_cast<int64_t>(heads) * case_.head_dim;
        args.out_head_stride = case_.value_dim;
        args.out_token_stride = static_cast<int64_t>(heads) * case_.value_dim;
        args.tokens = case_.tokens;
        args.heads = heads;
        args.cells = case_.cells;
        args.sequence = args.value_sequence = case_.sequences - 1;
        args.causal = case_.causal;
        args.scale = 1.0f / std::sqrt(static_cast<float>(case_.head_dim));
        args.softcap = case_.softcap;
        args.max_bias = case_.max_bias;
        if (case_.sinks) args.sinks = sinks_.data();
        if (case_.mask != Mask::none) fill_mask(rng);
    }

    void fill_mask(Random & rng) {
        args.mask_stride = case_.cells + 5;
        mask_.assign(static_cast<size_t>(case_.tokens * args.mask_stride), 0);
        for (int64_t t = 0; t < case_.tokens; ++t) {
            const int64_t last = case_.cells - case_.tokens + t;
            for (int64_t cell = 0; cell < case_.cells; ++cell) {
                uint16_t & m = mask_[t * args.mask_stride + cell];
                if (case_.mask == Mask::holes && (rng.integer(0, 3) == 0 || in_gap(cell / 23 * 23))) m = hidden;
                if (case_.mask == Mask::window && (cell > last || cell < last - 50)) m = hidden;
                if (case_.mask == Mask::biased) m = float_to_half(-0.1f * static_cast<float>(rng.integer(0, 60)));
            }
            if (case_.mask == Mask::holes && t == case_.tokens / 2) { // this one sees nothing
                std::fill_n(&mask_[t * args.mask_stride], case_.cells, hidden);
            }
        }
        args.mask = mask_.data();
    }

    Case case_;
    std::vector<float> q_, sinks_;
    std::vector<uint16_t> mask_;

  public:
    Store keys, values;
    vidkv_attention_args args{};
};

constexpr int head_dims[] = {64, 72, 80, 96, 112, 128, 256};
constexpr int ratios[] = {1, 3, 7};
constexpr int group_sizes[] = {32, 64, 128};
constexpr int64_t lengths[] = {1, 31, 263, 300, 391, 520};

// Every head_dim in decode and prefill; the other choices take turns, so that each meets each over the table.
std::vector<Case> table_of(const char * preset) {
    std::vector<Case> cases;
    int turn = static_cast<int>(std::strlen(preset));
    for (const int head_dim : head_dims) {
        for (const bool prefill : {false, true}) {
            Case c;
            c.preset = preset;
            c.head_dim = head_dim;
            c.value_dim = turn % 5 == 4 ? 64 : head_dim;
            c.ratio = ratios[turn % 3];
            c.kv_heads = head_dim > 128 ? 1 : 1 + turn % 2;
            c.group_size = turn % 3 == 0 ? group_sizes[turn / 3 % 3] : 32;
            c.cells = lengths[turn * 5 % 6];
            c.tokens = prefill ? 3 + turn % 17 : 1;
            c.sequences = 1 + turn % 3 / 2;
            c.sink_tokens = turn % 4 == 1 ? 0 : turn % 7 == 5 ? 13 : 4;
            c.mask = static_cast<Mask>(turn / 2 % 4);
            c.causal = turn % 3 == 1;
            c.still = turn % 2 == 1;
            c.moving = turn % 4 == 1;
            c.sinks = turn % 5 == 2;
            c.softcap = turn % 7 == 3 ? 20.0f : 0.0f;
            c.max_bias = c.mask == Mask::biased && turn % 2 ? 8.0f : 0.0f;
            cases.push_back(c);
            turn += 1;
        }
    }
    Case long_decode; // several chunks of cells are merged
    long_decode.preset = preset;
    long_decode.cells = 2777;
    long_decode.ratio = 7;
    long_decode.sinks = true;
    cases.push_back(long_decode);
    Case long_prefill = long_decode; // several query blocks too
    long_prefill.tokens = 21;
    long_prefill.causal = true;
    long_prefill.still = true;
    long_prefill.moving = true;
    cases.push_back(long_prefill);
    // Heads go through pages together, in groups; with more threads the last ones by themselves.
    Case many_heads = long_decode;
    many_heads.kv_heads = 6;
    many_heads.ratio = 3;
    many_heads.tokens = 2;
    many_heads.cells = 1400;
    many_heads.mask = Mask::biased;
    many_heads.max_bias = 8.0f;
    many_heads.causal = true;
    cases.push_back(many_heads);
    return cases;
}

// Largest |got - want| in units of the bound; 0 / 0 is 0.
double worst(const std::vector<float> & got, const std::vector<double> & want, const std::vector<double> & bound) {
    double result = 0;
    for (size_t i = 0; i < got.size(); ++i) {
        const double error = std::abs(got[i] - want[i]);
        if (error == 0) continue;
        result = bound[i] > 0 && error < std::numeric_limits<double>::infinity() ? std::max(result, error / bound[i])
                                                                                 : std::numeric_limits<double>::infinity();
        if (std::isinf(result)) break;
    }
    return result;
}

class AttentionTest : public testing::TestWithParam<const char *> {};

TEST_P(AttentionTest, ScalarMatchesDoubleReference) {
    uint64_t seed = 100;
    double closest = 0;
    for (const Case & c : table_of(GetParam())) {
        Random rng(seed++);
        SCOPED_TRACE(c.trace() + " " + rng.trace());
        const Problem problem(c, rng);
        const Reference reference = test::reference_attention(problem.keys, problem.values, problem.args);
        const double share = worst(problem.run(scalar_kernels), reference.out, reference.bound);
        EXPECT_LE(share, 1.0);
        closest = std::max(closest, share);
    }
    RecordProperty("worst_share_of_bound", std::to_string(closest));
}

bool same_bits(const std::vector<float> & a, const std::vector<float> & b) {
    return std::ranges::equal(a, b, [](float x, float y) { return x == y || (std::isnan(x) && std::isnan(y)); });
}

std::vector<const Kernels *> vector_kernels() {
    std::vector<const Kernels *> result;
    for (const KernelChoice & choice : kernel_choices()) {
        if (choice.kernels != &scalar_kernels && choice.supported()) result.push_back(choice.kernels);
    }
    return result;
}

TEST_P(AttentionTest, AllInstructionSetsGiveTheSameBits) {
    const std::vector<const Kernels *> sets = vector_kernels();
    if (sets.empty()) GTEST_SKIP() << "this machine has none of the vector instruction sets in this build";
    uint64_t seed = 200;
    for (const Case & c : table_of(GetParam())) {
        Random rng(seed++);
        SCOPED_TRACE(c.trace() + " " + rng.trace());
        const Problem problem(c, rng);
        const std::vector<float> want = problem.run(scalar_kernels);
        for (const Kernels * kernels : sets) EXPECT_TRUE(same_bits(problem.run(*kernels), want)) << kernels->name;
    }
}

TEST_P(AttentionTest, SameBitsForAnyNumberOfThreads) {
    uint64_t seed = 300;
    for (const Case & c : table_of(GetParam())) {
        Random rng(seed++);
        SCOPED_TRACE(c.trace() + " " + rng.trace());
        const Problem problem(c, rng);
        const std::vector<float> one = problem.run(active_kernels(), 1);
        EXPECT_EQ(one, problem.run(active_kernels(), 2));
        EXPECT_EQ(one, problem.run(active_kernels(), 5));
    }
}

INSTANTIATE_TEST_SUITE_P(Presets, AttentionTest,
                         testing::Values("f16", "k2v2", "k1.5v2", "k1.5v1.58", "k1.25v1.58", "k1v1.58", "k16v2", "k16v1.58",
                                         "k1.5v16", "t2.2", "t1.65", "t1.15", "t1.0", "kt1.5v2", "k2vt2", "k16vt1.5",
                                         "kt3v16", "kt4vt3", "t4.2", "t3.2", "k1.5v1.58-stp0.2", "k2v1.58-stp0.4",
                                         "t1.65-stp0.2", "k16vt1-stp0.3"),
                         [](const auto & preset) {
                             std::string name = preset.param;
                             for (char & x : name) x = std::isalnum(static_cast<unsigned char>(x)) ? x : '_';
                             return name;
                         });

std::vector<const Kernels *> supported_kernels() {
    std::vector<const Kernels *> result;
    for (const KernelChoice & choice : kernel_choices()) {
        if (choice.supported()) result.push_back(choice.kernels);
    }
    return result;
}

TEST(Attention, TheTableSealsPages) {
    Random rng(1);
    Case c;
    c.cells = 391;
    const Problem problem(c, rng);
    EXPECT_EQ(problem.keys.view(0, 0, 0).state, PageState::sealed);
    EXPECT_EQ(problem.keys.view(0, 0, 0).sink_count, 4);
    EXPECT_EQ(problem.values.view(0, 0, 0).state, PageState::sealed);
    EXPECT_EQ(problem.keys.view(0, 1, 0).state, PageState::open) << "written again";
    EXPECT_EQ(problem.keys.view(0, 3, 0).state, PageState::open);
}

TEST(Attention, TheTableHasEveryKindOfStillPage) {
    for (const char * preset : {"t1.15", "t1.65", "t2.2", "t3.2", "t4.2", "t1.65-stp0.2"}) {
        int pages[3] = {};
        for (const Case & c : table_of(preset)) {
            Random rng(1);
            const Problem problem(c, rng);
            for (int64_t page = 0; page < c.cells / page_tokens; ++page) {
                const PageView view = problem.values.view(c.sequences - 1, page, 0);
                if (view.state != PageState::sealed) continue;
                const ValuePage value = value_page(problem.values.value_layout(), view.page, 0);
                ++pages[value.direction ? 2 : value.is_still() ? 1 : 0];
            }
        }
        for (const int n : pages) EXPECT_GT(n, 0) << preset << " " << pages[0] << " " << pages[1] << " " << pages[2];
    }
}

TEST(Attention, WhoSeesNothingGetsZeros) {
    for (const Kernels * kernels : supported_kernels()) {
        for (const bool sinks : {false, true}) {
            SCOPED_TRACE(kernels->name);
            Random rng(2);
            Case c;
            c.tokens = 6;
            c.cells = 90;
            c.sinks = sinks;
            Problem problem(c, rng);
            problem.args.cells = 4; // causal: tokens 0 and 1 stand before the first cell
            problem.args.causal = 1;
            const std::vector<float> out = problem.run(*kernels);
            for (int i = 0; i < 2 * c.value_dim; ++i) ASSERT_EQ(out[i], 0.0f);
            for (int i = 2 * c.value_dim; i < 3 * c.value_dim; ++i) ASSERT_NE(out[i], 0.0f);
            problem.args.cells = 0;
            for (const float x : problem.run(*kernels)) ASSERT_EQ(x, 0.0f);
        }
    }
}

// One bad row in an open group, seen by the last query token only.
class BadRow {
  public:
    explicit BadRow(const Kernels & kernels) : kernels_(kernels) {
        case_.tokens = 3;
        case_.cells = 100;
        case_.causal = true;
    }
    // Output with channel 5 of the newest cell set to x on one side.
    std::vector<float> with(vidkv_side side, float x) {
        Random rng(3);
        Problem problem(case_, rng);
        std::vector<float> row = rng.normals(64);
        row[5] = x;
        const int64_t last = case_.cells - 1;
        EXPECT_EQ((side == VIDKV_KEYS ? problem.keys : problem.values).write(0, &last, 1, row.data(), 64), VIDKV_OK);
        return problem.run(kernels_);
    }

  private:
    const Kernels & kernels_;
    Case case_;
};

TEST(Attention, WhatIsNotFiniteStaysWithWhoSeesIt) {
    const float bad_values[] = {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                                -std::numeric_limits<float>::infinity()};
    for (const Kernels * kernels : supported_kernels()) {
        BadRow bad_row(*kernels);
        for (const vidkv_side side : {VIDKV_KEYS, VIDKV_VALUES}) {
            const std::vector<float> clean = bad_row.with(side, 1.0f);
            for (const float x : bad_values) {
                SCOPED_TRACE(std::string(kernels->name) + (side == VIDKV_KEYS ? " keys " : " values ") + std::to_string(x));
                const std::vector<float> out = bad_row.with(side, x);
                for (int i = 0; i < 128; ++i) ASSERT_EQ(out[i], clean[i]) << "a query that does not see the cell changed";
                for (int i = 128; i < 192; ++i) {
                    if (side == VIDKV_VALUES) {
                        ASSERT_EQ(std::isfinite(out[i]), i != 128 + 5) << "the other channels must not change";
                    }
                    if (side == VIDKV_KEYS && std::isnan(x)) {
                        ASSERT_TRUE(std::isnan(out[i])) << "a lost score must show";
                    }
                }
            }
        }
    }
}

TEST(Attention, QueriesThatAreNotNumbersGiveWhatIsNotANumber) {
    for (const Kernels * kernels : supported_kernels()) {
        Random rng(4);
        Case c;
        c.cells = 1500; // several chunks
        Problem problem(c, rng);
        const std::vector<float> q(64, std::numeric_limits<float>::quiet_NaN());
        problem.args.q = q.data();
        for (const float x : problem.run(*kernels)) ASSERT_TRUE(std::isnan(x));
    }
}

} // namespace
} // namespace vidkv
