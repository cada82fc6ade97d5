// Cells of a CellMap as numbers, and back.
#include <algorithm>
#include <numeric>
#include <stdexcept>

#include "cell_map.h"

namespace vidkv_ggml {

namespace {

constexpr int64_t most = int64_t{1} << 40; // of any number in a file: sums of them do not overflow

bool within(int64_t x, int64_t least, int64_t below) { return x >= least && x < below; }

// One number after the other, of a list that may be too short.
class Numbers {
  public:
    Numbers(const int64_t * numbers, size_t n) : at_(numbers), end_(numbers + n) {}
    int64_t next() {
        if (at_ == end_) throw std::out_of_range("the cells of a saved cache are cut off");
        return *at_++;
    }
    // A count of things, each of at least one number.
    size_t count() {
        const int64_t n = next();
        if (n < 0 || n > end_ - at_) throw std::out_of_range("the cells of a saved cache are cut off");
        return static_cast<size_t>(n);
    }
    std::vector<int64_t> list() {
        std::vector<int64_t> all(count());
        for (int64_t & each : all) each = next();
        return all;
    }

  private:
    const int64_t *at_, *end_;
};

void append(std::vector<int64_t> & to, const std::vector<int64_t> & list) {
    to.push_back(static_cast<int64_t>(list.size()));
    to.insert(to.end(), list.begin(), list.end());
}

// Each number's place among all of them by size.
std::vector<int64_t> places_by_size(const std::vector<int64_t> & numbers) {
    std::vector<size_t> sorted(numbers.size());
    std::iota(sorted.begin(), sorted.end(), size_t{0});
    std::sort(sorted.begin(), sorted.end(), [&](size_t a, size_t b) { return numbers[a] < numbers[b]; });
    std::vector<int64_t> places(numbers.size());
    for (size_t i = 0; i < sorted.size(); ++i) places[sorted[i]] = static_cast<int64_t>(i);
    return places;
}

bool follows(const SavedCells::Run & run, const SavedCells::Run & cell) {
    return cell.place == run.place + run.cells && cell.rank == run.rank + run.cells && cell.order == run.order + run.cells;
}

} // namespace

int64_t SavedCells::cells() const {
    return std::accumulate(runs.begin(), runs.end(), int64_t{0},
                           [](int64_t sum, const Run & run) { return sum + run.cells; });
}

bool SavedCells::is_sound() const {
    constexpr int64_t page_cells = CellMap::page_cells;
    int64_t n = 0;
    for (const Run & run : runs) {
        if (!within(run.cells, 1, most) || !within(run.place, 0, most) || !within(run.rank, 0, most)) return false;
        if (run.place + run.cells > pages() * page_cells) return false;
        n += run.cells;
        if (n > pages() * page_cells) return false;
    }
    std::vector<char> held(static_cast<size_t>(pages() * page_cells)), in_page(text_of_page.size()),
        written(static_cast<size_t>(n));
    for (const Run & run : runs) {
        if (!within(run.order, 0, n) || run.order + run.cells > n) return false;
        for (int64_t i = 0; i < run.cells; ++i) {
            if (held[run.place + i]++ || written[run.order + i]++) return false;
            in_page[(run.place + i) / page_cells] = 1;
        }
    }
    std::vector<char> has_page(texts.size()), open(text_of_page.size());
    for (const int64_t text : text_of_page) {
        if (!within(text, 0, static_cast<int64_t>(texts.size()))) return false;
        has_page[text] = 1;
    }
    for (size_t t = 0; t < texts.size(); ++t) {
        const Text & text = texts[t];
        if (!within(text.last_cell, -1, n) || !within(text.batch_tokens, 0, most) || !within(text.first_rank, 0, most) ||
            !within(text.last_rank, 0, most))
            return false;
        for (const int64_t page : text.open) {
            if (!within(page, 0, pages()) || text_of_page[page] != static_cast<int64_t>(t) || open[page]++) return false;
        }
    }
    return std::count(in_page.begin(), in_page.end(), 0) == 0 && std::count(has_page.begin(), has_page.end(), 0) == 0;
}

std::vector<int64_t> SavedCells::numbers() const {
    std::vector<int64_t> out;
    append(out, text_of_page);
    out.push_back(static_cast<int64_t>(texts.size()));
    for (const Text & text : texts) {
        out.insert(out.end(), {text.batch_tokens, text.first_rank, text.last_rank, text.last_cell});
        append(out, text.open);
    }
    out.push_back(static_cast<int64_t>(runs.size()));
    for (const Run & run : runs) out.insert(out.end(), {run.cells, run.place, run.rank, run.order});
    return out;
}

SavedCells SavedCells::from_numbers(const int64_t * numbers, size_t n) {
    Numbers in(numbers, n);
    SavedCells saved;
    saved.text_of_page = in.list();
    saved.texts.resize(in.count());
    for (Text & text : saved.texts) {
        text.batch_tokens = in.next();
        text.first_rank = in.next();
        text.last_rank = in.next();
        text.last_cell = in.next();
        text.open = in.list();
    }
    saved.runs.resize(in.count());
    for (Run & run : saved.runs) run = {in.next(), in.next(), in.next(), in.next()};
    return saved;
}

SavedCells SavedCells::in_order(int64_t cells, int64_t packed_pages) {
    SavedCells saved;
    saved.text_of_page.resize(static_cast<size_t>((cells + CellMap::page_cells - 1) / CellMap::page_cells));
    saved.texts.push_back({1, cells - 1, cells - 1, cells - 1, {}});
    for (int64_t page = packed_pages; page < saved.pages(); ++page) saved.texts[0].open.push_back(page);
    saved.runs.push_back({cells, 0, 0, 0});
    return saved;
}

SavedCells CellMap::save(const std::vector<int64_t> & cells, std::vector<int64_t> & pages) const {
    pages.clear();
    for (const int64_t cell : cells) pages.push_back(where(cell) / page_cells);
    std::sort(pages.begin(), pages.end());
    pages.erase(std::unique(pages.begin(), pages.end()), pages.end());
    const auto number_of = [&](int64_t page) { // -1: none
        const auto found = std::lower_bound(pages.begin(), pages.end(), page);
        return found == pages.end() || *found != page ? int64_t{-1} : int64_t{found - pages.begin()};
    };
    SavedCells saved;
    std::map<int64_t, int64_t> number_of_text;
    for (const int64_t page : pages) {
        const int64_t id = pages_[page].text;
        const auto [known, is_new] = number_of_text.try_emplace(id, static_cast<int64_t>(saved.texts.size()));
        saved.text_of_page.push_back(known->second);
        if (!is_new) continue;
        const Text & text = texts_.at(id);
        const auto last = std::find(cells.begin(), cells.end(), text.last_cell);
        SavedCells::Text copy{text.batch_tokens,
                              text.first_rank,
                              text.last_rank,
                              last == cells.end() ? int64_t{-1} : int64_t{last - cells.begin()},
                              {}};
        for (const int64_t open : text.open) {
            if (number_of(open) >= 0) copy.open.push_back(number_of(open));
        }
        saved.texts.push_back(std::move(copy));
    }
    std::vector<int64_t> serials;
    for (const int64_t cell : cells) serials.push_back(cells_[cell].serial);
    const std::vector<int64_t> order = places_by_size(serials);
    for (size_t i = 0; i < cells.size(); ++i) {
        const int64_t place = where(cells[i]);
        const SavedCells::Run cell{1, number_of(place / page_cells) * page_cells + place % page_cells,
                                   cells_[cells[i]].rank, order[i]};
        if (!saved.runs.empty() && follows(saved.runs.back(), cell))
            ++saved.runs.back().cells;
        else
            saved.runs.push_back(cell);
    }
    return saved;
}

CellMap::Changes CellMap::take(const SavedCells & saved, const std::vector<int64_t> & cells, std::vector<int64_t> & pages) {
    Changes changes;
    for (const int64_t cell : cells) forget(cell, changes);
    begin_batch();
    restored_text_ = -1;
    pages.clear();
    for (const int64_t text : saved.text_of_page) {
        pages.push_back(free_page());
        Page & page = pages_[pages.back()];
        page.text = next_text_ + text;
        page.packed = true;
        ++texts_[page.text].pages;
    }
    for (size_t t = 0; t < saved.texts.size(); ++t) {
        const SavedCells::Text & from = saved.texts[t];
        Text & text = texts_[next_text_ + static_cast<int64_t>(t)];
        text.batch = batch_;
        text.batch_tokens = from.batch_tokens;
        text.first_rank = from.first_rank;
        text.last_rank = from.last_rank;
        text.last_cell = from.last_cell < 0 ? -1 : cells[from.last_cell];
        for (const int64_t page : from.open) {
            pages_[pages[page]].packed = false;
            text.open.push_back(pages[page]);
        }
    }
    next_text_ += static_cast<int64_t>(saved.texts.size());
    size_t i = 0;
    for (const SavedCells::Run & run : saved.runs) {
        for (int64_t j = 0; j < run.cells; ++j, ++i) {
            const int64_t from = run.place + j, index = pages[from / page_cells],
                          place = index * page_cells + from % page_cells;
            pages_[index].cells[from % page_cells] = static_cast<int32_t>(cells[i]);
            ++pages_[index].live;
            where_[cells[i]] = place;
            cells_[cells[i]] = {run.rank + j, serial_ + run.order + j + 1};
            if (run.order + j + 1 == static_cast<int64_t>(cells.size())) newest_cell_ = cells[i];
            if (place != cells[i]) ++moved_;
        }
    }
    serial_ += static_cast<int64_t>(cells.size());
    return changes;
}

} // namespace vidkv_ggml
