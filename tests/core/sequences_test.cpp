// Several sequences in one call of attention: copies with a common beginning, and strangers.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "attention/attention.h"
#include "attention/sequence_pages.h"
#include "core/attention_reference.h"
#include "core/random.h"
#include "kernels/dispatch.h"

namespace vidkv {
namespace {

using test::Random;

constexpr int kv_heads = 2, ratio = 3, heads = kv_heads * ratio, head_dim = 64;
constexpr int64_t capacity = 1200, prefix = 640;

struct Kind {
    const char * preset;
    bool prefixes; // sequences are copies of one that was filled to `prefix`
    int64_t most_tokens;
};

class Many {
  public:
    explicit Many(const Kind & kind, int sequences = 4)
        : keys(make(kind, VIDKV_KEYS, sequences)), values(make(kind, VIDKV_VALUES, sequences)) {
        if (kind.prefixes) write(0, 0, prefix);
        for (int s = 0; s < sequences; ++s) {
            if (kind.prefixes && s > 0) copy(0, s);
        }
        for (int s = 0; s < sequences; ++s) {
            const int64_t first = kind.prefixes ? prefix : 0, end = first + 130 + 117 * s;
            write(s, first, end - first);
            add_call(s, end, 1 + s % kind.most_tokens);
        }
    }
    // Results of all calls, one after the other.
    std::vector<float> together(const Kernels & kernels = scalar_kernels, int threads = 1) {
        return run([&](std::vector<vidkv_attention_args> & calls) {
            for (auto & call : calls) call.threads = threads;
            attend(keys, values, calls, kernels);
        });
    }
    std::vector<float> one_by_one() {
        return run([&](std::vector<vidkv_attention_args> & calls) {
            for (const auto & call : calls) attend(keys, values, call, scalar_kernels);
        });
    }
    double worst_share_of_bound() {
        const std::vector<float> got = together();
        double worst = 0;
        size_t at = 0;
        for (vidkv_attention_args call : calls_) {
            const test::Reference want = test::reference_attention(keys, values, call);
            for (size_t i = 0; i < want.out.size(); ++i, ++at)
                worst = std::max(worst, std::abs(got[at] - want.out[i]) / want.bound[i]);
        }
        return worst;
    }
    size_t pages() const { return PagesOfMany(keys, values, calls_).entries.size(); }
    void copy(int from, int to) {
        EXPECT_EQ(keys.copy_sequence(from, to), VIDKV_OK);
        EXPECT_EQ(values.copy_sequence(from, to), VIDKV_OK);
    }
    std::vector<vidkv_attention_args> & calls() { return calls_; }

  private:
    static Store make(const Kind & kind, vidkv_side side, int sequences) {
        vidkv_params params;
        EXPECT_EQ(vidkv_params_from_preset(kind.preset, &params), VIDKV_OK);
        return Store({side, kv_heads * head_dim, head_dim, capacity, sequences}, params);
    }
    void write(int sequence, int64_t first, int64_t n) {
        for (int64_t done = 0; done < n; done += 100) {
            const int64_t some = std::min<int64_t>(100, n - done);
            std::vector<int64_t> cells(static_cast<size_t>(some));
            std::iota(cells.begin(), cells.end(), first + done);
            for (Store * store : {&keys, &values}) {
                const std::vector<float> rows = rng_.normals(static_cast<size_t>(some * store->channels()));
                EXPECT_EQ(store->write(sequence, cells.data(), some, rows.data(), store->channels()), VIDKV_OK);
                EXPECT_EQ(store->seal(1), VIDKV_OK);
            }
        }
    }
    void add_call(int sequence, int64_t cells, int64_t tokens) {
        queries_.push_back(rng_.normals(static_cast<size_t>(tokens * heads * head_dim)));
        vidkv_attention_args call{};
        call.q = queries_.back().data();
        call.q_head_stride = call.out_head_stride = head_dim;
        call.q_token_stride = call.out_token_stride = heads * head_dim;
        call.tokens = tokens;
        call.heads = heads;
        call.cells = cells;
        call.sequence = call.value_sequence = sequence;
        call.causal = 1;
        call.scale = 0.125f;
        call.threads = 1;
        if (sequence % 2 == 1) { // some see but a part
            masks_.emplace_back(static_cast<size_t>(tokens * cells));
            for (uint16_t & m : masks_.back()) m = rng_.integer(0, 3) == 0 ? 0xfc00 : 0;
            call.mask = masks_.back().data();
            call.mask_stride = cells;
        }
        calls_.push_back(call);
    }
    template <typename Run> std::vector<float> run(Run run) {
        size_t all = 0;
        for (const auto & q : queries_) all += q.size();
        std::vector<float> out(all, -1.0f);
        float * to = out.data();
        for (size_t i = 0; i < calls_.size(); ++i) {
            calls_[i].out = to;
            to += queries_[i].size();
        }
        run(calls_);
        return out;
    }

