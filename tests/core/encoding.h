// Whole pages in and out of the codecs, for tests.
#pragma once

#include <gtest/gtest.h>

#include <numeric>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "codec/key_page.h"
#include "codec/layout.h"
#include "codec/trellis_keys.h"
#include "codec/value_page.h"

namespace vidkv::test {

inline constexpr int dims[] = {64, 72, 80, 96, 112, 128, 256}; // of heads, those that models have

inline vidkv_params preset(const std::string & name, int group = 0) {
    vidkv_params params{};
    EXPECT_EQ(vidkv_params_from_preset(name.c_str(), &params), VIDKV_OK) << vidkv_last_error();
    if (group) params.group_size = group;
    return params;
}

// One page of keys, all heads. rows: one [head_dim][128] per head; use: [128].
struct EncodedKeys {
    KeyLayout layout;
    std::vector<ChannelPlan> plans;
    std::vector<QuadCode> quads; // trellis
    std::vector<uint8_t> page;

    std::vector<float> decode(int head) const {
        std::vector<float> x(static_cast<size_t>(layout.head_dim) * page_tokens);
        decode_keys(layout, plans[head], key_page(layout, page.data(), head), x.data());
        return x;
    }
};

inline EncodedKeys encode_key_page(const KeyLayout & layout, const std::vector<KeyRows> & rows,
                                   const std::vector<uint8_t> & use, const QueryStatistics * statistics = nullptr) {
    EncodedKeys out{layout, {}, {}, std::vector<uint8_t>(layout.page_bytes)};
    const size_t heads = rows.size();
    uint8_t * page = out.page.data();
    if (layout.codec == VIDKV_CODEC_PAPER) {
        for (size_t h = 0; h < heads; ++h) {
            out.plans.push_back(choose_channels({&rows[h]}, use, layout.head_dim, layout.wide));
            encode_paper_keys(layout, out.plans[h], rows[h].data(), use.data(), page + h * layout.head_codes,
                              page + heads * layout.head_codes + h * layout.head_meta);
        }
        return out;
    }
    std::vector<KeyFeedback> feedback;
    std::vector<const KeyRows *> of_heads;
    for (size_t h = 0; h < heads; ++h) {
        feedback.push_back(make_feedback(statistics, static_cast<int>(h), layout.head_dim, {&rows[h]}, use));
        out.plans.push_back(plan_trellis_keys(feedback[h], {&rows[h]}, use));
        of_heads.push_back(&rows[h]);
    }
    out.quads = allot_bits(layout, out.plans, feedback, of_heads, 0);
    const size_t quads = static_cast<size_t>(layout.head_dim / 4);
    size_t start = 0;
    for (size_t h = 0; h < heads; ++h) {
        store_at(page + layout.head_codes + heads * layout.head_meta, h, static_cast<uint16_t>(start / 64));
        encode_trellis_keys(out.plans[h], feedback[h], &out.quads[h * quads], rows[h], feedback[h].page(0), page + start,
                            page + layout.head_codes + h * layout.head_meta);
        for (size_t q = 0; q < quads; ++q) start += quad_bytes(out.quads[h * quads + q], page_tokens);
    }
    return out;
}

// One page of values of one head without protection. x: [128][head_dim].
struct EncodedValues {
    ValueLayout layout;
    std::vector<uint8_t> page;

    ValuePage view() const { return value_page(layout, page.data(), 0); }
    std::vector<float> decode() const {
        std::vector<float> x(static_cast<size_t>(layout.head_dim) * page_tokens);
        decode_values(layout, view(), x.data());
        return x;
    }
};

inline EncodedValues encode_value_page(const ValueLayout & layout, const std::vector<float> & x,
                                       const std::vector<uint8_t> & use) {
    EncodedValues out{layout, std::vector<uint8_t>(layout.page_bytes(0))};
    encode_values(layout, x.data(), use.data(), 0, out.page.data(), out.page.data() + layout.head_codes(0));
    return out;
}

inline std::vector<uint8_t> all_used() { return std::vector<uint8_t>(page_tokens, 1); }

// Squared error, energy and correlation of a decoded signal.
struct Fidelity {
    double error = 0, energy = 0, product = 0;
    void add(double x, double y) { error += (x - y) * (x - y), energy += x * x, product += x * y; }
    void add(const std::vector<float> & x, const std::vector<float> & y) {
        ASSERT_EQ(x.size(), y.size());
        for (size_t i = 0; i < x.size(); ++i) add(x[i], y[i]);
    }
    double nmse() const { return error / energy; }
    double gain() const { return product / energy; } // 1: unbiased
};

} // namespace vidkv::test
