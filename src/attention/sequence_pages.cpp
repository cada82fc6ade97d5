#include "attention/sequence_pages.h"

#include <algorithm>
#include <tuple>

namespace vidkv {

PagesOfMany::PagesOfMany(const Store & keys, const Store & values, std::span<const vidkv_attention_args> calls) {
    int64_t cells = 0;
    for (const vidkv_attention_args & call : calls) cells = std::max(cells, call.cells);
    for (int64_t page = 0; page * page_tokens < cells; ++page) {
        for (int call = 0; call < static_cast<int>(calls.size()); ++call) {
            const vidkv_attention_args & args = calls[static_cast<size_t>(call)];
            if (page * page_tokens >= args.cells) continue;
            const vidkv_attention_args & before = calls[static_cast<size_t>(std::max(call - 1, 0))];
            const bool shared = !entries.empty() && entries.back().page == page &&
                                entries.back().readers.last == call - 1 &&
                                keys.shares_page(before.sequence, args.sequence, page) &&
                                values.shares_page(before.value_sequence, args.value_sequence, page);
            if (shared)
                entries.back().readers.last = call;
            else
                entries.push_back({page, {call, call}});
        }
    }
    const auto key = [](const Entry & entry) { return std::tuple(entry.readers.first, entry.readers.last, entry.page); };
    std::sort(entries.begin(), entries.end(), [&](const Entry & a, const Entry & b) { return key(a) < key(b); });
}

SequencePages::SequencePages(const Store & store, const PagesOfMany & pages, std::span<const vidkv_attention_args> calls)
    : PageSource(shape_of(store)), store_(store), pages_(pages), set_(calls.size()) {
    for (size_t i = 0; i < calls.size(); ++i) {
        sequences_.push_back(store.side() == VIDKV_KEYS ? calls[i].sequence : calls[i].value_sequence);
        for (int number = 0; number < store.plan_sets(sequences_[i]); ++number) {
            const ChannelPlan * wanted = &store.plan(sequences_[i], 0, number);
            const auto known = std::find_if(sets_.begin(), sets_.end(), [&](const Set & set) {
                return &store.plan(sequence(set.call), 0, set.number) == wanted;
            });
            set_[i].push_back(static_cast<int>(known - sets_.begin()));
            if (known == sets_.end()) sets_.push_back({static_cast<int>(i), number});
        }
    }
}

PageView SequencePages::view(int64_t page, int kv_head, int) const {
    const PagesOfMany::Entry & at = entry(page);
    PageView view = store_.view(sequence(at.readers.first), at.page, kv_head);
    const std::vector<int> & sets = set_[static_cast<size_t>(at.readers.first)];
    if (!sets.empty() && view.state == PageState::sealed) view.plan = sets[static_cast<size_t>(view.plan)];
    return view;
}

const ChannelPlan & SequencePages::plan(int kv_head, int set) const {
    const Set & at = sets_[static_cast<size_t>(set)];
    return store_.plan(sequence(at.call), kv_head, at.number);
}

bool SequencePages::uses(int set, int call) const {
    const std::vector<int> & sets = set_[static_cast<size_t>(call)];
    return std::find(sets.begin(), sets.end(), set) != sets.end();
}

} // namespace vidkv
