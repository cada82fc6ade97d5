#include "hidden_rows.h"

#include <cstring>

namespace vidkv_ggml {

namespace {

constexpr int page_tokens = 128;
constexpr int tag_bytes = 7;
constexpr int page_bits = 16, token_bits = 7, first_bits = 6, check_bits = 27;
static_assert(page_bits + token_bits + first_bits + check_bits == 8 * tag_bytes);

struct PageHead {
    uint64_t bytes, checksum;
};

uint64_t mix(uint64_t x) { // of MurmurHash3
    x = (x ^ (x >> 33)) * 0xff51afd7ed558ccdu;
    x = (x ^ (x >> 33)) * 0xc4ceb9fe1a85ec53u;
    return x ^ (x >> 33);
}

uint64_t to_number(const RowTag & tag) {
    const uint64_t facts = tag.page | uint64_t(tag.token) << page_bits | uint64_t(tag.first) << (page_bits + token_bits);
    const uint64_t check = mix(facts * 4 + static_cast<uint64_t>(tag.bits)) >> (64 - check_bits);
    return facts | check << (8 * tag_bytes - check_bits);
}

RowTag from_number(uint64_t number, int bits) {
    RowTag tag;
    tag.page = number & 0xffff;
    tag.token = static_cast<int>(number >> page_bits & 0x7f);
    tag.first = static_cast<int>(number >> (page_bits + token_bits) & 0x3f);
    tag.bits = bits;
    return tag;
}

uint64_t checksum(const uint8_t * bytes, size_t n) {
    uint64_t hash = n;
    for (size_t i = 0; i < n; i += 8) {
        uint64_t word = 0;
        std::memcpy(&word, bytes + i, n - i < 8 ? n - i : 8);
        hash = mix(hash ^ word) + 0x9e3779b97f4a7c15u;
    }
    return hash;
}

// The number nearest to x whose lowest bits are `low`.
uint16_t nearest(uint16_t x, uint32_t low, int bits) {
    const int32_t step = 1 << bits, magnitude = x & 0x7fff;
    int32_t found = (magnitude & -step) | static_cast<int32_t>(low);
    if (found - magnitude > step / 2 && found >= step) found -= step;
    if (magnitude - found > step / 2 && found + step < 0x7c00) found += step;
    return static_cast<uint16_t>((x & 0x8000) | found);
}

// The lowest bits of a row's elements, one after the other, are a row of bytes: its tag, and what it carries. Eight elements are
// `bits` bytes; the last few that are not eight carry nothing.
int64_t row_bytes(int64_t channels, int bits) { return channels / 8 * bits; }

void hide_bytes(uint16_t * row, int64_t channels, int bits, const uint8_t * bytes) {
    for (int64_t i = 0; i + 8 <= channels; i += 8, bytes += bits) {
        uint32_t word = 0;
        for (int b = 0; b < bits; ++b) word |= uint32_t(bytes[b]) << (8 * b);
        for (int j = 0; j < 8; ++j) row[i + j] = nearest(row[i + j], word >> (bits * j) & ((1u << bits) - 1), bits);
    }
}

void reveal_bytes(const uint16_t * row, int64_t channels, int bits, uint8_t * bytes) {
    for (int64_t i = 0; i + 8 <= channels; i += 8, bytes += bits) {
        uint32_t word = 0;
        for (int j = 0; j < 8; ++j) word |= (row[i + j] & ((1u << bits) - 1)) << (bits * j);
        for (int b = 0; b < bits; ++b) bytes[b] = static_cast<uint8_t>(word >> (8 * b));
    }
}

} // namespace

int64_t hidden_bytes(int64_t channels, int bits) {
    const int64_t bytes = row_bytes(channels, bits) - tag_bytes;
    return bytes > 0 ? bytes : 0;
}

void hide(uint16_t * row, int64_t channels, const RowTag & tag, const uint8_t * bytes) {
    std::vector<uint8_t> all(static_cast<size_t>(row_bytes(channels, tag.bits)));
    const uint64_t number = to_number(tag);
    std::memcpy(all.data(), &number, tag_bytes);
    std::memcpy(all.data() + tag_bytes, bytes, static_cast<size_t>(hidden_bytes(channels, tag.bits)));
    hide_bytes(row, channels, tag.bits, all.data());
}

std::optional<RowTag> find_tag(const uint16_t * row, int64_t channels) {
    for (int bits = least_hidden_bits; bits <= most_hidden_bits; ++bits) {
        if (hidden_bytes(channels, bits) == 0) continue;
        uint8_t bytes[tag_bytes + most_hidden_bits] = {};
        reveal_bytes(row, (8 * tag_bytes / bits + 7) / 8 * 8, bits, bytes); // 8 elements are some bytes
        uint64_t number = 0;
        std::memcpy(&number, bytes, tag_bytes);
        const RowTag tag = from_number(number, bits);
        if (to_number(tag) == number && tag.token >= tag.first) return tag;
    }
    return std::nullopt;
}

void reveal(const uint16_t * row, int64_t channels, int bits, uint8_t * bytes) {
    std::vector<uint8_t> all(static_cast<size_t>(row_bytes(channels, bits)));
    reveal_bytes(row, channels, bits, all.data());
    std::memcpy(bytes, all.data() + tag_bytes, static_cast<size_t>(hidden_bytes(channels, bits)));
}

HiddenPage to_hidden(const std::vector<uint8_t> & page, int64_t channels, int first) {
    for (int bits = least_hidden_bits; bits <= most_hidden_bits; ++bits) {
        const size_t room = static_cast<size_t>(hidden_bytes(channels, bits) * (page_tokens - first));
        if (room < sizeof(PageHead) + page.size()) continue;
        HiddenPage hidden{bits, std::vector<uint8_t>(room)};
        const PageHead head{page.size(), checksum(page.data(), page.size())};
        std::memcpy(hidden.bytes.data(), &head, sizeof(head));
        std::memcpy(hidden.bytes.data() + sizeof(head), page.data(), page.size());
        return hidden;
    }
    return {};
}

std::optional<std::vector<uint8_t>> from_hidden(const std::vector<uint8_t> & bytes) {
    PageHead head{};
    if (bytes.size() < sizeof(head)) return std::nullopt;
    std::memcpy(&head, bytes.data(), sizeof(head));
    if (head.bytes > bytes.size() - sizeof(head)) return std::nullopt;
    const uint8_t * page = bytes.data() + sizeof(head);
    if (checksum(page, head.bytes) != head.checksum) return std::nullopt;
    return std::vector<uint8_t>(page, page + head.bytes);
}

} // namespace vidkv_ggml
