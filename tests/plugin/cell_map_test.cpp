// Where cells are placed: texts fill pages of their own, age by their own tokens, and give places back.
#include "cell_map.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <numeric>
#include <random>
#include <set>

namespace vidkv_test {

namespace {

using vidkv_ggml::CellMap;
using vidkv_ggml::FormerPlace;
using vidkv_ggml::MaskView;

constexpr uint16_t seen = 0, hidden = 0xfc00;

// A pool of cells whose masks follow from which text each cell belongs to, as llama.cpp's do.
class Pool {
  public:
    explicit Pool(int64_t cells) : map(cells, 128), texts_(static_cast<size_t>(cells)) {}

    // Places one token per entry: (cell, text). Later tokens of a batch see earlier ones of their text. reach: cells of the mask.
    CellMap::Changes write(const std::vector<std::pair<int64_t, int>> & tokens, int64_t reach = 0) {
        const auto cells = static_cast<int64_t>(texts_.size());
        std::vector<int64_t> ids;
        for (const auto & [cell, text] : tokens) texts_[cell].clear(), ids.push_back(cell);
        std::vector<uint16_t> rows;
        for (const auto & [cell, text] : tokens) {
            texts_[cell] = {text};
            for (const std::set<int> & owners : texts_) rows.push_back(owners.contains(text) ? seen : hidden);
        }
        MaskView mask;
        mask.halves = rows.data();
        mask.stride = cells;
        mask.cells = reach > 0 ? reach : cells;
        return map.place(ids.data(), static_cast<int64_t>(ids.size()), mask);
    }
    CellMap::Changes run(int64_t first, int64_t n, int text) {
        std::vector<std::pair<int64_t, int>> tokens;
        for (int64_t i = 0; i < n; ++i) tokens.emplace_back(first + i, text);
        return write(tokens);
    }
    void forget(int64_t first, int64_t n, int text) {
        for (int64_t i = first; i < first + n; ++i) texts_[i].erase(text);
    }
    void share(int64_t first, int64_t n, int text) {
        for (int64_t i = first; i < first + n; ++i) texts_[i].insert(text);
    }
    int open_pages() const {
        int open = 0;
        for (int64_t page = 0; page < map.places() / 128; ++page) open += !map.is_packed(page);
        return open;
    }
    std::set<int64_t> pages(int64_t first, int64_t n, int64_t step = 1) const {
        std::set<int64_t> out;
        for (int64_t i = 0; i < n; ++i) out.insert(map.where(first + i * step) / 128);
        return out;
    }

    CellMap map;

