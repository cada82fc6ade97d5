// All that a store holds, as bytes to compare.
#pragma once

#include <cstdint>
#include <vector>

#include "cache/cache.h"

namespace vidkv::test {

inline void append_contents(const Store & store, int sequence, std::vector<uint8_t> & out) {
    StorePart part;
    if (store.part_of(sequence, nullptr, store.params(), part) != VIDKV_OK) return;
    append_bytes(out, part.state.data(), part.state.size());
    for (const StorePart::Piece & piece : part.pieces) append_bytes(out, piece.data, piece.bytes);
}

inline std::vector<uint8_t> contents(Cache & cache) {
    std::vector<uint8_t> out;
    for (int layer = 0; layer < cache.shape().layers; ++layer) {
        for (int sequence = 0; sequence < cache.shape().sequences; ++sequence) {
            append_contents(cache.keys(layer), sequence, out);
            append_contents(cache.values(layer), sequence, out);
        }
    }
    return out;
}

} // namespace vidkv::test
