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

// How cells of the host lie among their pages, for a file. Pages are counted from 0, in the order of their places.
struct SavedCells {
    // Cells that follow each other, in the order of the host, in place (128 * page + token), rank and order of writing.
    struct Run {
        int64_t cells, place, rank, order;
    };
    struct Text {
        int64_t batch_tokens, first_rank, last_rank; // as in CellMap
        int64_t last_cell;                           // in the order of the host; -1: not among them
        std::vector<int64_t> open;                   // pages that are not packed; the last one is being filled
    };
    std::vector<int64_t> text_of_page;
    std::vector<Text> texts;
    std::vector<Run> runs;

    int64_t cells() const;
    int64_t pages() const { return static_cast<int64_t>(text_of_page.size()); }
    // False where no map could have made it: it may come from a stranger's file.
    bool is_sound() const;
    std::vector<int64_t> numbers() const;
    static SavedCells from_numbers(const int64_t * numbers, size_t n); // throws std::out_of_range
    // One text, cell after cell, of which the first pages are packed.
    static SavedCells in_order(int64_t cells, int64_t packed_pages);
};

// Where a restored cell lay in its text before: in page `page` of those, which begins with `sinks` sink cells. page -1: it is not
// known.
struct FormerPlace {
    int64_t page = -1;
    int token = 0, sinks = 0;
};

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
    // former: one for each cell, or null; those of one page go together into one again.
    Changes restore(const int64_t * cells, int64_t n, bool begins, const FormerPlace * former = nullptr);

    // Where these cells lie; `pages`: the pages that hold them, in the order of the saved ones. All must lie somewhere.
    SavedCells save(const std::vector<int64_t> & cells, std::vector<int64_t> & pages) const;
    // Gives as many cells the places of saved ones, in pages of their own, which `pages` names. saved is sound, and cells are
    // each another one.
    Changes take(const SavedCells & saved, const std::vector<int64_t> & cells, std::vector<int64_t> & pages);

    int64_t where(int64_t cell) const { return where_[static_cast<size_t>(cell)]; } // -1: nowhere
    bool is_identity() const { return moved_ == 0; } // every cell that lies anywhere lies at its own number
    int64_t places() const { return static_cast<int64_t>(pages_.size()) * page_cells; }
    bool is_full(int64_t page) const { return pages_[static_cast<size_t>(page)].live == page_cells; }
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
        bool former = false;                   // of cells that lay together before: no others are put there
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
    void put(int64_t cell, int64_t text, int64_t rank, Changes & changes, const FormerPlace & former = {});
    int64_t former_place(int64_t text, const FormerPlace & former, Changes & changes); // -1: taken, or not known
    int64_t page_of_sinks(int64_t text, const FormerPlace & former) const;             // -1: none
    int64_t open_place(Text & text, int64_t id, Changes & changes, bool begins);
    int64_t free_page();
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
    std::map<int64_t, int64_t> former_pages_; // of the restored text: the page that it is now
    int64_t batch_ = 0, serial_ = 0;
    int64_t newest_cell_ = -1; // written last of all
    int64_t moved_ = 0;
    int64_t written_cells_ = 0; // no cell from here on lies anywhere
    size_t batch_texts_ = 0;    // written by it so far
    size_t most_open_texts_;
};

} // namespace vidkv_ggml