  private:
    std::vector<std::set<int>> texts_; // [cell]: who sees it
};

using Pages = std::vector<int64_t>;

TEST(CellMap, OneTextLiesAtItsOwnCells) {
    Pool pool(1024);
    EXPECT_EQ(pool.run(0, 64, 0).begun, Pages{0});
    for (int64_t cell = 64; cell < 300; ++cell) EXPECT_TRUE(pool.run(cell, 1, 0).begun.empty());
    EXPECT_TRUE(pool.map.is_identity());
    EXPECT_EQ(pool.map.take_due(), Pages{0});
    EXPECT_TRUE(pool.map.take_due().empty());
    EXPECT_TRUE(pool.map.is_packed(0));
}

TEST(CellMap, TextsFillPagesOfTheirOwnAndBeginThem) {
    Pool pool(2048);
    Pages begun;
    for (int64_t i = 0; i < 260; ++i) {
        const CellMap::Changes changes = pool.write({{4 * i, 0}, {4 * i + 1, 1}, {4 * i + 2, 2}, {4 * i + 3, 3}});
        begun.insert(begun.end(), changes.begun.begin(), changes.begun.end());
    }
    EXPECT_EQ(begun.size(), 4u);
    std::set<int64_t> all;
    for (int text = 0; text < 4; ++text) {
        const std::set<int64_t> mine = pool.pages(text, 260, 4);
        EXPECT_EQ(mine.size(), 3u);
        all.insert(mine.begin(), mine.end());
    }
    EXPECT_EQ(all.size(), 12u);
    EXPECT_EQ(pool.map.take_due().size(), 4u); // each text's first page is followed by 132 tokens of its own
}

TEST(CellMap, AgesByItsOwnTokensOnly) {
    Pool pool(4096);
    pool.run(0, 200, 0);
    pool.run(200, 900, 1);
    for (const int64_t page : pool.map.take_due()) EXPECT_GE(page, 2) << "the first text has not moved on";
}

TEST(CellMap, PackedPagesAreNeverWrittenAgain) {
    Pool pool(1024);
    pool.run(0, 400, 0);
    ASSERT_EQ(pool.map.take_due(), (Pages{0, 1}));
    pool.forget(0, 400, 0);
    const CellMap::Changes changes = pool.run(0, 300, 1);
    EXPECT_EQ(changes.erased.size(), 300u);
    for (int64_t cell = 0; cell < 300; ++cell) EXPECT_FALSE(pool.map.is_packed(pool.map.where(cell) / 128));
    EXPECT_EQ(changes.begun.size(), 1u);
}

TEST(CellMap, PagesWithoutCellsAreUsedAgain) {
    Pool pool(1024);
    for (int round = 0; round < 12; ++round) {
        pool.run(0, 1000, round);
        pool.map.take_due();
        pool.forget(0, 1000, round);
        EXPECT_LE(pool.map.places(), 1024 + 128) << round;
    }
}

TEST(CellMap, DraftsTakenBackTakeNoPlaces) {
    Pool pool(1024);
    pool.run(0, 100, 0);
    for (int64_t cell = 100; cell < 250; ++cell) {
        pool.run(cell, 17, 0);
        pool.forget(cell + 1, 16, 0);
        EXPECT_TRUE(pool.map.take_due().empty()) << cell;
        EXPECT_TRUE(pool.map.is_identity());
    }
}

TEST(CellMap, ForksOfOnePromptPart) {
    Pool pool(2048);
    pool.run(0, 300, 0);
    pool.share(0, 300, 1);
    std::set<int64_t> first, second;
    for (int64_t i = 0; i < 200; ++i) {
        const CellMap::Changes changes = pool.write({{300 + 2 * i, 0}, {301 + 2 * i, 1}});
        EXPECT_TRUE(changes.begun.empty()) << "no text begins here";
        first.insert(pool.map.where(300 + 2 * i) / 128);
        second.insert(pool.map.where(301 + 2 * i) / 128);
    }
    for (const int64_t page : first) EXPECT_EQ(second.count(page), 0u);
}

TEST(CellMap, AStateIsATextOfItsOwn) {
    Pool pool(1024);
    pool.run(0, 300, 0);
    std::vector<int64_t> cells(400);
    std::iota(cells.begin(), cells.end(), 300);
    EXPECT_EQ(pool.map.restore(cells.data(), 150, true).begun.size(), 1u);
    EXPECT_TRUE(pool.map.restore(&cells[150], 250, false).begun.empty());
    EXPECT_EQ(pool.pages(300, 400).size(), 4u);
    for (const int64_t page : pool.pages(300, 400)) EXPECT_EQ(pool.pages(0, 300).count(page), 0u);
    EXPECT_EQ(pool.map.take_due(), (Pages{0, 3, 4}));
}

// Cells that lie scattered in a pool are restored one by one: the sink tokens come before any row that says where they belong.
TEST(CellMap, RowsThatComeOneByOneFindTheirSinksPage) {
    Pool pool(1024);
    constexpr int sinks = 4;
    for (int64_t i = 0; i < 200; ++i) {
        const FormerPlace former{i / 128 == 0 ? 7 : 2, static_cast<int>(i % 128), i / 128 == 0 ? sinks : 0};
        const int64_t cell = 300 + 2 * i;
        const CellMap::Changes changes = pool.map.restore(&cell, 1, i == 0, i < sinks ? nullptr : &former);
        EXPECT_EQ(changes.begun.size(), i == 0 ? 1u : 0u) << i;
        EXPECT_EQ(pool.map.where(cell) % 128, i % 128) << i;
    }
    EXPECT_EQ(pool.pages(300, 128, 2).size(), 1u) << "one page, the sink tokens in it";
    EXPECT_TRUE(pool.map.is_full(pool.map.where(300) / 128));
}

TEST(CellMap, ForgottenTextsDoNotKeepPagesOpenForEver) {
    Pool pool(60 * 160);
    for (int text = 0; text < 60; ++text) {
        pool.run(text * 160, 160, text);
        pool.forget(text * 160, 160, text);
        pool.map.take_due();
    }
    EXPECT_LE(pool.open_pages(), 2 * 4);
    EXPECT_LE(pool.map.open_texts(), 4);
}

TEST(CellMap, TextsOfOneBatchStayOpen) {
    Pool pool(4096);
    std::vector<std::pair<int64_t, int>> tokens;
    for (int text = 0; text < 12; ++text) tokens.emplace_back(text, text);
    pool.write(tokens);
    EXPECT_TRUE(pool.map.take_due().empty());
    EXPECT_EQ(pool.map.open_texts(), 12);
}

TEST(CellMap, TextsThatGoOnAreKeptOpenNextTime) {
    Pool pool(8192);
    int64_t cell = 0;
    std::set<int64_t> pages;
    for (int round = 0; round < 12; ++round) {
        for (int text = 0; text < 8; ++text, cell += 10) {
            pool.run(cell, 10, text);
            for (const int64_t page : pool.pages(cell, 10)) pages.insert(page);
            pool.map.take_due();
        }
    }
    EXPECT_LE(pages.size(), 8u + 8u) << "each was packed early once at most";
    EXPECT_EQ(pool.map.open_texts(), 8);
}

TEST(CellMap, CellsBeyondTheMaskAreFree) {
    Pool pool(1024);
    pool.run(0, 700, 0);
    pool.forget(128, 572, 0);
    const CellMap::Changes changes = pool.write({{128, 0}}, 256);
    EXPECT_EQ(changes.erased.size(), 700u - 256u + 1u);
    for (int64_t cell = 256; cell < 700; ++cell) EXPECT_EQ(pool.map.where(cell), -1) << cell;
    EXPECT_GE(pool.map.where(255), 0) << "may be another's";
}

// Four slots of a llama-server in one pool: each request keeps a part of what its slot holds, or nothing, reads a prompt and answers; cells
// are taken as llama.cpp takes them.
class Slots {
  public:
    Slots(int64_t cells, uint32_t seed) : pool_(cells), free_(static_cast<size_t>(cells), true), random_(seed) {}

