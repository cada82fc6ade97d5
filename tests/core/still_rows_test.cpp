// Values of a picture that hardly moves, as attention sums them up: trellis codes beside the paper's two bits per channel, which take
// more bits.
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <string>
#include <vector>

#include "base/half.h"
#include "core/names.h"
#include "core/random.h"
#include "vidkv/vidkv.hpp"

namespace vidkv {
namespace {

using test::Random;
using Rows = std::vector<float>; // [tokens][dim], each of them an f16 number

constexpr int tokens = 4000, dim = 64, queries = 16;
constexpr double twelve_bits = 0.001; // what is left of a mean of 12 bits that no noise spreads

// scene(t, c), and noise of its own for every token.
template <class Scene> Rows rows_of(Random & rng, float noise, const Scene & scene) {
    Rows rows(static_cast<size_t>(tokens) * dim);
    for (int t = 0; t < tokens; ++t) {
        for (int c = 0; c < dim; ++c) rows[t * dim + c] = half_to_float(float_to_half(scene(t, c) + rng.normal(noise)));
    }
    return rows;
}

Rows still(Random & rng, float noise) {
    const std::vector<float> picture = rng.normals(dim);
    return rows_of(rng, noise, [&](int, int c) { return picture[c]; });
}

// Every token moves by a share of what a picture is.
Rows drifting(Random & rng, float share) {
    std::vector<float> picture = rng.normals(dim);
    return rows_of(rng, 0.0f,
                   [&](int, int c) { return picture[c] = (picture[c] + rng.normal(share)) / std::hypot(1.0f, share); });
}

Rows in_turns(Random & rng) {
    const std::vector<float> pictures = rng.normals(2 * dim);
    return rows_of(rng, 0.0f, [&](int t, int c) { return pictures[t % 2 * dim + c]; });
}

Rows independent(Random & rng) {
    return rows_of(rng, 1.0f, [](int, int) { return 0.0f; });
}

struct Errors {
    double mean = 0, weighted = 0; // of what attention makes of the rows, in shares of it
};

// A head whose keys are in f16: the first query looks at all tokens alike, the others at some more than at others.
class Head {
  public:
    explicit Head(Random & rng) : keys_(rng.normals(static_cast<size_t>(tokens) * dim)), q_(rng.normals(queries * dim)) {
        std::fill_n(q_.begin(), dim, 0.0f);
        for (float & k : keys_) k = half_to_float(float_to_half(k));
    }

    Errors errors(const std::string & values, const Rows & rows) const {
        const std::vector<float> out = attend(values, rows), wanted = attend("k16v16", rows);
        Errors errors;
        for (int i = 0; i < queries; ++i) {
            double miss = 0, energy = 0;
            for (int c = i * dim; c < (i + 1) * dim; ++c) {
                miss += std::pow(out[c] - wanted[c], 2);
                energy += std::pow(wanted[c], 2);
            }
            const double error = std::sqrt(miss / energy);
            (i == 0 ? errors.mean : errors.weighted) += i == 0 ? error : error / (queries - 1);
        }
        return errors;
    }

  private:
    std::vector<float> attend(const std::string & name, const Rows & rows) const {
        CacheHandle cache({1, 1, dim, tokens, 1}, preset(name));
        cache.append(0, 0, tokens, keys_.data(), rows.data());
        cache.seal(1);
        std::vector<float> out(q_.size());
        vidkv_attention_args args{};
        args.q = q_.data();
        args.out = out.data();
        args.tokens = queries;
        args.q_token_stride = args.q_head_stride = args.out_token_stride = args.out_head_stride = dim;
        args.heads = args.threads = 1;
        args.cells = tokens;
        args.scale = 1.5f / std::sqrt(static_cast<float>(dim)); // weights of exp(1.5 x a normal number)
        cache.attend(0, args);
        return out;
    }

