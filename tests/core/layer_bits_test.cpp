// Bits by layer: what a preset's bits become, what the layers then hold, and the file that says what layers lose.
#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <numeric>
#include <string>
#include <vector>

#include <unistd.h>

#include "core/random.h"
#include "vidkv/layers.h"
#include "vidkv/vidkv.h"

namespace {

using vidkv::test::Random;
using Losses = std::vector<vidkv_layer_loss>;
using Bits = std::vector<vidkv_layer_bits>;

vidkv_params preset(const char * name) {
    vidkv_params params{};
    EXPECT_EQ(vidkv_params_from_preset(name, &params), VIDKV_OK) << vidkv_last_error();
    return params;
}

Bits spread(const vidkv_params & params, const Losses & losses) {
    Bits bits(losses.size());
    EXPECT_EQ(vidkv_spread_bits(&params, losses.data(), static_cast<int32_t>(losses.size()), bits.data()), VIDKV_OK)
        << vidkv_last_error();
    return bits;
}

// Losses that differ a thousandfold, as those of models do.
Losses random_losses(Random & random, int layers) {
    Losses losses;
    for (int i = 0; i < layers; ++i)
        losses.push_back({i, 1e-4 * std::exp(2.0 * random.normal()), 1e-4 * std::exp(2.0 * random.normal())});
    return losses;
}

float sum(const Bits & bits) {
    return std::accumulate(bits.begin(), bits.end(), 0.0f,
                           [](float all, const vidkv_layer_bits & each) { return all + each.keys + each.values; });
}

class PresetByLayer : public testing::TestWithParam<const char *> {};

TEST_P(PresetByLayer, SpendsItsBitsAndNoMore) {
    const vidkv_params params = preset(GetParam());
    for (uint64_t seed = 1; seed <= 20; ++seed) {
        SCOPED_TRACE("seed " + std::to_string(seed));
        Random random(seed);
        const Losses losses = random_losses(random, 1 + static_cast<int>(seed) * 2);
        const float whole = (params.key_bits + params.value_bits) * static_cast<float>(losses.size());
        const Bits bits = spread(params, losses);
        EXPECT_LE(sum(bits), whole);
        const float rounding = params.key_bits - std::floor(16 * params.key_bits) / 16; // keys come in sixteenths
        EXPECT_GT(sum(bits), whole - 0.125f - rounding * static_cast<float>(losses.size()));
        for (const vidkv_layer_bits & each : bits) {
            vidkv_params own = params;
            own.key_bits = each.keys;
            own.value_bits = each.values;
            EXPECT_EQ(vidkv_params_check(&own, 128), VIDKV_OK) << vidkv_last_error();
            EXPECT_GE(each.keys, params.key_bits / 2);
            EXPECT_GE(each.values, params.value_bits / 2);
        }
    }
}

// By true bits, all metadata included, and by what caches are planned to take.
TEST_P(PresetByLayer, TakesNoMoreBytes) {
    const vidkv_params params = preset(GetParam());
    Random random(3);
    const Bits bits = spread(params, random_losses(random, 28));
    for (const int head_dim : {64, 128, 256}) {
        double true_bits = 0, usual_bits = 0;
        uint64_t bytes = 0, usual_bytes = 0;
        for (const vidkv_side side : {VIDKV_KEYS, VIDKV_VALUES}) {
            const vidkv_store_shape shape{side, 2 * head_dim, head_dim, 16384, 1};
            for (const vidkv_layer_bits & each : bits) {
                vidkv_params own = params;
                own.key_bits = each.keys;
                own.value_bits = each.values;
                true_bits += vidkv_true_bits(&own, side, head_dim);
                usual_bits += vidkv_true_bits(&params, side, head_dim);
                bytes += vidkv_planned_bytes(&shape, &own);
                usual_bytes += vidkv_planned_bytes(&shape, &params);
            }
        }
        EXPECT_LE(true_bits, usual_bits + 1e-6) << "head_dim " << head_dim;
        EXPECT_GT(true_bits, 0.97 * usual_bits) << "head_dim " << head_dim;
        EXPECT_LE(bytes, usual_bytes) << "head_dim " << head_dim;
    }
}

std::string name_of(const testing::TestParamInfo<const char *> & info) {
    std::string name = info.param;
    std::replace_if(
        name.begin(), name.end(), [](char c) { return !std::isalnum(static_cast<unsigned char>(c)); }, '_');
    return name;
}

INSTANTIATE_TEST_SUITE_P(Trellis, PresetByLayer, testing::Values("t4.2", "t3.2", "t2.2", "t1.65", "t1.15", "t1.0"),
                         name_of);

// What stores really hold, sealed, for all layers together.
TEST(LayerBits, TakeNoMoreMemoryThanThePresetAlone) {
    const vidkv_params params = preset("t1.65");
    Random random(11);
    SCOPED_TRACE(random.trace());
    constexpr int channels = 128, head_dim = 64, tokens = 1024;
    const std::vector<float> rows = random.normals(size_t{tokens} * channels);
    std::vector<int64_t> cells(tokens);
    std::iota(cells.begin(), cells.end(), 0);
    const auto sealed_bytes = [&](vidkv_side side, float bits) {
        vidkv_params own = params;
        (side == VIDKV_KEYS ? own.key_bits : own.value_bits) = bits;
        const vidkv_store_shape shape{side, channels, head_dim, tokens, 1};
        vidkv_store * store = nullptr;
        EXPECT_EQ(vidkv_store_create(&shape, &own, &store), VIDKV_OK) << vidkv_last_error();
        EXPECT_EQ(vidkv_store_write_f32(store, 0, cells.data(), tokens, rows.data(), channels), VIDKV_OK);
        EXPECT_EQ(vidkv_store_seal(store, 1), VIDKV_OK);
        vidkv_store_stats stats{};
        vidkv_store_get_stats(store, &stats);
        vidkv_store_free(store);
        EXPECT_EQ(stats.cells_sealed, tokens - VIDKV_PAGE);
        return stats.sealed_bytes;
    };
    uint64_t bytes = 0, usual = 0;
    for (const vidkv_layer_bits & each : spread(params, random_losses(random, 8))) {
        bytes += sealed_bytes(VIDKV_KEYS, each.keys) + sealed_bytes(VIDKV_VALUES, each.values);
        usual += sealed_bytes(VIDKV_KEYS, params.key_bits) + sealed_bytes(VIDKV_VALUES, params.value_bits);
    }
    EXPECT_LE(bytes, usual);
    EXPECT_GT(bytes, usual - usual / 50);
}

TEST(LayerBits, GoWhereTheLossIs) {
    const Bits bits = spread(preset("t1.65"), {{0, 1e-5, 1e-5}, {1, 1e-2, 1e-5}, {2, 1e-5, 1e-2}, {3, 1e-4, 1e-4}});
    EXPECT_GT(bits[1].keys, 2.5f);
    EXPECT_GE(bits[2].values, 2.0f);
    EXPECT_LT(bits[0].keys, 1.0f);
    EXPECT_EQ(bits[0].values, 1.0f);
    EXPECT_GE(bits[3].keys, bits[0].keys);
}

TEST(LayerBits, OnlyRatiosAndNumbersOfLayersCount) {
    Random random(7);
    Losses losses = random_losses(random, 12);
    const Bits bits = spread(preset("t2.2"), losses);
    for (vidkv_layer_loss & each : losses) {
        each.keys *= 1024;
        each.values *= 1024;
    }
    std::reverse(losses.begin(), losses.end());
    Bits other = spread(preset("t2.2"), losses);
    std::reverse(other.begin(), other.end());
    for (size_t i = 0; i < bits.size(); ++i) {
        EXPECT_EQ(bits[i].layer, other[i].layer);
        EXPECT_EQ(bits[i].keys, other[i].keys) << "layer " << i;
        EXPECT_EQ(bits[i].values, other[i].values) << "layer " << i;
    }
}

TEST(LayerBits, LikeLayersStayAlike) {
    for (const double loss : {0.0, 1e-3}) {
        Losses losses;
        for (int i = 0; i < 16; ++i) losses.push_back({i, loss, loss});
        const Bits bits = spread(preset("t1.65"), losses);
        const auto [least, most] =
            std::minmax_element(bits.begin(), bits.end(), [](const auto & a, const auto & b) { return a.keys < b.keys; });
        EXPECT_LE(most->keys - least->keys, 0.5f) << "loss " << loss;
        for (const vidkv_layer_bits & each : bits) EXPECT_LE(std::fabs(each.values - 1.5f), 0.5f) << "loss " << loss;
    }
}

TEST(LayerBits, ASideInF16StaysSo) {
    Random random(5);
    const Losses losses = random_losses(random, 6);
    for (const vidkv_layer_bits & each : spread(preset("kt1.5v16"), losses)) EXPECT_EQ(each.values, 16.0f);
    for (const vidkv_layer_bits & each : spread(preset("k16vt2"), losses)) EXPECT_EQ(each.keys, 16.0f);
}

TEST(LayerBits, RefusesWhatCannotBeSpread) {
    const Losses losses = {{0, 1, 1}, {1, 1, 1}};
    Bits bits(2);
    vidkv_params params = preset("k2v2");
    EXPECT_EQ(vidkv_spread_bits(&params, losses.data(), 2, bits.data()), VIDKV_E_ARGUMENT);
    EXPECT_NE(std::string(vidkv_last_error()).find("trellis"), std::string::npos);
    params = preset("t1.65-stp0.2");
    EXPECT_EQ(vidkv_spread_bits(&params, losses.data(), 2, bits.data()), VIDKV_E_ARGUMENT);
    EXPECT_NE(std::string(vidkv_last_error()).find("protected"), std::string::npos);
    params = preset("t1.65");
    for (const double loss : {-1.0, std::nan(""), HUGE_VAL}) {
        const Losses wrong = {{0, 1, 1}, {1, loss, 1}};
        EXPECT_EQ(vidkv_spread_bits(&params, wrong.data(), 2, bits.data()), VIDKV_E_ARGUMENT);
        EXPECT_NE(std::string(vidkv_last_error()).find("layer 1"), std::string::npos) << vidkv_last_error();
    }
    EXPECT_EQ(vidkv_spread_bits(&params, nullptr, 2, bits.data()), VIDKV_E_ARGUMENT);
    params.key_bits = 99;
    EXPECT_EQ(vidkv_spread_bits(&params, losses.data(), 2, bits.data()), VIDKV_E_ARGUMENT);
}

class LayersFile : public testing::Test {
  protected:
    ~LayersFile() override { std::remove(path_.c_str()); }
    vidkv_status read(const std::string & text) {
        std::ofstream(path_) << text;
        int32_t n = -1;
        const vidkv_status status = vidkv_layer_losses_read(path_.c_str(), nullptr, 0, &n);
        if (status != VIDKV_OK) return status;
        losses_.assign(static_cast<size_t>(n), {});
        return vidkv_layer_losses_read(path_.c_str(), losses_.data(), n, &n);
    }
    std::string path_ = testing::TempDir() + "layers_test_" + std::to_string(getpid());
    Losses losses_;
};

TEST_F(LayersFile, HasALineForEachLayer) {
    ASSERT_EQ(read("# a model\n\n0 2.4e-04 1e-5\r\n 3\t0 0.5 \n17 1 0"), VIDKV_OK) << vidkv_last_error();
    ASSERT_EQ(losses_.size(), 3u);
    EXPECT_EQ(losses_[1].layer, 3);
    EXPECT_EQ(losses_[0].keys, 2.4e-4);
    EXPECT_EQ(losses_[1].values, 0.5);
    EXPECT_EQ(losses_[2].layer, 17);
}

TEST_F(LayersFile, IsRefusedWithItsLine) {
    for (const char * wrong : {"0 1", "0 1 2 3", "zero 1 2", "0 1 x", "-1 1 2", "0 -1 2", "0 nan 1", "0 inf 1",
                               "0 1 2\n0 1 2", "1 1 2\n0 1 2", "0,1,2", "99999999999 1 2"}) {
        EXPECT_EQ(read(std::string("# remark\n") + wrong), VIDKV_E_FORMAT) << wrong;
        EXPECT_NE(std::string(vidkv_last_error()).find("line "), std::string::npos) << vidkv_last_error();
    }
    EXPECT_EQ(read(""), VIDKV_E_FORMAT);
    EXPECT_EQ(read("# nothing\n"), VIDKV_E_FORMAT);
    int32_t n = 0;
    EXPECT_EQ(vidkv_layer_losses_read((path_ + ".none").c_str(), nullptr, 0, &n), VIDKV_E_IO);
    EXPECT_NE(std::string(vidkv_last_error()).find("No such file"), std::string::npos) << vidkv_last_error();
}

} // namespace
