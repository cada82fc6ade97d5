// llama-server's slot files (--slot-save-path) and .vidkv files: packed pages, which lie hidden in the rows of the one, by themselves in
// the other. Back again every byte is the same.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace vidkv::cli {

struct SlotReport {
    int64_t cells = 0;
    uint64_t slot_bytes = 0, file_bytes = 0;
    int64_t rows = 0, packed_rows = 0; // of all layers; packed: in pages
};

// Throws Error with one line where it is no slot file, or has no packed pages. Nothing is left at `file` then that was not there.
SlotReport pack_slot(const std::string & slot, const std::string & file, int threads);
// Of a file that pack_slot or a session with a video made.
// replaced: in its head, each first text becomes the second one, of the same length.
using Replaced = std::vector<std::pair<std::string, std::string>>;
SlotReport unpack_slot(const std::string & file, const std::string & slot, int threads, const Replaced & replaced = {});

// The section `slot`, without which a file is none of a slot: its head, the numbers that its pages had (-1: none), and a checksum
// of the slot file (0: unknown).
struct SlotSection {
    std::vector<uint8_t> head;
    std::vector<int64_t> tags;
    uint64_t checksum = 0;

    std::vector<uint8_t> bytes() const;
    static SlotSection read(std::string_view section); // throws Error
};
constexpr const char * SLOT_SECTION = "slot";
constexpr const char * SLOT_KIND = "slot"; // of the manifest

} // namespace vidkv::cli
