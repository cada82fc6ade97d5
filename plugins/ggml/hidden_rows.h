// Bytes in the lowest mantissa bits of f16 rows, so that the rows of a packed page carry the page: a host that reads them as
// numbers is off by less than 0.4 %, and this plug-in finds the page again.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

namespace vidkv_ggml {

// What each row says of itself.
struct RowTag {
    uint32_t page = 0; // in its stream
    int token = 0;     // of the page
    int first = 0;     // the first token of the page that carries bytes; those before it are sink tokens, exact in f16
    int bits = 0;      // in each element of the row, 2 or 3
};

constexpr int least_hidden_bits = 2, most_hidden_bits = 3;

// Bytes that one row carries beside its tag; 0 where not even that fits.
int64_t hidden_bytes(int64_t channels, int bits);

// Changes a row: each element becomes the nearest number with the bits that are wanted. The row holds finite numbers.
void hide(uint16_t * row, int64_t channels, const RowTag & tag, const uint8_t * bytes);
// Nothing where the row carries no tag.
std::optional<RowTag> find_tag(const uint16_t * row, int64_t channels);
// The bytes of a row with that tag: hidden_bytes of them.
void reveal(const uint16_t * row, int64_t channels, int bits, uint8_t * bytes);

// A page as bytes of its rows: with its length and a checksum. Empty where no number of bits is enough.
struct HiddenPage {
    int bits = 0;
    std::vector<uint8_t> bytes; // hidden_bytes for each token from `first` on
};
HiddenPage to_hidden(const std::vector<uint8_t> & page, int64_t channels, int first);
// The page; nothing if the checksum is another one.
std::optional<std::vector<uint8_t>> from_hidden(const std::vector<uint8_t> & bytes);

} // namespace vidkv_ggml
