// A sequence of a store -> a part of a file. docs/format.md, "The file".
#include <algorithm>
#include <string>

#include "base/error.h"
#include "cache/file_format.h"
#include "cache/store.h"

namespace vidkv {

vidkv_status Store::pages_to_save(int sequence, const std::vector<int64_t> * wanted, std::vector<int64_t> & pages) const {
    if (vidkv_status status = check_range(sequence, 0, 0)) return status;
    if (shape_.head_dim == 0) return fail(VIDKV_E_ARGUMENT, "a store that does not know its head_dim yet cannot be saved");
    const PageTable & table = sequences_[sequence].pages;
    if (wanted) {
        pages = *wanted;
    } else {
        table.for_each([&](int64_t index, const Page & page) {
            if (page.state != PageState::empty || page.released || page.marked != PageBits{}) pages.push_back(index);
        });
    }
    for (const int64_t index : pages) {
        if (index < 0 || index >= pages_per_sequence_)
            return fail(VIDKV_E_ARGUMENT, "there is no page " + std::to_string(index));
        if (table[index].released)
            return fail(VIDKV_E_ARGUMENT, "page " + std::to_string(index) + " was released: it cannot be saved from here");
        if (vidkv_status status = check_mapped(sequence, index, index + 1)) return status;
    }
    return VIDKV_OK;
}

class Store::PartWriter {
  public:
    PartWriter(const Store & store, const Sequence & sequence, const vidkv_params & params, StorePart & part)
        : store_(store), sequence_(sequence), part_(part), set_in_file_(sequence.plans.size(), -1) {
        part.has_own_bits = store.bits() != bits_of(params, store.side());
    }

    // renumbers: the pages are numbered from 0 in the file.
    void write(const std::vector<int64_t> & pages, bool renumbers) {
        FileStore header = describe(pages.size());
        for (size_t i = 0; i < pages.size(); ++i)
            entries_.push_back(add_page(pages[i], renumbers ? static_cast<int64_t>(i) : pages[i]));
        header.plan_sets = static_cast<uint32_t>(sets_.size());
        const auto is_shifted = [&](int64_t page) { return static_cast<bool>(sequence_.pages[page].shifts); };
        part_.has_shifts = std::any_of(pages.begin(), pages.end(), is_shifted);
        if (part_.has_shifts) header.flags |= store_has_shifts;
        append_number(part_.state, header);
        append_bytes(part_.state, entries_.data(), entries_.size() * sizeof(FilePage));
        for (const int set : sets_) add_plans(*sequence_.plans[static_cast<size_t>(set)]);
        if (sequence_.queries) sequence_.queries->save(part_.state);
        if (part_.has_shifts) add_shifts(pages);
    }

  private:
    FileStore describe(size_t pages) {
        FileStore header{};
        header.channels = store_.shape_.channels;
        header.head_dim = store_.shape_.head_dim;
        header.flags = (store_.keep_open_ ? store_keeps_open : 0) | (sequence_.host_marks ? store_has_marks : 0) |
                       (sequence_.queries ? store_has_statistics : 0);
        header.pages = pages;
        header.writes = sequence_.writes;
        if (part_.has_own_bits) header.bits = store_.bits();
        if (!sequence_.plans.empty() && sequence_.sealed_pages > 0) header.plan = use_set(sequence_.plan);
        return header;
    }

    // The number that a set of plans has in the file.
    int use_set(int set) {
        int & in_file = set_in_file_[static_cast<size_t>(set)];
        if (in_file < 0) {
            in_file = static_cast<int>(sets_.size());
            sets_.push_back(set);
        }
        return in_file;
    }

    FilePage add_page(int64_t index, int64_t number) {
        const Page & page = sequence_.pages[index];
        FilePage entry{};
        entry.number = number;
        entry.state = page.state;
        entry.begins = store_.sinks_in(sequence_, index) > 0;
        entry.last_write = page.last_write;
        entry.written = page.written;
        entry.marked = page.marked;
        if (page.state == PageState::sealed && !sequence_.plans.empty())
            entry.plan = static_cast<uint16_t>(use_set(page.plan));
        if (page.state != PageState::empty) add_bytes(page, entry);
        return entry;
    }

    void add_bytes(const Page & page, FilePage & entry) {
        const bool sealed = page.state == PageState::sealed;
        const size_t bytes = sealed ? page.bytes->size() : static_cast<size_t>(end_of(page.written)) * store_.row_bytes();
        const size_t sinks = sealed && entry.begins ? store_.sink_bytes() : 0;
        entry.at = at_;
        entry.bytes = static_cast<uint32_t>(bytes);
        part_.pieces.push_back({page.bytes->data(), bytes, at_});
        if (sealed && store_.side() == VIDKV_VALUES &&
            most_shared(store_.value_layout(), page.bytes->data()) == Sharing::direction)
            part_.has_directions = true;
        if (sinks) {
            const auto * rows = reinterpret_cast<const uint8_t *>(page.bytes->sink_rows());
            part_.pieces.push_back({rows, sinks, at_ + PageBytes::sinks_at(bytes)});
        }
        at_ = aligned(at_ + PageBytes::whole_size(bytes, sinks));
    }

    void add_plans(const Plans & plans) {
        for (const ChannelPlan & plan : plans) {
            append_bytes(part_.state, plan.order.data(), plan.order.size() * sizeof(uint16_t));
            append_bytes(part_.state, plan.mean.data(), plan.mean.size() * sizeof(uint16_t));
        }
    }

    void add_shifts(const std::vector<int64_t> & pages) {
        std::vector<uint64_t> shifted;
        for (uint64_t i = 0; i < pages.size(); ++i) {
            if (sequence_.pages[pages[i]].shifts) shifted.push_back(i);
        }
        append_number(part_.state, static_cast<uint64_t>(shifted.size()));
        for (const uint64_t i : shifted) {
            append_number(part_.state, i);
            sequence_.pages[pages[i]].shifts->save(part_.state);
        }
    }

    const Store & store_;
    const Sequence & sequence_;
    StorePart & part_;
    std::vector<int> set_in_file_, sets_;
    std::vector<FilePage> entries_;
    uint64_t at_ = 0; // in the file's range of pages
};

vidkv_status Store::part_of(int sequence, const std::vector<int64_t> * wanted, const vidkv_params & params,
                            StorePart & part) const {
    std::vector<int64_t> pages;
    if (vidkv_status status = pages_to_save(sequence, wanted, pages)) return status;
    PartWriter(*this, sequences_[sequence], params, part).write(pages, wanted != nullptr);
    return VIDKV_OK;
}

} // namespace vidkv
