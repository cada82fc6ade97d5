// docs/format.md against the code: its tables, its list of true bits and its worked dumps are read from the page itself.
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <iomanip>
#include <sstream>
#include <string>
#include <vector>

#include "codec/trellis.h"
#include "core/encoding.h"

namespace vidkv {
namespace {

using test::all_used;

constexpr int head_dim = 8;

// The worked example of the document: odd channels are large, even ones small.
float example(int channel, int token) {
    const float amplitude = static_cast<float>(channel + 1) * (channel % 2 ? 1.0f : 0.125f);
    return amplitude * static_cast<float>(token * (2 * channel + 1) % 8 - 4);
}

struct Block {
    std::string name;
    std::vector<std::string> lines; // what follows a '|' is for people
};

// All fenced blocks with a name, in order.
std::vector<Block> blocks() {
    std::ifstream in(VIDKV_FORMAT_DOCUMENT);
    std::vector<Block> out;
    bool inside = false;
    for (std::string line; std::getline(in, line);) {
        if (line.rfind("```", 0) == 0) {
            inside = !inside;
            if (inside) out.push_back({line.substr(3), {}});
        } else if (inside) {
            out.back().lines.push_back(line.substr(0, line.find('|')));
        }
    }
    return out;
}

const Block & block(const std::vector<Block> & all, const std::string & name) {
    static const Block none;
    for (const Block & b : all) {
        if (b.name == name) return b;
    }
    ADD_FAILURE() << "docs/format.md has no block '" << name << "'";
    return none;
}

std::vector<uint8_t> numbers(const Block & block, bool hex) {
    std::vector<uint8_t> out;
    for (const std::string & line : block.lines) {
        std::istringstream in(line);
        if (hex) in >> std::hex;
        for (unsigned number; in >> number;) out.push_back(static_cast<uint8_t>(number));
    }
    return out;
}

std::string as_text(const std::vector<uint8_t> & bytes, bool hex, size_t a_line) {
    std::ostringstream out;
    if (hex) out << std::hex << std::setfill('0');
    for (size_t i = 0; i < bytes.size(); ++i) {
        out << std::setw(hex ? 2 : 0) << int{bytes[i]} << (i % a_line == a_line - 1 || i + 1 == bytes.size() ? "\n" : " ");
    }
    return out.str();
}

TEST(FormatDocument, TrellisTablesAreTheCodes) {
    const std::vector<Block> all = blocks();
    for (const int number : {1, 7, 2, 3}) {
        const TrellisTable & table = trellis_table(static_cast<QuadCode>(number));
        std::ostringstream want;
        want << std::fixed << std::setprecision(2) << "step " << table.step << "\nmix";
        for (const uint8_t m : table.mix) want << " " << int{m};
        for (int s = 0; s < table.samples; ++s) {
            want << "\nvalues";
            for (const uint8_t v : table.values[s]) want << " " << int{v};
        }
        std::string got;
        for (const std::string & line : block(all, "trellis " + std::to_string(number)).lines)
            got += (got.empty() ? "" : "\n") + line;
        EXPECT_EQ(got, want.str()) << "docs/format.md, trellis " << number;
    }
}

TEST(FormatDocument, UniformStepsAreTheCodes) {
    const std::vector<Block> all = blocks();
    for (const std::string & line : block(all, "uniform").lines) {
        std::istringstream in(line);
        int bits = 0;
        float step = 0, offset = 0;
        in >> bits >> step >> offset;
        const LevelGrid grid = level_grid(static_cast<QuadCode>(bits));
        EXPECT_FLOAT_EQ(grid.step, step) << line;
        EXPECT_FLOAT_EQ(grid.offset, offset) << line;
    }
}

TEST(FormatDocument, TrueBitsAreTheCodes) {
    std::ifstream in(VIDKV_FORMAT_DOCUMENT);
    size_t rows = 0;
    for (std::string line; std::getline(in, line);) {
        if (line.rfind("| `", 0) != 0 || line.find('.') == std::string::npos || line.find("VIDKV") != std::string::npos)
            continue;
        const std::string name = line.substr(3, line.find('`', 3) - 3);
        const vidkv_params params = test::preset(name);
        std::ostringstream want;
        want << "| `" << name << "`" << std::fixed << std::setprecision(3);
        for (const int dim : {64, 128}) {
            // Halves go up, as people round.
            for (const vidkv_side side : {VIDKV_KEYS, VIDKV_VALUES})
                want << " | " << std::floor(vidkv_true_bits(&params, side, dim) * 1000 + 0.5) / 1000;
        }
        EXPECT_EQ(line, want.str() + " |");
        ++rows;
    }
    size_t presets = 0;
    while (vidkv_preset_name(presets)) ++presets;
    EXPECT_EQ(rows, presets);
}

TEST(FormatDocument, QuadDumpsHaveTheLevelsBeneathThem) {
    const std::vector<Block> all = blocks();
    int seen = 0;
    for (size_t i = 0; i + 1 < all.size(); ++i) {
        std::istringstream name(all[i].name);
        std::string word;
        int code = 0, rows = 0;
        if (!(name >> word >> code >> rows) || word != "quad") continue;
        const std::vector<uint8_t> packed = numbers(all[i], true);
        ASSERT_EQ(packed.size(), quad_bytes(static_cast<QuadCode>(code), rows));
        std::vector<uint8_t> levels(static_cast<size_t>(rows) * 4);
        unpack_quad(static_cast<QuadCode>(code), packed.data(), rows, levels.data());
        EXPECT_EQ(as_text(numbers(all[i + 1], false), false, 4), as_text(levels, false, 4))
            << "docs/format.md, " << all[i].name;
        ++seen;
    }
    EXPECT_EQ(seen, 3);
}

TEST(FormatDocument, KeyDumpIsWhatTheEncoderWrites) {
    const KeyLayout layout = make_key_layout(test::preset("k1.5v2-g128"), head_dim, 1);
    std::vector<float> x(static_cast<size_t>(head_dim) * page_tokens);
    for (int i = 0; i < head_dim * page_tokens; ++i) x[i] = example(i / page_tokens, i % page_tokens);
    const test::EncodedKeys encoded = test::encode_key_page(layout, {x}, all_used());
    EXPECT_EQ(encoded.plans[0].order, (std::vector<uint16_t>{1, 3, 5, 7, 0, 2, 4, 6}));
    EXPECT_EQ(as_text(numbers(block(blocks(), "keys"), true), true, 16), as_text(encoded.page, true, 16));
}

TEST(FormatDocument, ValueDumpsAreWhatTheEncoderWrites) {
    std::vector<float> x(static_cast<size_t>(head_dim) * page_tokens);
    for (int i = 0; i < head_dim * page_tokens; ++i) x[i] = example(i % head_dim, i / head_dim);
    for (const auto & [preset, name] : {std::pair{"k2v1.58", "ternary"}, {"k2v2", "affine2"}}) {
        const ValueLayout layout = make_value_layout(test::preset(preset), head_dim, 1);
        const test::EncodedValues encoded = test::encode_value_page(layout, x, all_used());
        const bool ternary = layout.ternary;
        std::vector<uint8_t> first(encoded.page.begin(),
                                   encoded.page.begin() + static_cast<long>(layout.group_codes(ternary)));
        const uint8_t * meta = encoded.page.data() + layout.head_codes(0);
        first.insert(first.end(), meta, meta + layout.group_meta(ternary));
        EXPECT_EQ(as_text(numbers(block(blocks(), name), true), true, 8), as_text(first, true, 8)) << name;
    }
}

} // namespace
} // namespace vidkv
