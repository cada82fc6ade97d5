// One call of attention, or several at once: what its parts in attention.cpp and page.cpp share.
#pragma once

#include <array>
#include <atomic>
#include <cmath>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "attention/page_source.h"
#include "attention/scratch.h"
#include "attention/tiles.h"
#include "base/softmax_math.h"
#include "codec/rotation.h"
#include "vidkv/vidkv.h"

namespace vidkv {

constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr float log2_e = exponential::log2_e; // scores count in units of log 2

// Consecutive query tokens and the heads that read one KV head. Row r: token r / heads_per_kv_head, head r % heads_per_kv_head.
struct Block {
    int kv_head;
    int64_t first_token;
    int tokens, rows;
};

struct Rows { // of a block
    int first = 0, count = 0;
    int end() const { return first + count; }
};

// What of a page is to be looked at: rows of tokens that see any of its cells, and how many leading cells these are.
struct Seen {
    Rows rows;
    int cells = 0;
    bool masked = false; // some of these rows do not see all cells alike
};

// Blocks of neighbouring KV heads and a chunk of pages: what a thread takes at once.
struct Item {
    Block block;   // of the first head
    int heads = 1; // head h has KV head block.kv_head + h and slot + h
    int64_t slot = 0, chunk = 0;
    int64_t first = 0, end = 0; // pages
};

// A page of an item.
struct PageAt {
    const Item * item = nullptr; // null: none
    int64_t page = 0;
    PageView keys, values;               // of the first head; the others' rows follow in f16
    std::array<KeyPage, most_heads> key; // where sealed
    std::array<ValuePage, most_heads> value;
};

// The queries of a block in a batch: the first thread that needs them prepares them, the last one that adds to their sums merges these.
struct alignas(64) BlockState {
    explicit BlockState(int64_t chunks) : chunks_left(chunks) {}
    enum : int { raw, in_work, ready };
    std::atomic<int> queries{raw};
    std::atomic<int64_t> chunks_left;
};

// The rows whose sums a chunk of pages has cleared and may have added to. Different threads write different chunks, so each has a
// cache line of its own.
struct alignas(64) SumsUsed {
    Rows natural, rotated;
};

// Queries of a block in the domain of sealed keys: [row][query_stride], and what every element adds to each row's score.
struct PlannedQueries {
    const float * rows;
    const float * bases;
};

// One head of the page at hand, and what is known of its part of the page while it is attended to.
struct HeadAt {
    int64_t slot;
    int head;
    TileScratch * scratch;
    std::optional<KeyTile> keys; // where sealed
    PlannedQueries queries;      // likewise
    std::optional<ValueTile> values;
    Prefetch soon;
};

class Attention {
  public:
    // Query tokens are counted through all calls. What is not said for each sequence is that of the first call.
    Attention(const PageSource & keys, const PageSource & values, std::span<const vidkv_attention_args> calls,
              const Kernels & kernels);
    ~Attention() { workspace_.end(); }
    void run();

  private:
    class Walk;
    void group_heads();
    Block block_at(int64_t index) const;
    int64_t groups() const { return (slots_ + heads_ - 1) / heads_; } // of KV heads, in the batch at hand
    int64_t items() const { return grouped_chunks_ * groups() + (chunks_ - grouped_chunks_) * slots_; }
    Item item_at(int64_t number) const;
    void work();
    void begin(const Item & item);
    void end(const Item & item);
    void prepare(int64_t slot);
    struct Token { // of a call
        const vidkv_attention_args & call;
        int64_t index;
        int number; // of the call
    };
    Token token_at(int64_t token) const;
    void plan_queries(const ChannelPlan & plan, const PageView & view, const Shift * shift, int64_t slot, Rows rows,
                      float * planned, float * bases) const;
    void finish(int64_t slot);

    void open_sums(Rows rows, int64_t slot, const PageAt & at) const;
    void find_codes(PageAt & at) const;
    void attend_page(const PageAt & now, const PageAt & next, const PageAt & after, Scratch & scratch) const;
    Fetch fetch_keys(const PageAt & at, int head, int rows) const;
    Fetch fetch_values(const PageAt & at, int head, int rows) const;
    void fetch_start(const PageAt & at) const;
    void fetch_now(const PageAt & at) const;
    Seen load_bias(const Block & block, int64_t page, Scratch & scratch) const;
    int load_bias(const Token & token, int64_t first_cell, float * bias, MaskKind & kind) const;
    bool sees_something(const Block & block, Rows rows, const Scratch & scratch) const;
    PlannedQueries planned_for(const PageAt & at, const HeadAt & of, Rows rows, Scratch & scratch) const;
    PlannedQueries turned(const PageAt & at, const HeadAt & of, const Shift & shift, Rows rows) const;
    QueryRows rows_of(const PlannedQueries & queries, Rows rows) const {
        return {queries.rows + rows.first * query_stride_, query_stride_, rows.count, queries.bases + rows.first};
    }
    void score(const PageAt & at, HeadAt & of, Rows rows, int count) const;
    void score_moved(const PageAt & at, const HeadAt & of, Rows rows) const;
    void weigh(const PageAt & at, HeadAt & of, Rows rows, const Seen & seen, PackedWeights & packed,
               const Scratch & scratch) const;
    void add_open(const PageAt & at, const HeadAt & of, int rows, int count, const ValueSums & sums) const;
    void merge_row(int64_t slot, int row, int head, float * out) const;

