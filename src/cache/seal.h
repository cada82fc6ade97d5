// Open pages -> sealed pages: gathers f16 rows, chooses plans, encodes all heads of all pages side by side.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cache/page.h"
#include "codec/channel_plan.h"
#include "codec/layout.h"
#include "codec/query_statistics.h"

namespace vidkv {

// How many rows are written after a page's newest before it is sealed: a whole page at least, or the tail of a sequence would be packed
// while it is being filled.
inline int64_t seal_age(const vidkv_params & params) { return std::max(params.residual_length, page_tokens); }

// A page that is about to be sealed. rows: f16 [held][kv_heads * head_dim], those behind them are zeros. use: cells that were written and
// are no sink tokens; marked: those of them to protect (values only). sink_bytes: of rows that it begins with, to be kept as they are.
struct OpenPage {
    const uint16_t * rows;
    int held;
    PageBits use, marked;
    size_t sink_bytes;
};

// What one sequence of one store has to pack: keys or values, told by the layout that is not null.
struct SealJob {
    const KeyLayout * key_layout = nullptr;
    std::vector<ChannelPlan> plans;               // keys: one per KV head; chosen from these pages if empty
    const QueryStatistics * statistics = nullptr; // keys; may be null
    const ValueLayout * value_layout = nullptr;
    std::vector<OpenPage> pages;
    std::vector<Ref<PageBytes>> sealed; // the result, page by page
};

// Packs all jobs side by side: the heads and pages of all of them share the threads.
void seal(std::vector<SealJob> & jobs, int threads);

} // namespace vidkv
