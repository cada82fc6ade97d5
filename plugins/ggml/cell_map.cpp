#include "cell_map.h"

#include <algorithm>
#include <utility>

namespace vidkv_ggml {

namespace {

// Tokens of a batch this small may be drafts that are taken back: only the first counts as said.
constexpr int64_t most_drafts = 32;

// Texts whose newest pages are kept open; beyond that, those written longest ago are packed to the end. Nothing tells which of them
// the host has forgotten: as many as llama-server has slots by default, or as were written in one batch, and one more for each that was
// packed early and goes on.
constexpr size_t least_open_texts = 4, most_open_texts = 32;

} // namespace

CellMap::CellMap(int64_t cells, int64_t window)
    : window_(std::max(window, page_cells)), where_(static_cast<size_t>(cells), -1), cells_(static_cast<size_t>(cells)),
      most_open_texts_(least_open_texts) {}

void CellMap::clear() { *this = CellMap(static_cast<int64_t>(where_.size()), window_); }

size_t CellMap::bytes() const {
    return where_.size() * (sizeof(int64_t) + sizeof(Cell)) + pages_.capacity() * sizeof(Page) +
           texts_.size() * sizeof(Text);
}

// The cell is written anew: what lay in its place is gone, and the place is free again if its page is still open.
void CellMap::forget(int64_t cell, Changes & changes) {
    const int64_t place = where(cell), index = place / page_cells;
    if (place < 0) return;
    where_[cell] = -1;
    if (place != cell) --moved_;
    changes.erased.push_back(place);
    Page & page = pages_[index];
    page.cells[place % page_cells] = -1;
    if (--page.live > 0) return;
    Text & text = texts_[page.text];
    std::erase(text.open, index);
    if (--text.pages == 0) texts_.erase(page.text);
    page.text = -1;
    page.packed = false;
}

// A mask reaches to the last cell that the host still uses.
void CellMap::forget_beyond(int64_t cells, Changes & changes) {
    for (int64_t cell = cells; cell < written_cells_; ++cell) forget(cell, changes);
    written_cells_ = std::min(written_cells_, cells);
}

int64_t CellMap::newest_seen(int64_t token, const int64_t * cells, const MaskView & mask) const {
    if (token > 0 && (!mask.is_there() || mask.sees(token, cells[token - 1]))) return cells[token - 1];
    const bool still_there = newest_cell_ >= 0 && where(newest_cell_) >= 0;
    if (still_there && (!mask.is_there() || mask.sees(token, newest_cell_))) return newest_cell_;
    int64_t newest = -1;
    const int64_t n =
        mask.is_there() ? std::min(mask.cells, static_cast<int64_t>(where_.size())) : static_cast<int64_t>(where_.size());
    for (int64_t cell = 0; cell < n; ++cell) {
        if (where(cell) < 0 || (newest >= 0 && cells_[cell].serial < cells_[newest].serial)) continue;
        if (!mask.is_there() || mask.sees(token, cell)) newest = cell;
    }
    return newest;
}

// Two tokens of one batch that do not see each other are of different texts, though both continue the same one.
int64_t CellMap::continued_text(int64_t parent, int64_t token, const MaskView & mask, bool & begins) {
    begins = parent < 0;
    if (parent >= 0) {
        const int64_t id = text_of(parent);
        const Text & text = texts_[id];
        if (text.batch != batch_ || !mask.is_there() || mask.sees(token, text.last_cell)) return id;
    }
    return next_text_++;
}

void CellMap::begin_batch() {
    ++batch_;
    batch_texts_ = 0;
}

CellMap::Changes CellMap::place(const int64_t * cells, int64_t n, const MaskView & mask) {
    Changes changes;
    begin_batch();
    restored_text_ = -1;
    if (mask.is_there()) forget_beyond(mask.cells, changes);
    for (int64_t i = 0; i < n; ++i) forget(cells[i], changes);
    for (int64_t i = 0; i < n; ++i) {
        if (where(cells[i]) >= 0) continue; // twice in one batch
        bool begins = false;
        const int64_t parent = newest_seen(i, cells, mask);
        const int64_t rank = parent < 0 ? 0 : cells_[parent].rank + 1;
        put(cells[i], continued_text(parent, i, mask, begins), rank, changes);
    }
    return changes;
}

CellMap::Changes CellMap::restore(const int64_t * cells, int64_t n, bool begins, const FormerPlace * former) {
    Changes changes;
    for (int64_t i = 0; i < n; ++i) forget(cells[i], changes);
    if (begins || !texts_.contains(restored_text_)) {
        begin_batch();
        restored_text_ = next_text_++;
        former_pages_.clear();
    }
    for (int64_t i = 0; i < n; ++i) {
        if (where(cells[i]) >= 0) continue;
        const auto text = texts_.find(restored_text_);
        put(cells[i], restored_text_, text == texts_.end() ? 0 : text->second.last_rank + 1, changes,
            former ? former[i] : FormerPlace{});
    }
    return changes;
}

// Where rows come one by one, the sink tokens came before anything told of their page: they began one, and lie there alone.
int64_t CellMap::page_of_sinks(int64_t id, const FormerPlace & former) const {
    const auto text = texts_.find(id);
    const int64_t place = newest_cell_ < 0 ? -1 : where(newest_cell_);
    if (former.sinks == 0 || former.token != former.sinks || place < 0 || text == texts_.end() || text->second.pages != 1)
        return -1;
    const Page & page = pages_[place / page_cells];
    const bool alone =
        page.text == id && !page.packed && page.live == former.sinks && place % page_cells == former.sinks - 1;
    return alone ? place / page_cells : -1;
}

int64_t CellMap::former_place(int64_t id, const FormerPlace & former, Changes & changes) {
    if (former.page < 0) return -1;
    const auto [known, is_new] = former_pages_.try_emplace(former.page, -1);
    if (is_new) known->second = page_of_sinks(id, former);
    if (is_new && known->second < 0) {
        known->second = free_page();
        Page & page = pages_[known->second];
        page.text = id;
        texts_[id].open.push_back(known->second);
        ++texts_[id].pages;
        if (former.sinks > 0) changes.begun.push_back(known->second);
    }
    Page & page = pages_[known->second];
    page.former = page.former || is_new;
    const bool is_free = page.text == id && page.former && !page.packed && page.cells[former.token] < 0;
    return is_free ? known->second * page_cells + former.token : -1;
}

void CellMap::put(int64_t cell, int64_t id, int64_t rank, Changes & changes, const FormerPlace & former) {
    int64_t place = former_place(id, former, changes);
    Text & text = texts_[id];
    if (std::exchange(text.packed_early, false)) most_open_texts_ = std::min(most_open_texts_ + 1, most_open_texts);
    if (place < 0) place = open_place(text, id, changes, rank == 0 && text.pages == 0);
    Page & page = pages_[place / page_cells];
    page.cells[place % page_cells] = static_cast<int32_t>(cell);
    ++page.live;
    where_[cell] = place;
    cells_[cell] = {rank, ++serial_};
    newest_cell_ = cell;
    if (place != cell) ++moved_;
    written_cells_ = std::max(written_cells_, cell + 1);
    if (text.batch != batch_) {
        text.batch_tokens = 0;
        most_open_texts_ = std::clamp(++batch_texts_, most_open_texts_, most_open_texts);
    }
    if (text.batch_tokens++ == 0) text.first_rank = rank;
    text.batch = batch_;
    text.last_rank = rank;
    text.last_cell = cell;
}

// A free place in a page that is not packed, or in a new one.
int64_t CellMap::open_place(Text & text, int64_t id, Changes & changes, bool begins) {
    for (const int64_t index : text.open) {
        const Page & page = pages_[index];
        if (page.live == page_cells || page.former) continue;
        return index * page_cells + (std::find(page.cells.begin(), page.cells.end(), -1) - page.cells.begin());
    }
    const int64_t index = free_page();
    pages_[index].text = id;
    text.open.push_back(index);
    ++text.pages;
    if (begins) changes.begun.push_back(index);
    return index * page_cells;
}

int64_t CellMap::free_page() {
    size_t index = 0;
    while (index < pages_.size() && pages_[index].text >= 0) ++index;
    if (index == pages_.size()) pages_.emplace_back();
    pages_[index] = Page();
    pages_[index].cells.fill(-1);
    return static_cast<int64_t>(index);
}

int64_t CellMap::open_texts() const {
    return std::count_if(texts_.begin(), texts_.end(), [](const auto & each) { return !each.second.open.empty(); });
}

void CellMap::translate(const uint16_t * row, int64_t n, uint16_t * out) const {
    constexpr uint16_t hidden = 0xfc00;
    for (size_t index = 0; index < pages_.size(); ++index) {
        const Page & page = pages_[index];
        uint16_t * to = out + index * page_cells;
        for (int64_t i = 0; i < page_cells; ++i) {
            const int32_t cell = page.text < 0 ? -1 : page.cells[i];
            to[i] = cell >= 0 && cell < n ? row[cell] : hidden;
        }
    }
}

int64_t CellMap::newest_rank(const Page & page) const {
    int64_t newest = -1;
    for (const int32_t cell : page.cells) {
        if (cell >= 0) newest = std::max(newest, cells_[cell].rank);
    }
    return newest;
}

void CellMap::take_due(Text & text, std::vector<int64_t> & due) {
    const int64_t filled = text.open.empty() ? -1 : text.open.back(); // or being filled
    const int64_t said = text.batch_tokens > most_drafts ? text.last_rank : text.first_rank;
    std::erase_if(text.open, [&](int64_t index) {
        Page & page = pages_[index];
        const bool being_filled = index == filled && page.live < page_cells;
        if (being_filled || said - newest_rank(page) < window_) return false;
        due.push_back(index);
        return page.packed = true;
    });
}

void CellMap::take_idle(std::vector<int64_t> & due) {
    std::vector<Text *> open;
    for (auto & [id, text] : texts_) {
        if (!text.open.empty()) open.push_back(&text);
    }
    if (open.size() <= most_open_texts_) return;
    std::sort(open.begin(), open.end(), [](const Text * a, const Text * b) { return a->batch > b->batch; });
    for (size_t i = most_open_texts_; i < open.size(); ++i) {
        for (const int64_t index : open[i]->open) {
            pages_[index].packed = true;
            due.push_back(index);
        }
        open[i]->open.clear();
        open[i]->packed_early = true;
    }
}

std::vector<int64_t> CellMap::take_due() {
    std::vector<int64_t> due;
    for (auto & [id, text] : texts_) take_due(text, due);
    take_idle(due);
    std::sort(due.begin(), due.end());
    return due;
}

} // namespace vidkv_ggml
