// The bytes of a file, version 3: docs/format.md, "The file", is the same in words.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cache/page.h"
#include "vidkv/vidkv.h"

namespace vidkv {

constexpr char file_magic[8] = {'V', 'I', 'D', 'K', 'V', 'K', 'V', '3'};
constexpr size_t file_alignment = 64; // of every range of bytes in a file

struct FileParams {
    float key_bits, value_bits;
    int32_t key_codec, value_codec, group_size, residual_length, sink_tokens;
    float protect;
};

constexpr uint32_t needs_page_means = 1;    // trellis values: pages may be still (page_mean.h)
constexpr uint32_t needs_shifts = 2;        // keys that moved after they were packed
constexpr uint32_t needs_directions = 4;    // trellis values: a still page has a direction (page_mean.h)
constexpr uint32_t needs_bits_by_layer = 8; // a store has other bits than the file
constexpr uint32_t known_needs = needs_page_means | needs_shifts | needs_directions | needs_bits_by_layer;

struct FileHeader {
    char magic[8];
    uint32_t needs; // bits for what a reader must know
    uint32_t zero;
    FileParams params;
    uint64_t file_bytes;
    uint64_t table_at; // the last range of the file
    uint64_t entries;
    uint64_t table_checksum;
    uint8_t zeros[40];
    uint64_t checksum; // of all bytes before it
};
static_assert(sizeof(FileHeader) == 128);

struct FileRange {
    uint64_t at, bytes, checksum;
};

enum class FileKind : uint32_t { section = 0, store = 1 };

struct FileEntry {
    char name[32]; // of a section: zeros behind it
    uint32_t kind;
    int32_t layer, side, sequence; // of a store
    FileRange data;                // the section, or the store's state
    FileRange pages;               // of a store
};
static_assert(sizeof(FileEntry) == 96);

// A store's state: this, then its pages' entries, its plans, its statistics and how keys have moved: a count (u64), and of each page
// its place among the entries (u64) and PageShifts::save.
struct FileStore {
    int32_t channels, head_dim;
    uint32_t flags;
    uint32_t plan_sets;
    uint64_t pages;
    int64_t writes;
    int32_t plan; // of the pages that are packed from now on
    float bits;   // key_bits or value_bits of this store; 0: the file's
    uint8_t zeros[24];
};
static_assert(sizeof(FileStore) == 64);
constexpr uint32_t store_keeps_open = 1, store_has_marks = 2, store_has_statistics = 4, store_has_shifts = 8,
                   store_known_flags = 15;

struct FilePage {
    int64_t number; // in the sequence, rising
    uint64_t at;    // in the store's pages, a multiple of 64
    uint32_t bytes; // open: rows of f16, up to the last one written; sealed: without sink rows
    uint16_t plan;
    PageState state;
    uint8_t begins; // 1: a text begins here: sealed, its sink rows follow at the next multiple of 64
    int64_t last_write;
    PageBits written, marked;
};
static_assert(sizeof(FilePage) == 64);

constexpr uint64_t aligned(uint64_t bytes) { return (bytes + file_alignment - 1) / file_alignment * file_alignment; }

} // namespace vidkv
