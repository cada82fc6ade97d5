// Any numbers as the section "cells" of a saved video: what is sound is taken into a map, which must go on as any other does, and
// is saved again as it came. An input: one byte for each small number, 0xff before one of eight bytes.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <stdexcept>
#include <vector>

#include "cell_map.h"
#include "input.h"

using namespace vidkv_ggml;

namespace {

constexpr int64_t most_pages = 16;

std::vector<int64_t> numbers_of(const uint8_t * data, size_t size) {
    std::vector<int64_t> out;
    for (size_t i = 0; i < size; ++i) {
        int64_t number = data[i] == 0xfe ? -1 : data[i];
        if (data[i] == 0xff && size - i > sizeof(number)) {
            std::memcpy(&number, data + i + 1, sizeof(number));
            i += sizeof(number);
        }
        out.push_back(number);
    }
    return out;
}

// Texts go on, new ones begin, old pages are packed.
void go_on(CellMap & map, int64_t first, int64_t cells) {
    std::vector<int64_t> more(static_cast<size_t>(cells - first));
    std::iota(more.begin(), more.end(), first);
    for (const int64_t cell : more) map.place(&cell, 1, {});
    map.take_due();
    map.restore(more.data(), static_cast<int64_t>(more.size()), true);
    std::vector<uint16_t> row(static_cast<size_t>(cells)), out(static_cast<size_t>(map.places()));
    map.translate(row.data(), cells, out.data());
    for (const int64_t cell : more)
        demand(map.where(cell) >= 0 && map.where(cell) < map.places(), "each cell lies somewhere");
}

void take(const SavedCells & saved) {
    const int64_t n = saved.cells();
    CellMap map(n + 2 * CellMap::page_cells, CellMap::page_cells);
    std::vector<int64_t> cells(static_cast<size_t>(n)), pages;
    std::iota(cells.begin(), cells.end(), 0);
    map.take(saved, cells, pages);
    const SavedCells again = map.save(cells, pages);
    demand(again.is_sound(), "what is saved is sound");
    demand(again.cells() == n && again.pages() == saved.pages(), "it has as many cells and pages");
    go_on(map, n, n + 2 * CellMap::page_cells);
    map.save(cells, pages);
    map.clear();
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size) {
    const std::vector<int64_t> numbers = numbers_of(data, size);
    try {
        const SavedCells saved = SavedCells::from_numbers(numbers.data(), numbers.size());
        if (saved.pages() > 0 && saved.pages() <= most_pages && saved.is_sound()) take(saved);
    } catch (const std::out_of_range &) { // told as cut off
    }
    return 0;
}
