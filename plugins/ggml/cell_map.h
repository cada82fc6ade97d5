// Where the host's cells of one stream lie in the stores. A text (a sequence of the host, or what several have in common)
// fills pages of its own in the order in which it is written, wherever the host puts its cells; pages are packed when the
// text has moved on.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <vector>

namespace vidkv_ggml {

// Which cells each token of a batch attends to: [tokens][cells] in f16 or f32, -inf hides. Without rows, every token sees
// the one before it.
struct MaskView {
    const uint16_t * halves = nullptr;
    const float * floats = nullptr;
    int64_t stride = 0, cells = 0;

    bool is_there() const { return halves || floats; }
    bool sees(int64_t token, int64_t cell) const {
        constexpr uint16_t hidden = 0xfc00; // -inf
        if (cell >= cells) return false;
        return halves ? halves[token * stride + cell] != hidden
                      : floats[token * stride + cell] != -std::numeric_limits<float>::infinity();
    }
};

class CellMap {
  public:
    static constexpr int64_t page_cells = 128;

    // window: newest tokens of a text that stay as they are (of whole pages).
    CellMap(int64_t cells, int64_t window);

    // What the stores must do, in this order, before the rows of a placed batch are written.
    struct Changes {
        std::vector<int64_t> erased; // places that hold nothing any more
        std::vector<int64_t> begun;  // pages, empty now, that a text begins with
    };

    // Gives the cells of a batch new places. Each token continues the text of the newest cell that it sees.
    Changes place(const int64_t * cells, int64_t n, const MaskView & mask);
    // Cells that come without a mask (a saved state): a text of its own, or more of the one placed so last.
    Changes restore(const int64_t * cells, int64_t n, bool begins);

    int64_t where(int64_t cell) const { return where_[static_cast<size_t>(cell)]; } // -1: nowhere
    bool is_identity() const { return moved_ == 0; } // every cell that lies anywhere lies at its own number
    int64_t places() const { return static_cast<int64_t>(pages_.size()) * page_cells; }
    bool is_packed(int64_t page) const { return pages_[static_cast<size_t>(page)].packed; }
    int64_t open_texts() const; // that have pages which are not packed
    // A mask row over cells as one over places(); n: cells of the row.
    void translate(const uint16_t * row, int64_t n, uint16_t * out) const;

    // The pages that have become old enough since the last call; from now on they count as packed and are never written
    // again.
    std::vector<int64_t> take_due();

    void clear();
    size_t bytes() const;

  private:
    struct Page {
        int64_t text = -1; // -1: free
        int live = 0;
        bool packed = false;
        std::array<int32_t, page_cells> cells; // whose row lies there; -1: nobody's
    };
    struct Text {
        std::vector<int64_t> open;             // its pages that are not packed; the last one is being filled
        bool packed_early = false;             // to its end, for others' sake
        int pages = 0;                         // packed ones too
        int64_t batch = 0;                     // that wrote it last
        int64_t batch_tokens = 0;              // of that batch
        int64_t first_rank = 0, last_rank = 0; // of that batch
        int64_t last_cell = -1;
    };
    struct Cell {
        int64_t rank = 0;   // tokens before it in its text
        int64_t serial = 0; // of its writing
    };

    void forget(int64_t cell, Changes & changes);
    void begin_batch();
    void forget_beyond(int64_t cells, Changes & changes);
    int64_t newest_seen(int64_t token, const int64_t * cells, const MaskView & mask) const; // -1: none
    int64_t continued_text(int64_t parent, int64_t token, const MaskView & mask, bool & begins);
    void put(int64_t cell, int64_t text, int64_t rank, Changes & changes);
    int64_t open_place(Text & text, int64_t id, Changes & changes, bool begins);
    int64_t text_of(int64_t cell) const { return pages_[static_cast<size_t>(where(cell) / page_cells)].text; }
    int64_t newest_rank(const Page & page) const;
    void take_due(Text & text, std::vector<int64_t> & due);
    void take_idle(std::vector<int64_t> & due);

    int64_t window_;
    std::vector<int64_t> where_; // [cell]
    std::vector<Cell> cells_;
    std::vector<Page> pages_;
    std::map<int64_t, Text> texts_;
    int64_t next_text_ = 0, restored_text_ = -1;
    int64_t batch_ = 0, serial_ = 0;
    int64_t newest_cell_ = -1; // written last of all
    int64_t moved_ = 0;
    int64_t written_cells_ = 0; // no cell from here on lies anywhere
    size_t batch_texts_ = 0;    // written by it so far
    size_t most_open_texts_;
};

} // namespace vidkv_ggml
