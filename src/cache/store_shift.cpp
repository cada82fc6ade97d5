// Keys at other positions: the codes of sealed pages stay, and what reads them turns.
#include <algorithm>
#include <numeric>
#include <utility>

#include "base/error.h"
#include "cache/store.h"

namespace vidkv {

namespace {

void set(PageBits & bits, int64_t cell) { bits[static_cast<size_t>(cell) / 64] |= uint64_t{1} << (cell % 64); }

// Cells of one page that are asked to move, by how far.
std::vector<Move> moves_of(const std::vector<int64_t> & order, size_t from, size_t to, const int64_t * cells,
                           const int32_t * positions, const PageBits & used) {
    std::vector<Move> moves;
    for (size_t i = from; i < to; ++i) {
        const int64_t token = cells[order[i]] % page_tokens;
        if (!has_cell(used, static_cast<int>(token))) continue;
        const int32_t by = positions[order[i]];
        auto known = std::find_if(moves.begin(), moves.end(), [&](const Move & move) { return move.positions == by; });
        if (known == moves.end()) known = moves.insert(moves.end(), {by, {}});
        set(known->cells, token);
    }
    return moves;
}

bool is_same(const std::vector<Move> & a, const std::vector<Move> & b) {
    return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                      [](const Move & x, const Move & y) { return x.positions == y.positions && x.cells == y.cells; });
}

} // namespace

vidkv_status Store::shift(int sequence, const int64_t * cells, const int32_t * positions, int64_t n,
                          const Ref<const Rope> & rope, float gain, std::vector<int64_t> & left) {
    if (shape_.side != VIDKV_KEYS) return fail(VIDKV_E_ARGUMENT, "keys alone have positions: this store holds values");
    if (shape_.head_dim == 0) return fail(VIDKV_E_ARGUMENT, "the store does not know its head_dim yet");
    if (!rope->fits(shape_.head_dim) || !(gain > 0.0f))
        return fail(VIDKV_E_ARGUMENT, "the rotation does not fit a head_dim of " + std::to_string(shape_.head_dim));
    if (vidkv_status status = check_range(sequence, 0, 0)) return status;
    for (int64_t i = 0; i < n; ++i) {
        if (vidkv_status status = check_range(sequence, cells[i], 1)) return status;
    }
    left.clear();
    std::vector<int64_t> order(static_cast<size_t>(n));
    std::iota(order.begin(), order.end(), 0);
    const auto is_before = [&](int64_t a, int64_t b) { return cells[a] < cells[b]; };
    if (!std::is_sorted(order.begin(), order.end(), is_before)) std::sort(order.begin(), order.end(), is_before);

    Sequence & seq = sequences_[sequence];
    std::vector<std::pair<int64_t, Ref<const PageShifts>>> changes;
    struct Last { // neighbours move alike, as a rule, and share what says so
        Ref<const PageShifts> before, after;
        std::vector<Move> moves;
        PageBits used{};
    } last;
    for (size_t from = 0, to; from < order.size(); from = to) {
        const int64_t index = cells[order[from]] / page_tokens;
        for (to = from + 1; to < order.size() && cells[order[to]] / page_tokens == index;) ++to;
        const Page & page = seq.pages[index];
        const PageBits used = page.state == PageState::sealed ? used_cells(seq, index) : PageBits{};
        const std::vector<Move> moves = moves_of(order, from, to, cells, positions, used);
        const bool as_last =
            !changes.empty() && last.before == page.shifts && last.used == used && is_same(last.moves, moves);
        std::optional<Ref<const PageShifts>> after = as_last ? last.after : moved(page.shifts, moves, rope, gain, used);
        const bool moves_here = after && !moves.empty();
        for (size_t i = from; i < to; ++i) {
            const bool here = has_cell(used, static_cast<int>(cells[order[i]] % page_tokens));
            if (!moves_here || !here) left.push_back(order[i]);
        }
        if (!moves_here) continue;
        changes.emplace_back(index, *after);
        last = {page.shifts, *after, moves, used};
    }
    for (const auto & [index, shifts] : changes) seq.pages.own(index);
    for (auto & [index, shifts] : changes) seq.pages.edit(index).shifts = std::move(shifts);
    std::sort(left.begin(), left.end());
    return VIDKV_OK;
}

} // namespace vidkv
