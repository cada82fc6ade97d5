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

// plans: one per KV head; chosen from these pages if empty. statistics may be null.
std::vector<SealedPage> seal_keys(const KeyLayout & layout, std::vector<ChannelPlan> & plans, const QueryStatistics * statistics,
                                  const std::vector<OpenPage> & pages, int threads);

std::vector<SealedPage> seal_values(const ValueLayout & layout, const std::vector<OpenPage> & pages, int threads);

} // namespace vidkv
