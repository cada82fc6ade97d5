// vidkv_attention and vidkv_isa through the C API: what they refuse, and that they say why.
#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <vector>

#include "vidkv/vidkv.h"

namespace {

using StorePointer = std::unique_ptr<vidkv_store, decltype(&vidkv_store_free)>;

constexpr int kv_heads = 2, head_dim = 16;

StorePointer make_store(vidkv_side side, int heads, int dim) {
    vidkv_params params;
    EXPECT_EQ(vidkv_params_from_preset("k2v2", &params), VIDKV_OK);
    const vidkv_store_shape shape{side, heads * head_dim, dim, 64, 2};
    vidkv_store * store = nullptr;
    EXPECT_EQ(vidkv_store_create(&shape, &params, &store), VIDKV_OK) << vidkv_last_error();
    return {store, vidkv_store_free};
}

class AttentionApi : public testing::Test {
  protected:
    AttentionApi() {
        args.q = q.data();
        args.out = out.data();
        args.q_head_stride = args.out_head_stride = head_dim;
        args.q_token_stride = args.out_token_stride = 4 * head_dim;
        args.tokens = 2;
        args.heads = 4;
        args.cells = 40;
        args.scale = 0.25f;
        args.threads = 1;
    }
    // The call fails, changes nothing, and the message speaks of `word`.
    void refused(const char * word, vidkv_status status) {
        EXPECT_EQ(status, VIDKV_E_ARGUMENT) << word;
        EXPECT_NE(std::strstr(vidkv_last_error(), word), nullptr) << vidkv_last_error();
        EXPECT_EQ(std::strchr(vidkv_last_error(), '\n'), nullptr);
        EXPECT_EQ(out, std::vector<float>(out.size(), 7.0f)) << word;
    }
    void refused(const char * word) { refused(word, vidkv_attention(keys.get(), values.get(), &args)); }