    void serve_all() {
        for (std::vector<int64_t> & slot : slots_) {
            const size_t kept = slot.size() * std::array<size_t, 3>{0, 100, random_() % 100}[random_() % 3] / 100;
            for (; slot.size() > kept; slot.pop_back()) give_back(slot.back(), slot);
            const int64_t room = std::count(free_.begin(), free_.end(), true) - 600;
            int64_t prompt = std::min<int64_t>(room, 20 + random_() % 400);
            for (; prompt > 0; prompt -= 64) read(slot, std::min<int64_t>(prompt, 64));
        }
        for (int answered = 0; answered < 100 && std::count(free_.begin(), free_.end(), true) > 8; ++answered) {
            std::vector<std::pair<int64_t, int>> tokens;
            for (std::vector<int64_t> & slot : slots_) tokens.emplace_back(take(slot), number_of(slot));
            write(tokens);
        }
    }

    size_t most_pages = 0;
    int most_open = 0;

  private:
    int number_of(const std::vector<int64_t> & slot) const { return static_cast<int>(&slot - slots_.data()); }
    void give_back(int64_t cell, const std::vector<int64_t> & slot) {
        free_[cell] = true;
        pool_.forget(cell, 1, number_of(slot));
    }
    int64_t take(std::vector<int64_t> & slot) {
        if (head_ > std::count(free_.begin(), free_.end(), false) + 2) head_ = 0;
        while (!free_[head_ % free_.size()]) ++head_;
        const auto cell = static_cast<int64_t>(head_++ % free_.size());
        free_[cell] = false;
        slot.push_back(cell);
        return cell;
    }
    void read(std::vector<int64_t> & slot, int64_t n) {
        std::vector<std::pair<int64_t, int>> tokens;
        for (int64_t i = 0; i < n; ++i) tokens.emplace_back(take(slot), number_of(slot));
        write(tokens);
    }
    void write(const std::vector<std::pair<int64_t, int>> & tokens) {
        const auto last = std::find(free_.rbegin(), free_.rend(), false);
        pool_.write(tokens, (free_.rend() - last + 255) / 256 * 256);
        pool_.map.take_due();
        std::set<int64_t> pages;
        for (int64_t cell = 0; cell < static_cast<int64_t>(free_.size()); ++cell) {
            if (pool_.map.where(cell) >= 0) pages.insert(pool_.map.where(cell) / 128);
        }
        most_pages = std::max(most_pages, pages.size());
        most_open = std::max<int>(
            most_open, std::count_if(pages.begin(), pages.end(), [&](int64_t page) { return !pool_.map.is_packed(page); }));
    }

