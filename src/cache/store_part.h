// A sequence of a store as a part of a file: as it is written, and as it is read.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace vidkv {

// To be written. The pieces lie in the store, and go to their places in the file's range of pages, in this order.
struct StorePart {
    struct Piece {
        const uint8_t * data;
        size_t bytes;
        uint64_t at;
    };
    std::vector<uint8_t> state;
    std::vector<Piece> pieces;
    bool has_shifts = false, has_directions = false, has_own_bits = false;
};

// To be read. `file` keeps the pages where they are; path: for messages; needs: what the file's header announces.
struct StoreSource {
    const uint8_t * state;
    size_t state_bytes;
    const uint8_t * pages;
    size_t pages_bytes;
    std::shared_ptr<const void> file;
    std::string path;
    uint32_t needs;
};

} // namespace vidkv
