// Packed pages in the rows that a host saves, and from them again when it restores.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <vector>

#include "cell_map.h"
#include "hidden_rows.h"

namespace vidkv_ggml {

// The tags of rows that a host restores.
std::vector<std::optional<RowTag>> tags_of(const uint16_t * rows, int64_t n, int64_t channels);
// Where their cells lay, and the sink cells before them, which carry no tag. Empty: none of them is known.
std::vector<FormerPlace> former_places(const std::vector<std::optional<RowTag>> & tags);

// The pages of one store that a host is restoring, row by row.
class FoundPages {
  public:
    // Forgets what has not come together, if this is another restore than before.
    void begin(int64_t restore);
    // A row that lies in page `page` of a stream now. The bytes of the page as it was packed, once all its rows have come
    // unaltered.
    std::optional<std::vector<uint8_t>> take(int stream, int64_t page, const RowTag & tag, const uint16_t * row,
                                             int64_t channels);

  private:
    struct Page {
        RowTag tag;
        std::vector<char> seen;
        int left = 0;
        std::vector<uint8_t> bytes;
    };
    std::map<std::pair<int, int64_t>, Page> pages_;
    int64_t restore_ = -1;
};

} // namespace vidkv_ggml
