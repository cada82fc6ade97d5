// Where cells are placed: texts fill pages of their own, age by their own tokens, and give places back.
#include "cell_map.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <set>

namespace vidkv_test {

namespace {

using vidkv_ggml::CellMap;
using vidkv_ggml::MaskView;

constexpr uint16_t seen = 0, hidden = 0xfc00;

// A pool of cells whose masks follow from which text each cell belongs to, as llama.cpp's do.
class Pool {
  public:
    explicit Pool(int64_t cells) : map(cells, 128), texts_(static_cast<size_t>(cells)) {}

    // Places one token per entry: (cell, text). Later tokens of a batch see earlier ones of their text.
    CellMap::Changes write(const std::vector<std::pair<int64_t, int>> & tokens) {
        const auto cells = static_cast<int64_t>(texts_.size());
        std::vector<int64_t> ids;
        for (const auto & [cell, text] : tokens) texts_[cell].clear(), ids.push_back(cell);
        std::vector<uint16_t> rows;
        for (const auto & [cell, text] : tokens) {
            texts_[cell] = {text};
            for (const std::set<int> & owners : texts_) rows.push_back(owners.count(text) ? seen : hidden);
        }
        MaskView mask;
        mask.halves = rows.data();
        mask.stride = mask.cells = cells;
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

TEST(CellMap, ForgottenTextsDoNotKeepPagesOpenForEver) {
    Pool pool(60 * 160);
    for (int text = 0; text < 60; ++text) {
        pool.run(text * 160, 160, text);
        pool.forget(text * 160, 160, text);
        pool.map.take_due();
    }
    int open = 0;
    for (int64_t page = 0; page < pool.map.places() / 128; ++page) open += !pool.map.is_packed(page);
    EXPECT_LE(open, 2 * 32);
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
