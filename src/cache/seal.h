// Open pages -> sealed pages: gathers f16 rows, chooses plans, encodes all heads of all pages side by side.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <new>
#include <vector>

#include "codec/channel_plan.h"
#include "codec/layout.h"
#include "codec/query_statistics.h"

namespace vidkv {

// One bit per cell of a page.
using PageBits = std::array<uint64_t, 2>;

// Bytes of a page, on a cache line's boundary.
struct PageDelete {
    void operator()(uint8_t * data) const { ::operator delete[](data, std::align_val_t{64}); }
};
using PageData = std::unique_ptr<uint8_t[], PageDelete>;
inline PageData make_page(size_t bytes) { return PageData(new (std::align_val_t{64}) uint8_t[bytes]()); }

// A page that is about to be sealed. rows: f16 [128][kv_heads * head_dim]. use: cells that were written and are no sink tokens;
// marked: those of them to protect (values only).
struct OpenPage {
    const uint16_t * rows;
    PageBits use, marked;
};

struct SealedPage {
    PageData data;
    uint32_t bytes = 0;
};

// What one sequence of one store has to pack: keys or values, told by the layout that is not null.
struct SealJob {
    const KeyLayout * key_layout = nullptr;
    std::vector<ChannelPlan> plans;               // keys: one per KV head; chosen from these pages if empty
    const QueryStatistics * statistics = nullptr; // keys; may be null
    const ValueLayout * value_layout = nullptr;
    std::vector<OpenPage> pages;
    std::vector<std::unique_ptr<uint16_t[]>> sink_rows; // [page], null where it begins with no sink cells
    std::vector<SealedPage> sealed;                     // the result, page by page
};

// Packs all jobs side by side: the heads and pages of all of them share the threads.
void seal(std::vector<SealJob> & jobs, int threads);

} // namespace vidkv