    Random rng_{7};

  public:
    Store keys, values;

  private:
    std::vector<std::vector<float>> queries_;
    std::vector<std::vector<uint16_t>> masks_;
    std::vector<vidkv_attention_args> calls_;
};

const std::vector<Kind> & kinds() {
    static const std::vector<Kind> all = {{"t1.65", true, 1}, {"t1.65", false, 1}, {"k1.5v1.58", true, 3},
                                          {"k2v2", false, 3}, {"f16", true, 1},    {"k1.5v1.58-stp0.2", true, 2}};
    return all;
}

TEST(Sequences, AreAsTheReference) {
    for (const Kind & kind : kinds()) {
        SCOPED_TRACE(std::string(kind.preset) + (kind.prefixes ? ", copies" : ", strangers"));
        EXPECT_LE(Many(kind).worst_share_of_bound(), 1.0);
    }
}

// Pages are cut into other chunks: a weight may be rounded to the next int8.
TEST(Sequences, AreAsCallsOneByOne) {
    for (const Kind & kind : kinds()) {
        SCOPED_TRACE(std::string(kind.preset) + (kind.prefixes ? ", copies" : ", strangers"));
        Many many(kind);
        const std::vector<float> together = many.together(), alone = many.one_by_one();
        for (size_t i = 0; i < alone.size(); ++i) ASSERT_NEAR(together[i], alone[i], 1e-3) << i;
    }
}

TEST(Sequences, AllInstructionSetsAndThreadsGiveTheSameBits) {
    for (const Kind & kind : kinds()) {
        SCOPED_TRACE(std::string(kind.preset) + (kind.prefixes ? ", copies" : ", strangers"));
        Many many(kind);
        const std::vector<float> want = many.together();
        EXPECT_EQ(many.together(scalar_kernels, 3), want);
        for (const KernelChoice & choice : kernel_choices()) {
            if (!choice.supported()) continue;
            EXPECT_EQ(many.together(*choice.kernels), want) << choice.kernels->name;
        }
    }
}

// The common beginning stands in the list of pages once; a page that one of them opens, or whose keys move, is its own.
TEST(Sequences, CommonPagesAreReadOnce) {
    Many many({"t1.65", true, 1});
    size_t apart = 0;
    for (const auto & call : many.calls()) apart += static_cast<size_t>((call.cells + page_tokens - 1) / page_tokens);
    const size_t common = prefix / page_tokens,
                 together = apart - 3 * (common - 1); // the last ones were open, and written to
    EXPECT_LE(many.pages(), together);
    EXPECT_GT(many.pages(), apart - 3 * common - 1);
    const size_t before = many.pages();
    const int64_t cell = 140;
    const std::vector<float> row(kv_heads * head_dim, 1.0f);
    ASSERT_EQ(many.keys.write(2, &cell, 1, row.data(), 0), VIDKV_OK);
    EXPECT_EQ(many.pages(), before + 2) << "sequences 0 and 1, 2, and 3";
    EXPECT_LE(many.worst_share_of_bound(), 1.0);
    const std::vector<double> angles = {1, .5};
    const vidkv_rotation rotation = {0, 1, 2, 2, angles.data(), 1};
    const std::vector<int64_t> cells = {256, 257};
    const std::vector<int32_t> by = {-3, -3};
    std::vector<int64_t> left(2);
    int64_t n_left = 0;
    ASSERT_EQ(vidkv_store_shift(reinterpret_cast<vidkv_store *>(&many.keys), 3, cells.data(), by.data(), 2, &rotation,
                                left.data(), &n_left),
              VIDKV_OK);
    EXPECT_EQ(many.pages(), before + 3);
    EXPECT_LE(many.worst_share_of_bound(), 1.0);
}

TEST(Sequences, BadCallsAreNamed) {
    Many many({"t1.65", true, 1});
    std::vector<vidkv_attention_args> calls = many.calls();
    std::vector<float> out(heads * head_dim);
    for (auto & call : calls) call.out = out.data();
    const auto * keys = reinterpret_cast<const vidkv_store *>(&many.keys);
    const auto * values = reinterpret_cast<const vidkv_store *>(&many.values);
    EXPECT_EQ(vidkv_attention_batch(keys, values, calls.data(), static_cast<int64_t>(calls.size())), VIDKV_OK);
    EXPECT_EQ(vidkv_attention_batch(keys, values, nullptr, 0), VIDKV_OK);
    EXPECT_EQ(vidkv_attention_batch(keys, values, nullptr, 1), VIDKV_E_ARGUMENT);
    EXPECT_EQ(vidkv_attention_batch(keys, values, calls.data(), -1), VIDKV_E_ARGUMENT);
    calls[2].cells = capacity + 1;
    EXPECT_EQ(vidkv_attention_batch(keys, values, calls.data(), static_cast<int64_t>(calls.size())), VIDKV_E_ARGUMENT);
}

} // namespace
} // namespace vidkv
