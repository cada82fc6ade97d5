#include "hidden_pages.h"

#include <algorithm>

namespace vidkv_ggml {

namespace {

constexpr int64_t page_cells = CellMap::page_cells;

} // namespace

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