    Pool pool_;
    std::vector<bool> free_;
    std::mt19937 random_;
    std::array<std::vector<int64_t>, 4> slots_;
    int64_t head_ = 0;
};

// Pages of which some cells are gone keep their bytes; a pool that is busy for long still holds no more pages than its cells would fill and
// four for each slot, and no more than those in f16.
TEST(CellMap, APoolThatIsBusyForLongStaysWithinBounds) {
    constexpr int64_t cells = 2048;
    for (const uint32_t seed : {1u, 2u}) {
        Slots slots(cells, seed);
        for (int round = 0; round < 12; ++round) slots.serve_all();
        std::printf("  seed %u: %zu pages at most, %d of them open, for %lld cells\n", seed, slots.most_pages,
                    slots.most_open, static_cast<long long>(cells));
        EXPECT_LE(slots.most_pages, cells / 128 + 4 * 4);
        EXPECT_LE(slots.most_open, 4 * 4);
    }
}

TEST(CellMap, MasksAreTurnedToPlaces) {
    Pool pool(512);
    pool.write({{0, 0}, {1, 1}, {2, 0}, {3, 1}});
    std::vector<uint16_t> row(512, hidden);
    row[1] = row[3] = seen;
    std::vector<uint16_t> out(static_cast<size_t>(pool.map.places()), 7);
    pool.map.translate(row.data(), 512, out.data());
    EXPECT_FALSE(pool.map.is_identity());
    EXPECT_EQ(std::count(out.begin(), out.end(), seen), 2);
    EXPECT_EQ(std::count(out.begin(), out.end(), hidden), static_cast<int64_t>(out.size()) - 2);
    EXPECT_EQ(out[pool.map.where(1)], seen);
    EXPECT_EQ(out[pool.map.where(3)], seen);
}

TEST(CellMap, WithoutAMaskTheTextGoesOn) {
    CellMap map(1024, 128);
    std::vector<int64_t> cells(300);
    std::iota(cells.begin(), cells.end(), 0);
    map.place(cells.data(), 200, {});
    EXPECT_TRUE(map.place(&cells[200], 100, {}).begun.empty());
    EXPECT_TRUE(map.is_identity());
}

} // namespace

} // namespace vidkv_test