    std::vector<float> keys_, q_;
};

// Values by bits, and how far above the paper's error single tokens of noise may be: 2 bits hold what a channel's scale does, fewer cannot.
struct Value {
    const char * name;
    double weighted;
};
constexpr Value all_values[] = {{"k16vt1", 2.2}, {"k16vt1.5", 1.6}, {"k16vt2", 1.1}, {"k16vt3", 1.0}, {"k16vt4", 1.0}};

// Of single rows, root mean square, in shares of theirs.
double row_error(const std::string & values, const Rows & rows) {
    CacheHandle cache({1, 1, dim, tokens, 1}, preset(values));
    const Rows keys(rows.size());
    cache.append(0, 0, tokens, keys.data(), rows.data());
    cache.seal(1);
    std::vector<uint16_t> read(rows.size());
    EXPECT_EQ(vidkv_store_read_f16(vidkv_cache_values(cache.get(), 0), 0, 0, tokens, read.data()), VIDKV_OK);
    double miss = 0, energy = 0;
    for (size_t i = 0; i < rows.size(); ++i) {
        miss += std::pow(half_to_float(read[i]) - rows[i], 2);
        energy += std::pow(rows[i], 2);
    }
    return std::sqrt(miss / energy);
}

class StillRows : public testing::Test {
  protected:
    StillRows() : head_(rng_) {}
    void expect_no_worse(const std::string & what, const Rows & rows) {
        const Errors paper = head_.errors("k16v2", rows);
        for (const auto & [name, weighted] : all_values) {
            SCOPED_TRACE(rng_.trace() + " " + name + ", " + what);
            expect_no_worse(head_.errors(name, rows), paper, weighted);
        }
    }
    static void expect_no_worse(const Errors & ours, const Errors & paper, double weighted = 1.05) {
        EXPECT_LT(ours.mean, std::max(1.05 * paper.mean, twelve_bits));
        EXPECT_LT(ours.weighted, std::max(weighted * paper.weighted, twelve_bits));
    }

    Random rng_{42};
    Head head_;
};

TEST_F(StillRows, EqualRowsAreNoWorseThanScalesPerChannel) { expect_no_worse("equal", still(rng_, 0.0f)); }

TEST_F(StillRows, NoisyRowsAreNoWorseThanScalesPerChannel) {
    for (const float noise : {0.01f, 0.1f, 0.3f}) expect_no_worse("noise " + std::to_string(noise), still(rng_, noise));
}

// Two rows in turns, and a picture that moves one way, are said by a direction, whatever the bits.
TEST_F(StillRows, TwoRowsInTurnsAreNoWorseThanScalesPerChannel) {
    const Rows rows = in_turns(rng_);
    const Errors paper = head_.errors("k16v2", rows);
    for (const auto & value : all_values) {
        SCOPED_TRACE(rng_.trace() + " " + value.name);
        expect_no_worse(head_.errors(value.name, rows), paper);
        EXPECT_LT(row_error(value.name, rows), twelve_bits);
    }
}

TEST_F(StillRows, WhatMovesOneWayIsNoWorseThanScalesPerChannel) {
    const std::vector<float> pictures = rng_.normals(2 * dim);
    const Rows rows = rows_of(rng_, 0.0f, [&](int t, int c) { return pictures[c] + 0.001f * t * pictures[dim + c]; });
    const Errors paper = head_.errors("k16v2", rows);
    const double paper_row = row_error("k16v2", rows);
    for (const auto & value : all_values) {
        SCOPED_TRACE(rng_.trace() + " " + value.name);
        expect_no_worse(head_.errors(value.name, rows), paper);
        EXPECT_LT(row_error(value.name, rows), 1.05 * paper_row);
    }
}

// A drift that wanders: in the mean with any bits, in single rows with 3 bits and more; with fewer the scales of 32 tokens follow it better.
TEST_F(StillRows, DriftsHaveTheMeanOfScalesPerChannel) {
    for (const float share : {0.01f, 0.05f}) {
        const Rows rows = drifting(rng_, share);
        const Errors paper = head_.errors("k16v2", rows);
        const double paper_row = row_error("k16v2", rows);
        for (const auto & [name, row] :
             {std::pair{"k16vt1", 2.9}, {"k16vt1.5", 2.3}, {"k16vt2", 1.7}, {"k16vt3", 1.0}, {"k16vt4", 1.0}}) {
            SCOPED_TRACE(rng_.trace() + " " + name + ", drift of " + std::to_string(share));
            EXPECT_LT(head_.errors(name, rows).mean, std::max(1.05 * paper.mean, twelve_bits));
            EXPECT_LT(row_error(name, rows), row * paper_row);
        }
    }
}

// Tokens that have nothing in common have no mean, and lose nothing to one: errors as their codes' rates have them.
TEST_F(StillRows, IndependentRowsAreAsTheyWere) {
    const Rows rows = independent(rng_);
    for (const auto & [name, error] : {std::pair{"k16vt1", 0.65}, {"k16vt1.5", 0.45}, {"k16vt2", 0.31}, {"k16vt3", 0.17}})
        EXPECT_LT(head_.errors(name, rows).weighted, error) << name;
}

} // namespace
} // namespace vidkv
