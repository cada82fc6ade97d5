// Pages that the host addresses by number: packed bytes in its memory, f16 rows beside them while they are needed (vidkv/blocks.h).
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <new>
#include <vector>

#include "cache/store.h"
#include "vidkv/blocks.h"

namespace vidkv {

// Where the parts of a block lie in the host's memory: [keys' page][values' page][order of channels][means], each from a multiple of 64.
struct BlockLayout {
    BlockLayout(const vidkv_params & params, int heads, int dim);
    bool packs(vidkv_side side) const { return side == VIDKV_KEYS ? packs_keys : packs_values; }
    int channels() const { return kv_heads * head_dim; }
    size_t row_elements() const {
        return static_cast<size_t>(page_tokens) * static_cast<size_t>(channels());
    }                                                              // of one side
    size_t order_bytes() const { return head_dim <= 256 ? 1 : 2; } // of a channel

    int kv_heads, head_dim, sinks;
    bool packs_keys, packs_values, has_means;
    KeyLayout keys;
    ValueLayout values;
    size_t values_at = 0, order_at = 0, means_at = 0, bytes = 0;
};

// Bytes on a cache line's boundary.
struct AlignedBytesDelete {
    void operator()(uint8_t * data) const { ::operator delete[](data, std::align_val_t{64}); }
};
using AlignedBytes = std::unique_ptr<uint8_t[], AlignedBytesDelete>;

// Rows of tokens one after the other: k and v [kv_heads][head_dim], q [heads][head_dim].
struct TokenRows {
    const float *k, *v, *q;
    int64_t k_stride, v_stride, q_stride;
    int heads;
};

class Blocks {
  public:
    Blocks(const vidkv_blocks_shape & shape, const vidkv_params & params);

    const BlockLayout & layout() const { return layout_; }
    int64_t count() const { return static_cast<int64_t>(blocks_.size()); }
    int residual() const { return params_.residual_length; }

    // Before tokens are written from `cell` on: what lies there and behind is forgotten. first: the token of its
    // text that the block begins with.
    vidkv_status prepare(int64_t block, int cell, int64_t first);
    // From now on blocks that begin at token `from` of their text or behind it, up to the next `from` that was learned, begin with the
    // statistics of these queries; no tokens: everything learned is forgotten.
    void learn(int64_t from, const float * q, int64_t tokens, int heads, int64_t token_stride);
    // Then n tokens; several blocks may be filled side by side.
    void fill(int64_t block, int cell, int n, const TokenRows & tokens);
    int filled(int64_t block) const { return blocks_[static_cast<size_t>(block)].filled; }
    bool sealed(int64_t block) const { return blocks_[static_cast<size_t>(block)].sealed; }
    void seal(std::vector<int64_t> blocks, int threads);

    // The end of a batch: `window` are the blocks whose rows are still wanted. Rows of packed blocks go, and blocks that are not full are
    // packed as they are where too many of them were not named lately.
    void settle(const std::vector<int64_t> & window, int threads);

    // rows: read from the f16 rows if they are there.
    PageView view(vidkv_side side, int64_t block, int kv_head, bool rows) const;
    void plan(int64_t block, int kv_head, ChannelPlan & out) const;
    void fetch_plan(int64_t block, int kv_head) const; // into the processor's cache
    void read(vidkv_side side, int64_t block, uint16_t * rows) const;

    size_t export_bytes(int64_t block) const;
    void export_to(int64_t block, uint8_t * out) const;
    vidkv_status import_from(int64_t block, const uint8_t * bytes, size_t size);
    vidkv_blocks_stats stats() const;

  private:
    struct Block {
        AlignedBytes rows;                 // f16 rows of the sides that are packed, keys first; null: packed alone
        std::unique_ptr<uint16_t[]> sinks; // f16 rows of the sink tokens, keys first; packed blocks that begin a text
        std::unique_ptr<QueryStatistics> queries; // while it fills
        int64_t used = 0;                         // the clock when its rows were last wanted
        uint8_t filled = 0;                       // cells written, from the first on
        bool sealed = false, begins = false, listed = false;
    };

    uint8_t * memory(int64_t block) const { return memory_ + static_cast<size_t>(block) * stride_; }
    uint16_t * rows_of(const Block & block, vidkv_side side) const;
    uint16_t * rows_of(int64_t block, vidkv_side side) const; // f16 sides too
    size_t rows_bytes() const;
    const QueryStatistics * learned_for(int64_t first) const;
    int sinks_in(const Block & block) const { return block.begins ? layout_.sinks : 0; }
    void open(int64_t index);
    void take_keys(int64_t index, const SealJob & job);
    size_t sink_row_bytes() const { return 2 * 2 * static_cast<size_t>(layout_.channels()); } // keys and values
    void plan_in(const uint8_t * bytes, int kv_head, ChannelPlan & out) const;
    void keep_sinks(Block & block);
    bool is_sound_block(const uint8_t * bytes) const;

    vidkv_params params_;
    BlockLayout layout_;
    uint8_t * memory_;
    size_t stride_;
    size_t spare_;
    std::vector<Block> blocks_;
    std::vector<int64_t> listed_;                // blocks with rows of their own
    std::map<int64_t, QueryStatistics> learned_; // by the token from which on they count
    int64_t clock_ = 1;
};

vidkv_status check_blocks(const vidkv_blocks_shape & shape, const vidkv_params & params);

} // namespace vidkv
