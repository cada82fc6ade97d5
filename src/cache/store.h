// Keys or values of one layer: pages of cells, open (f16 rows) or sealed (packed). See vidkv.h for the words.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "base/bytes.h"
#include "cache/page.h"
#include "cache/seal.h"
#include "cache/store_part.h"
#include "codec/channel_plan.h"
#include "codec/key_page.h"
#include "codec/layout.h"
#include "codec/query_statistics.h"
#include "codec/value_page.h"
#include "vidkv/vidkv.h"

namespace vidkv {

class Store;

// Pages of one sequence that are to be packed now.
struct SealOrder {
    Store * store;
    int sequence;
    std::vector<int64_t> pages;
};

// Packs the pages that are open and hold something, of all stores side by side; a store that packs nothing is left alone.
// Orders for the same sequence are one. All pages are packed, or none if there is no memory.
void seal_pages(std::vector<SealOrder> & orders, int threads);

// What attention needs to know of one page and one KV head.
struct PageView {
    PageState state = PageState::empty;
    const uint16_t * rows = nullptr;     // open: f16, token t of this head at rows + t * channels
    int held = 0;                        // open: rows there are; the tokens behind them are zeros
    const uint8_t * page = nullptr;      // sealed: for key_page or value_page
    int plan = 0;                        // sealed keys: which of the sequence's plans they are in
    const PageShifts * shifts = nullptr; // sealed keys: how cells have moved since; null: not
    // sealed, and the page begins with sink cells: their f16 rows (same stride), which replace the codes of tokens
    // 0 .. sink_count - 1
    const uint16_t * sink_rows = nullptr;
    int sink_count = 0;
};

class Store {
  public:
    Store(const vidkv_store_shape & shape, const vidkv_params & params);

    vidkv_side side() const { return static_cast<vidkv_side>(shape_.side); }
    const vidkv_params & params() const { return params_; }
    const vidkv_store_shape & shape() const { return shape_; }
    int channels() const { return shape_.channels; }
    int head_dim() const { return shape_.head_dim; } // 0: not known yet
    int kv_heads() const { return shape_.channels / shape_.head_dim; }
    int64_t cells() const { return shape_.cells; }
    int64_t pages() const { return pages_per_sequence_; }
    const KeyLayout & key_layout() const { return key_layout_; }       // keys, not f16, head_dim known
    const ValueLayout & value_layout() const { return value_layout_; } // values, likewise

    PageView view(int sequence, int64_t page, int kv_head) const;
    void fetch_view(int sequence, int64_t page) const; // into the processor's cache: what `view` reads
    // Keys: valid once the sequence has a sealed page. A sequence has more than one set of plans if pages were loaded into it.
    const ChannelPlan & plan(int sequence, int kv_head, int set = 0) const;
    bool shares_page(int a, int b, int64_t page) const; // the same bytes, not just like ones
    int plan_sets(int sequence) const { return static_cast<int>(sequences_[sequence].plans.size()); }

    vidkv_status set_head_dim(int head_dim);
    // Opens the pages of these cells: writing to them then needs no memory.
    vidkv_status make_room(int sequence, const int64_t * cells, int64_t n);
    template <typename Element> // float or uint16_t (f16)
    vidkv_status write(int sequence, const int64_t * cells, int64_t n, const Element * rows, int64_t stride);
    vidkv_status read(int sequence, int64_t first_cell, int64_t n, uint16_t * rows) const;
    vidkv_status observe_queries(int sequence, const float * q, int64_t tokens, int heads, int64_t token_stride,
                                 int64_t head_stride, int threads = 1);
    vidkv_status protect(int sequence, const int64_t * cells, int64_t n);
    vidkv_status protect_by_queries(const Store & keys, float scale);
    // As above, for these pages alone.
    void mark_by_queries(int sequence, const std::vector<int64_t> & pages, const Store & keys, float scale);
    vidkv_status seal(int threads);
    void keep_open() { keep_open_ = true; }
    vidkv_status truncate(int sequence, int64_t first_cell);
    vidkv_status erase(int sequence, const int64_t * cells, int64_t n);
    vidkv_status begin(int sequence, int64_t page);
    bool began() const; // any sequence
    vidkv_status copy_sequence(int from, int to);
    vidkv_status resize(int64_t cells, int sequences);
    std::unique_ptr<Store> clone() const;
    const uint8_t * sealed_page(int sequence, int64_t page, size_t & bytes) const; // null if it is not sealed
    vidkv_status channel_plan(int sequence, int kv_head, uint16_t * order, uint16_t * means) const;
    vidkv_status release_page(int sequence, int64_t index);
    // A packed page as bytes, and the page that has these rows taken from them (vidkv_store_export_page).
    vidkv_status export_page(int sequence, int64_t index, std::vector<uint8_t> & out, int & sinks) const;
    vidkv_status import_page(int sequence, int64_t index, const uint8_t * data, size_t size);
    // Moves keys in sealed pages; `left`: which of them lie elsewhere, or cannot be moved so.
    vidkv_status shift(int sequence, const int64_t * cells, const int32_t * positions, int64_t n,
                       const Ref<const Rope> & rope, float gain, std::vector<int64_t> & left);
    void clear();
    vidkv_store_stats stats() const;

