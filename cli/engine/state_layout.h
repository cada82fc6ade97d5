// Where the rows are in the state of one sequence, as llama.cpp writes it. Without llama.h, so that fuzz/slot.cpp needs no engine.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace vidkv::cli {

// Rows of f16 in the state: keys or values of one layer, cell after cell.
struct StateRows {
    uint64_t at;      // in the state
    int64_t channels; // of a row
    bool keys;

    uint64_t bytes(int64_t cells) const { return static_cast<uint64_t>(cells * channels) * 2; }
};

// The first cache of the state (one with a sliding window may follow it). rows: empty where it is none that this knows: of another
// kind of memory, of another type than f16, with values transposed.
struct StateLayout {
    int64_t cells = 0;
    std::vector<StateRows> rows; // all keys, then all values, in the order of the layers
};
StateLayout layout_of_state(const uint8_t * state, size_t size);
// In memory a state begins with a magic number and its sequence, in slot files it does not: how many bytes these are.
uint64_t head_of_state(const uint8_t * state, size_t size);

constexpr uint32_t SLOT_MAGIC = 0x67677371, SLOT_VERSION = 4; // LLAMA_STATE_SEQ_MAGIC, LLAMA_STATE_SEQ_VERSION
// llama-server's slot file: a head (magic, tokens), then such a state. Where the state begins; 0: it is no such file.
uint64_t state_of_slot(const uint8_t * data, size_t size);
// A head with these tokens, as many bytes as there are tokens times four.
std::vector<uint8_t> head_of_slot(const std::vector<uint8_t> & tokens);

} // namespace vidkv::cli
