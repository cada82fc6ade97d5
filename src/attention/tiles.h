// A sealed page of one KV head against a block of query rows: turns the codecs' metadata into what the kernels take.
#pragma once

#include "kernels/kernels.h"
#include "kernels/prefetch.h"
#include "attention/scratch.h"
#include "codec/key_page.h"
#include "codec/value_page.h"

namespace vidkv {

// Queries of up to row_block rows in plan order, scaled: [rows][stride], zeros up to a multiple of 64 channels.
struct QueryRows {
    const float * q;
    int64_t stride;
    int rows;
    const float * base; // per row: what every sealed page adds to the score
};

// Finds the codes of a key page and brings its steps into scratch.step and scratch.center.
class KeyTile {
  public:
    KeyTile(const Kernels & kernels, const KeyLayout & layout, const KeyPage & page, int rows, TileScratch & scratch);
    // Where the product is by levels, as it is for more query rows (`rows`) than one product takes: these -> scratch.levels, once.
    void unpack();
    void score(const QueryRows & queries, Fetch & soon) const; // -> scratch.scores

  private:
    void learn_paper(const KeyPage & page);
    void list_paper_quads();
    void find_paper_parts();
    void learn_trellis(const KeyPage & page);
    uint32_t sort_quads(const uint8_t * quad_codes, int first, int end, uint32_t packed);
    void list_quads(const uint8_t * quad_codes, int quads);
    void add_run(const KeyRun & run);
    void add_part(const LevelRun & part);

    const Kernels & kernels_;
    const KeyLayout & layout_;
    const KeyPage & page_;
    TileScratch & scratch_;
    const bool by_codes_; // products read the codes; otherwise unpacked levels
    const int padded_;    // channels
    int centered_ = 0;
    bool unpacked_;
};

// Weighted sums of a block of rows: in natural channels, and of trellis values in the rotated ones.
struct ValueSums {
    float * natural;
    float * rotated;
    int64_t stride;
};

class ValueTile {
  public:
    ValueTile(const Kernels & kernels, const ValueLayout & layout, const ValuePage & page, int rows, TileScratch & scratch);
    // How scratch.scores (weights by now) are packed.
    WeightRule rule() const;
    // Once all rows are packed: the levels -> scratch.levels, where the product is by levels.
    void unpack() const;
    void add(int rows, const PackedWeights & packed, const ValueSums & sums, Fetch & soon);

  private:
    void learn_paper();
    void learn_trellis();
    void learn_shared(float * scale);

    const Kernels & kernels_;
    const ValueLayout & layout_;
    const ValuePage & page_;
    TileScratch & scratch_;
    bool by_codes_ = false;  // products read the codes; otherwise unpacked levels
    ValueProduct & product_; // runs of code none: ternary digits
    const float * slot_scale_ = nullptr;
    const float *along_ = nullptr, *direction_ = nullptr; // trellis, a page with a direction
};

} // namespace vidkv