    float * queries(int64_t slot) const { return queries_ + slot * block_rows_ * query_stride_; }
    // set: of the channel plans that some page of the keys is packed with.
    float * planned(int64_t slot, int set) const {
        return planned_ + (slot * plan_sets_ + set) * block_rows_ * query_stride_;
    }
    float * bases(int64_t slot, int set) const { return bases_ + (slot * plan_sets_ + set) * block_rows_; }
    int64_t first_row(int64_t slot, int64_t chunk) const { return (slot * chunks_ + chunk) * block_rows_; }
    SoftmaxState * states(int64_t slot, int64_t chunk) const { return states_ + (slot * chunks_ + chunk) * state_stride_; }
    // Null where nothing was summed yet.
    ValueSums sums(int64_t slot, int64_t chunk, int row) const {
        const int64_t at = (first_row(slot, chunk) + row) * sum_stride_;
        const SumsUsed & used = used_[slot * chunks_ + chunk];
        const auto has = [&](const Rows & rows) { return row >= rows.first && row < rows.end(); };
        return {has(used.natural) ? natural_ + at : nullptr, has(used.rotated) ? rotated_ + at : nullptr, sum_stride_};
    }

    const PageSource & keys_;
    const PageSource & values_;
    const std::span<const vidkv_attention_args> calls_;
    const vidkv_attention_args & args_; // of the first
    std::vector<int64_t> first_tokens_; // [calls + 1]
    const Kernels & kernels_;
    const int key_dim_, value_dim_;
    const int64_t query_stride_, sum_stride_;
    const int heads_per_kv_head_;
    const int64_t tokens_; // of all calls
    const int64_t pages_;  // that hold the cells attended to
    const int block_tokens_, block_rows_;
    const int64_t state_stride_; // whole cache lines
    const int64_t token_blocks_, blocks_, batch_;
    std::vector<float> slopes_; // [heads]
    bool has_sealed_keys_ = false;
    int plan_sets_ = 1;
    std::shared_ptr<const Rotation> rotation_; // of sealed trellis values, if there are any
    int64_t chunk_pages_ = 1, chunks_ = 1;
    int heads_ = 1;              // KV heads that go through pages together,
    int64_t grouped_chunks_ = 0; // in the first so many chunks

    int64_t first_block_ = 0, slots_ = 0; // of the batch at hand; slot s holds block first_block_ + s
    std::atomic<int64_t> next_item_{0};
    BlockState * block_states_ = nullptr; // [slot]
    Workspace & workspace_ = Workspace::of_this_thread();
    float * queries_ = nullptr;                     // [slot][row][query_stride]: scaled
    float * planned_ = nullptr;                     // [slot][set][row][query_stride]: the same in the domain of sealed keys
    float * bases_ = nullptr;                       // [slot][set][row]: what every page of these plans adds to the score
    float *natural_ = nullptr, *rotated_ = nullptr; // [slot][chunk][row][sum_stride]: weighted sums of values
    SumsUsed * used_ = nullptr;                     // [slot][chunk]
    SoftmaxState * states_ = nullptr;               // [slot][chunk][state_stride]
    ScratchPool * scratch_ = nullptr;
};

// The pages that one thread goes through. It takes an item while it still has pages of the one before, so that their bytes can be fetched in
// time; but not of items that are as short as the look ahead.
class Attention::Walk {
  public:
    explicit Walk(Attention & attention) : attention_(attention), ahead_(attention.chunk_pages_ >= least_ahead) {}
    bool take(); // an item that follows upon none; false: there is none left
    const Item & item() const { return items_[at_]; }
    void step(PageAt & at); // to the next page, if there is one that is known by now

  private:
    static constexpr int64_t least_ahead = 4;
    Attention & attention_;
    const bool ahead_;
    std::array<Item, 3> items_; // the three pages that are looked at at once may be of as many
    size_t at_ = 0;             // the one taken last
    int64_t page_ = 0;          // of it, that comes next
};

} // namespace vidkv
