// The worked dumps of docs/format.md, read from the document itself, against the encoder.
#include <gtest/gtest.h>

#include <fstream>
#include <iomanip>
#include <sstream>
#include <string>
#include <vector>

#include "codec/key_codec.h"
#include "codec/value_codec.h"

namespace vidkv {
namespace {

constexpr int head_dim = 8, tokens = 32;

// The example of the document: odd channels are large, even ones small.
float example(int channel, int token) {
    const float amplitude = static_cast<float>(channel + 1) * (channel % 2 ? 1.0f : 0.125f);
    return amplitude * static_cast<float>(token * (2 * channel + 1) % 8 - 4);
}

// Hex bytes of the fenced block that begins with ```<name>; what follows a '|' on a line is for people.
std::vector<uint8_t> dump_in_document(const std::string & name) {
    std::ifstream in(VIDKV_FORMAT_DOCUMENT);
    std::vector<uint8_t> bytes;
    bool inside = false;
    for (std::string line; std::getline(in, line);) {
        if (line.rfind("```", 0) == 0) {
            inside = line == "```" + name;
            continue;
        }
        if (!inside) continue;
        std::istringstream hex(line.substr(0, line.find('|')));
        for (unsigned byte; hex >> std::hex >> byte;) bytes.push_back(static_cast<uint8_t>(byte));
    }
    return bytes;
}

std::string as_hex(const std::vector<uint8_t> & bytes) {
    std::ostringstream out;
    for (size_t i = 0; i < bytes.size(); ++i) {
        out << std::hex << std::setw(2) << std::setfill('0') << int{bytes[i]} << (i % 8 == 7 ? "\n" : " ");
    }
    return out.str();
}

TEST(FormatDocument, KeyDumpIsWhatTheEncoderWrites) {
    const KeyLayout layout = make_key_layout({1.5f, 1.58f, tokens, 128, 4}, head_dim);
    std::vector<float> x(head_dim * tokens), rows(x.size());
    for (int c = 0; c < head_dim; ++c) {
        for (int t = 0; t < tokens; ++t) x[c * tokens + t] = rows[t * head_dim + c] = example(c, t);
    }
    const std::vector<uint8_t> use(tokens, 1);
    const ChannelPlan plan = choose_channels(rows.data(), use.data(), tokens, head_dim, layout.wide);
    EXPECT_EQ(plan.order, (std::vector<uint16_t>{1, 3, 5, 7, 0, 2, 4, 6}));
    std::vector<uint8_t> block(layout.bytes);
    encode_keys(layout, plan, x.data(), use.data(), block.data());
    EXPECT_EQ(as_hex(block), as_hex(dump_in_document("keys")));
}

TEST(FormatDocument, ValueDumpsAreWhatTheEncoderWrites) {
    std::vector<float> rows(head_dim * tokens);
    for (int i = 0; i < head_dim * tokens; ++i) rows[i] = example(i % head_dim, i / head_dim);
    const std::vector<uint8_t> use(tokens, 1);
    for (const auto & [bits, name] : {std::pair{1.58f, "ternary"}, std::pair{2.0f, "affine2"}}) {
        const ValueLayout layout = make_value_layout({1.5f, bits, tokens, 128, 4}, head_dim);
        std::vector<uint8_t> block(layout.bytes);
        encode_values(layout, rows.data(), use.data(), block.data());
        EXPECT_EQ(as_hex(block), as_hex(dump_in_document(name)));
    }
}

} // namespace
} // namespace vidkv
