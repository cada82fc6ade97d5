#include "hidden_pages.h"

#include <algorithm>

#include "kv_store.h"
#include "placement.h"

namespace vidkv_ggml {

namespace {

constexpr int64_t page_cells = CellMap::page_cells;
constexpr int64_t most_pages = 1 << 16; // that a tag can name

// Of a row that is not to be changed: null.
const HiddenPage * hidden_page(const KvStore & store, int stream, int64_t page, int & first) {
    const CellMap & map = store.placement()->map(stream);
    if (page >= most_pages || !map.is_packed(page) || !map.is_full(page)) return nullptr;
    return store.hidden_page(stream, page, first);
}

} // namespace

bool hide_pages(const KvStore & store, int64_t first_row, int64_t n, uint16_t * rows) {
    if (!store.placement()) return true;
    for (int64_t i = 0; i < n; ++i) {
        const int64_t id = first_row + i, place = store.place_of(id);
        if (place < 0) continue;
        int first = 0;
        const auto stream = static_cast<int>(id / store.cells());
        const HiddenPage * page = hidden_page(store, stream, place / page_cells, first);
        const auto token = static_cast<int>(place % page_cells);
        if (!page || page->bits == 0 || token < first) continue;
        const RowTag tag{static_cast<uint32_t>(place / page_cells), token, first, page->bits};
        hide(rows + i * store.channels(), store.channels(), tag,
             &page->bytes[static_cast<size_t>((token - first) * hidden_bytes(store.channels(), page->bits))]);
    }
    return true;
}

std::vector<std::optional<RowTag>> tags_of(const uint16_t * rows, int64_t n, int64_t channels) {
    std::vector<std::optional<RowTag>> tags(static_cast<size_t>(n));
    for (int64_t i = 0; i < n; ++i) tags[i] = find_tag(rows + i * channels, channels);
    return tags;
}

std::vector<FormerPlace> former_places(const std::vector<std::optional<RowTag>> & tags) {
    std::vector<FormerPlace> places(tags.size());
    bool any = false;
    for (size_t i = 0; i < tags.size(); ++i) {
        if (!tags[i]) continue;
        any = true;
        const RowTag & tag = *tags[i];
        places[i] = {tag.page, tag.token, tag.first};
        const auto sinks = static_cast<size_t>(tag.first);
        if (tag.token != tag.first || i < sinks) continue;
        const auto before = tags.begin() + static_cast<ptrdiff_t>(i - sinks);
        if (std::any_of(before, before + tag.first, [](const auto & other) { return other.has_value(); })) continue;
        for (size_t t = 0; t < sinks; ++t) places[i - sinks + t] = {tag.page, static_cast<int>(t), tag.first};
    }
    return any ? places : std::vector<FormerPlace>();
}

void FoundPages::begin(int64_t restore) {
    if (restore == restore_) return;
    restore_ = restore;
    pages_.clear();
}

std::optional<std::vector<uint8_t>> FoundPages::take(int stream, int64_t page, const RowTag & tag, const uint16_t * row,
                                                     int64_t channels) {
    const int64_t each = hidden_bytes(channels, tag.bits);
    const auto [found, is_new] = pages_.try_emplace({stream, page});
    Page & it = found->second;
    if (is_new) {
        it.tag = tag;
        it.left = static_cast<int>(page_cells) - tag.first;
        it.seen.resize(page_cells);
        it.bytes.resize(static_cast<size_t>(each * it.left));
    }
    if (it.tag.bits != tag.bits || it.tag.first != tag.first || it.seen[tag.token]++) return std::nullopt;
    reveal(row, channels, tag.bits, &it.bytes[static_cast<size_t>((tag.token - tag.first) * each)]);
    if (--it.left > 0) return std::nullopt;
    std::optional<std::vector<uint8_t>> packed = from_hidden(it.bytes);
    pages_.erase(found);
    return packed;
}

} // namespace vidkv_ggml