    StorePointer keys = make_store(VIDKV_KEYS, kv_heads, head_dim), values = make_store(VIDKV_VALUES, kv_heads, head_dim);
    std::vector<float> q = std::vector<float>(2 * 4 * head_dim, 1.0f), out = std::vector<float>(2 * 4 * head_dim, 7.0f);
    std::vector<uint16_t> mask = std::vector<uint16_t>(2 * 40);
    vidkv_attention_args args{};
};

TEST_F(AttentionApi, AcceptsWhatFits) {
    EXPECT_EQ(vidkv_attention(keys.get(), values.get(), &args), VIDKV_OK) << vidkv_last_error();
    EXPECT_EQ(out, std::vector<float>(out.size(), 0.0f)) << "empty stores hold zeros";
    args.tokens = 0;
    args.q = nullptr;
    EXPECT_EQ(vidkv_attention(keys.get(), values.get(), &args), VIDKV_OK) << vidkv_last_error();
}

TEST_F(AttentionApi, RefusesNullPointers) {
    refused("null", vidkv_attention(nullptr, values.get(), &args));
    refused("null", vidkv_attention(keys.get(), nullptr, &args));
    refused("null", vidkv_attention(keys.get(), values.get(), nullptr));
    args.q = nullptr;
    refused("q and out");
}

TEST_F(AttentionApi, RefusesStoresThatDoNotFit) {
    refused("keys", vidkv_attention(values.get(), keys.get(), &args));
    refused("head_dim", vidkv_attention(keys.get(), make_store(VIDKV_VALUES, kv_heads, 0).get(), &args));
    refused("KV heads", vidkv_attention(keys.get(), make_store(VIDKV_VALUES, 4, head_dim).get(), &args));
}

TEST_F(AttentionApi, RefusesArgumentsOutOfRange) {
    const vidkv_attention_args good = args;
    const auto with = [&](auto change, const char * word) {
        args = good;
        change(args);
        refused(word);
    };
    const float nan = std::numeric_limits<float>::quiet_NaN();
    with([](auto & a) { a.heads = 3; }, "KV heads");
    with([](auto & a) { a.heads = 0; }, "KV heads");
    with([](auto & a) { a.sequence = 2; }, "sequence");
    with([](auto & a) { a.value_sequence = -1; }, "sequence");
    with([](auto & a) { a.cells = 65; }, "cells");
    with([](auto & a) { a.cells = -1; }, "cells");
    with([](auto & a) { a.tokens = -1; }, "tokens");
    with([](auto & a) { a.q_head_stride = head_dim - 1; }, "strides of q");
    with([](auto & a) { a.out_token_stride = 0; }, "strides of out");
    with([&](auto & a) { a.mask = mask.data(), a.mask_stride = 39; }, "mask_stride");
    with([&](auto & a) { a.scale = nan; }, "scale");
    with([](auto & a) { a.softcap = -1; }, "softcap");
    with([&](auto & a) { a.max_bias = nan; }, "max_bias");
    with([](auto & a) { a.threads = 0; }, "threads");
}

TEST_F(AttentionApi, StridesMayInterleaveHeadsAndTokens) {
    std::vector<float> rows(64 * kv_heads * head_dim);
    for (size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<float>(i % 23) * 0.1f;
    std::vector<int64_t> cells(64);
    std::iota(cells.begin(), cells.end(), 0);
    for (vidkv_store * store : {keys.get(), values.get()}) {
        ASSERT_EQ(vidkv_store_write_f32(store, 0, cells.data(), 64, rows.data(), kv_heads * head_dim), VIDKV_OK);
    }
    for (size_t i = 0; i < q.size(); ++i) q[i] = static_cast<float>(i % 17) * 0.1f;
    ASSERT_EQ(vidkv_attention(keys.get(), values.get(), &args), VIDKV_OK) << vidkv_last_error();
    std::vector<float> swapped_q(q.size()), swapped_out(q.size()); // [heads][tokens][head_dim]
    for (int i = 0; i < 8 * head_dim; ++i) {
        const int token = i / head_dim / 4, head = i / head_dim % 4;
        swapped_q[(head * 2 + token) * head_dim + i % head_dim] = q[i];
    }
    args.q = swapped_q.data();
    args.out = swapped_out.data();
    args.q_head_stride = args.out_head_stride = 2 * head_dim;
    args.q_token_stride = args.out_token_stride = head_dim;
    ASSERT_EQ(vidkv_attention(keys.get(), values.get(), &args), VIDKV_OK) << vidkv_last_error();
    for (int i = 0; i < 8 * head_dim; ++i) {
        const int token = i / head_dim / 4, head = i / head_dim % 4;
        ASSERT_EQ(swapped_out[(head * 2 + token) * head_dim + i % head_dim], out[i]);
    }
}

// The choice is made once a process, so each of these asks a fresh one.
class IsaDeathTest : public testing::Test {
  protected:
    IsaDeathTest() { testing::FLAGS_gtest_death_test_style = "threadsafe"; }
    static void ask(const char * wanted, const char * isa, const char * error_word) {
        setenv("VIDKV_FORCE_ISA", wanted, 1);
        const bool right_isa = !isa || std::strcmp(vidkv_isa(), isa) == 0;
        const bool right_error = error_word ? std::strstr(vidkv_isa_error(), error_word) != nullptr : !*vidkv_isa_error();
        std::exit(right_isa && right_error ? 0 : 1);
    }
};

TEST_F(IsaDeathTest, ScalarCanBeForced) { EXPECT_EXIT(ask("scalar", "scalar", nullptr), testing::ExitedWithCode(0), ""); }
TEST_F(IsaDeathTest, EmptyMeansAutomatic) { EXPECT_EXIT(ask("", nullptr, nullptr), testing::ExitedWithCode(0), ""); }
TEST_F(IsaDeathTest, AnUnknownNameIsReported) { EXPECT_EXIT(ask("avx9", nullptr, "avx9"), testing::ExitedWithCode(0), ""); }

} // namespace