    // A sequence for a file of `params`. wanted: these pages, which are numbered from 0 there; null: all that hold something.
    vidkv_status part_of(int sequence, const std::vector<int64_t> * wanted, const vidkv_params & params,
                         StorePart & part) const;
    // And back; places as for vidkv_file_load. On failure the store is as it was.
    vidkv_status load(const StoreSource & source, int sequence, const int64_t * places, int64_t n_places);
    // As far as the pages of this side depend on them.
    vidkv_status check_same_params(const vidkv_params & params) const;
    float bits() const { return bits_of(params_, shape_.side); }
    // Whether the sealed pages first .. last - 1 can be read: those of a file may be forged. Each is looked at once.
    vidkv_status check_mapped(int sequence, int64_t first, int64_t last) const;
    int64_t end(int sequence) const; // the last cell written, and one more

  private:
    const char * fault_of(const PageBytes & page) const;
    using Plans = std::vector<ChannelPlan>; // one per KV head
    struct SharedStatistics : QueryStatistics, Counted {
        using QueryStatistics::QueryStatistics;
        static void destroy(SharedStatistics * statistics) { delete statistics; }
    };
    struct Sequence {
        PageTable pages;
        std::vector<int64_t> open;                       // the open pages in no order: sealing looks at these alone
        std::vector<std::shared_ptr<const Plans>> plans; // keys only; none until the first seal
        int plan = 0;                                    // of the pages that are packed from now on
        Ref<SharedStatistics> queries;                   // trellis keys, once queries were observed
        int64_t writes = 0;                              // rows written since the last clear
        int64_t sealed_pages = 0;                        // released ones too: they keep the plans
        bool host_marks = false;                         // protect() was called
        bool mapped = false;                             // some pages may lie in files
        bool host_begins = false; // begin() was called: otherwise the first page begins with sink cells
    };

    bool read_plans(ByteReader & in, Plans & plans) const;
    int take_plans(Sequence & sequence, Plans plans) const;
    size_t row_bytes() const { return static_cast<size_t>(shape_.channels) * 2; }
    int rows_held(const Page & page) const { return static_cast<int>(page.bytes->size() / row_bytes()); } // of an open one
    static uint16_t * rows_of(const Page & page) { return reinterpret_cast<uint16_t *>(page.bytes->data()); }
    size_t plan_bytes() const;
    size_t sink_bytes() const {
        return static_cast<size_t>(params_.sink_tokens) * static_cast<size_t>(shape_.channels) * 2;
    }
    int sinks_in(const Sequence & sequence, int64_t page) const {
        return (sequence.host_begins ? sequence.pages[page].begins : page == 0) ? params_.sink_tokens : 0;
    }
    bool packs() const { return !keep_open_ && shape_.head_dim != 0 && !is_f16(params_, side()); }
    vidkv_status check_range(int sequence, int64_t first_cell, int64_t n) const;

    bool is_due(const Sequence & sequence, int64_t page) const;
    std::vector<int64_t> due_pages(const Sequence & sequence) const;
    PageBits used_cells(const Sequence & sequence, int64_t index) const; // written and no sink tokens
    void recount(Sequence & sequence) const;                             // derives `open` and `sealed_pages` from the pages
    Ref<PageBytes> make_open(int rows) const;                            // zeros, for so many f16 rows
    uint16_t * open_page(Sequence & sequence, int64_t index, int rows);
    uint16_t * row_to_write(Sequence & sequence, int64_t index, int token);
    void cut_page(Sequence & sequence, int64_t index, int kept);
    uint64_t shared_bytes(size_t sequence) const;
    void decode_page(const Sequence & sequence, int64_t index, uint16_t * rows) const;
    SealJob seal_job(const Sequence & sequence, const std::vector<int64_t> & pages) const;
    void take_sealed(Sequence & sequence, const std::vector<int64_t> & pages, SealJob & job,
                     std::shared_ptr<const Plans> chosen) noexcept;
    class PartWriter;
    class PartReader;
    vidkv_status pages_to_save(int sequence, const std::vector<int64_t> * wanted, std::vector<int64_t> & pages) const;
    friend void seal_pages(std::vector<SealOrder> & orders, int threads);

    vidkv_store_shape shape_;
    vidkv_params params_;
    int64_t pages_per_sequence_ = 0;
    KeyLayout key_layout_;
    ValueLayout value_layout_;
    std::vector<Sequence> sequences_;
    bool keep_open_ = false;
    int64_t pages_reopened_ = 0;
};

// Whether the key store makes use of queries: for trellis keys, or to protect the values that the queries attend to.
inline bool wants_queries(const vidkv_params & params) {
    const bool trellis_keys = params.key_codec == VIDKV_CODEC_TRELLIS && !is_f16(params, VIDKV_KEYS);
    return trellis_keys || (params.protect > 0.0f && !is_f16(params, VIDKV_VALUES));
}

// Sizes are bounded so that no count of bytes in a page overflows.
constexpr int32_t most_channels = 1 << 20, most_sequences = 1 << 16;
vidkv_status check_store(const vidkv_store_shape & shape, const vidkv_params & params);

// Bytes of a full store of this shape, all pages sealed except those of the residual window.
uint64_t planned_bytes(const vidkv_store_shape & shape, const vidkv_params & params);

} // namespace vidkv
