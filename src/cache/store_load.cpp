// A part of a file -> a sequence of a store, pages where they lie. docs/format.md, "The file", says what a reader refuses.
#include <algorithm>
#include <cstring>
#include <map>
#include <string>
#include <utility>

#include "base/error.h"
#include "cache/file_format.h"
#include "cache/store.h"

namespace vidkv {

namespace {

constexpr int64_t most_writes = int64_t{1} << 62; // counting further from there does not overflow

std::string number(float x) {
    std::string text = std::to_string(x);
    text.erase(text.find_last_not_of('0') + 1);
    if (text.back() == '.') text.pop_back();
    return text;
}

template <typename T> vidkv_status differ(const char * what, T theirs, T ours) {
    return fail(VIDKV_E_FORMAT,
                std::string(what) + " " + number(static_cast<float>(theirs)) + ", not " + number(static_cast<float>(ours)));
}

} // namespace

vidkv_status Store::check_same_params(const vidkv_params & p) const {
    const bool keys = shape_.side == VIDKV_KEYS;
    const float theirs = bits_of(p, shape_.side);
    const int32_t codec = keys ? p.key_codec : p.value_codec, ours = keys ? params_.key_codec : params_.value_codec;
    if (theirs != bits()) return differ(keys ? "key bits" : "value bits", theirs, bits());
    if (theirs != 16 && codec != ours) return differ(keys ? "key codec" : "value codec", codec, ours);
    if (p.group_size != params_.group_size) return differ("group size", p.group_size, params_.group_size);
    if (p.sink_tokens != params_.sink_tokens) return differ("sink tokens", p.sink_tokens, params_.sink_tokens);
    if (p.protect != params_.protect) return differ("share of protected tokens", p.protect, params_.protect);
    return VIDKV_OK;
}

// What is wrong with a page of a file; null: nothing.
const char * Store::fault_of(const PageBytes & page) const {
    const uint8_t * data = page.data();
    const bool keys = shape_.side == VIDKV_KEYS;
    if (!(keys ? is_sound(key_layout_, data, page.size()) : is_sound(value_layout_, data, page.size())))
        return "is altered";
    if (keys) return nullptr;
    const Sharing most = most_shared(value_layout_, data);
    if (most == Sharing::direction && !(page.announced() & needs_directions))
        return "has a direction, which the file's header does not announce";
    if (most != Sharing::nothing && !(page.announced() & needs_page_means))
        return "is still, which the file's header does not announce";
    return nullptr;
}

vidkv_status Store::check_mapped(int sequence, int64_t first, int64_t last) const {
    const Sequence & seq = sequences_[sequence];
    for (int64_t i = first; seq.mapped && i < last; ++i) {
        const Page & page = seq.pages[i];
        if (page.state != PageState::sealed || page.bytes->is_checked()) continue;
        if (const char * fault = fault_of(*page.bytes)) {
            return fail(VIDKV_E_FORMAT,
                        "page " + std::to_string(i) + " of a file that was loaded " + fault + ": save the file again");
        }
        page.bytes->set_checked();
    }
    return VIDKV_OK;
}

class Store::PartReader {
  public:
    PartReader(Store & store, const StoreSource & source, Sequence & sequence, const int64_t * places, int64_t n_places)
        : store_(store), source_(source), sequence_(sequence), places_(places), n_places_(n_places),
          keeps_plan_(sequence.sealed_pages > 0), in_(source.state, source.state_bytes), entries_(in_) {}

    vidkv_status read() {
        if (vidkv_status status = read_header()) return status;
        if (!read_plans() || !read_statistics() || !read_shifts() || !in_.ok() || in_.left() != 0) return altered();
        for (uint64_t i = 0; i < header_.pages; ++i) {
            const auto found = shifts_.find(i);
            const auto shifts = found == shifts_.end() ? Ref<const PageShifts>() : found->second;
            if (vidkv_status status = read_page(entries_.number<FilePage>(), shifts)) return status;
        }
        set_begins();
        sequence_.writes = std::max(sequence_.writes, header_.writes);
        sequence_.host_marks = sequence_.host_marks || (header_.flags & store_has_marks) != 0;
        return VIDKV_OK;
    }
    bool keeps_open() const { return (header_.flags & store_keeps_open) != 0; }

  private:
    vidkv_status altered() const {
        return fail(VIDKV_E_FORMAT, "'" + source_.path + "' is cut off or altered: save it again");
    }
    const vidkv_store_shape & shape() const { return store_.shape_; }
    bool keys() const { return shape().side == VIDKV_KEYS; }
    bool packs() const { return !is_f16(store_.params_, store_.side()); }

    vidkv_status read_header() {
        header_ = in_.number<FileStore>();
        entries_ = in_;
        if (!in_.ok() || header_.flags > store_known_flags || header_.writes < 0 || header_.writes > most_writes)
            return altered();
        if (header_.channels != shape().channels || (shape().head_dim != 0 && header_.head_dim != shape().head_dim)) {
            return fail(VIDKV_E_FORMAT, "'" + source_.path + "' is of another shape: " + std::to_string(header_.channels) +
                                            " channels, head_dim " + std::to_string(header_.head_dim) + ", not " +
                                            std::to_string(shape().channels) + " and " + std::to_string(shape().head_dim));
        }
        if (header_.head_dim <= 0 || store_.set_head_dim(header_.head_dim) != VIDKV_OK) return altered();
        return in_.skip(header_.pages, sizeof(FilePage)) ? VIDKV_OK : altered();
    }

    bool read_plans() {
        if (header_.plan_sets > UINT16_MAX || (header_.plan_sets > 0 && !(keys() && packs()))) return false;
        if (!keeps_plan_) sequence_.plans.clear();
        for (uint32_t i = 0; i < header_.plan_sets; ++i) {
            Plans plans;
            if (!read_set(plans)) return false;
            sets_.push_back(take_set(std::move(plans)));
        }
        if (sequence_.plans.size() > UINT16_MAX) return false;
        if (sets_.empty()) return true;
        if (header_.plan < 0 || static_cast<size_t>(header_.plan) >= sets_.size()) return false;
        if (!keeps_plan_) sequence_.plan = sets_[static_cast<size_t>(header_.plan)];
        return true;
    }

    bool read_set(Plans & plans) {
        const KeyLayout & layout = store_.key_layout_;
        for (int head = 0; head < layout.kv_heads; ++head) {
            ChannelPlan plan;
            plan.wide = layout.wide;
            plan.order.resize(static_cast<size_t>(layout.head_dim));
            if (layout.codec == VIDKV_CODEC_TRELLIS) plan.mean.resize(plan.order.size());
            if (!in_.bytes(plan.order.data(), plan.order.size() * sizeof(uint16_t)) || !is_permutation(plan.order))
                return false;
            if (!in_.bytes(plan.mean.data(), plan.mean.size() * sizeof(uint16_t))) return false;
            plans.push_back(std::move(plan));
        }
        return true;
    }

    // The number that it has in the sequence, where the same plans may be already.
    int take_set(Plans && plans) {
        const auto is_same = [&](const std::shared_ptr<const Plans> & other) {
            return std::equal(
                plans.begin(), plans.end(), other->begin(), other->end(),
                [](const ChannelPlan & a, const ChannelPlan & b) { return a.order == b.order && a.mean == b.mean; });
        };
        auto & all = sequence_.plans;
        const auto there = std::find_if(all.begin(), all.end(), is_same);
        const auto index = static_cast<int>(there - all.begin());
        if (there == all.end()) all.push_back(std::make_shared<const Plans>(std::move(plans)));
        return index;
    }

    bool read_statistics() {
        if (!(header_.flags & store_has_statistics)) return true;
        if (!keys() || !wants_queries(store_.params_)) return false;
        Ref<SharedStatistics> queries(new SharedStatistics(store_.kv_heads(), shape().head_dim));
        if (!queries->load(in_)) return false;
        if (!sequence_.queries) sequence_.queries = std::move(queries);
        return true;
    }

    // Of which entries the cells have moved, and how.
    bool read_shifts() {
        if (!(header_.flags & store_has_shifts)) return true;
        const auto count = in_.number<uint64_t>();
        if (!keys() || count < 1 || count > header_.pages) return false;
        for (uint64_t i = 0; i < count; ++i) {
            const auto entry = in_.number<uint64_t>();
            Ref<const PageShifts> shifts = PageShifts::load(in_, shape().head_dim);
            const bool rises = shifts_.empty() || entry > shifts_.rbegin()->first;
            if (!shifts || entry >= header_.pages || !rises) return false;
            if (!shifts_.empty() && shifts->is_same(*shifts_.rbegin()->second)) shifts = shifts_.rbegin()->second;
            shifts_.emplace(entry, std::move(shifts));
        }
        return true;
    }

    vidkv_status read_page(const FilePage & entry, const Ref<const PageShifts> & shifts) {
        Page page;
        if (entry.number <= last_ || !is_sensible(entry) || !take_bytes(entry, page)) return altered();
        if (shifts && entry.state != PageState::sealed) return altered();
        page.shifts = shifts;
        last_ = entry.number;
        int64_t place = 0;
        if (vidkv_status status = find_place(entry, place)) return status;
        page.state = entry.state;
        page.written = entry.written;
        page.marked = entry.marked;
        page.last_write = entry.last_write;
        if (page.state == PageState::sealed && keys()) page.plan = static_cast<uint16_t>(sets_[entry.plan]);
        if (page.state == PageState::sealed) sequence_.mapped = true;
        if (page.state != PageState::empty) begins_.emplace_back(place, entry.begins != 0);
        sequence_.pages.edit(place) = std::move(page);
        return VIDKV_OK;
    }

    bool is_sensible(const FilePage & entry) const {
        const bool sealed = entry.state == PageState::sealed;
        if (entry.state > PageState::sealed || entry.begins > 1) return false;
        if (entry.last_write < 0 || entry.last_write > header_.writes) return false;
        if (entry.state == PageState::empty) return entry.bytes == 0 && entry.written == PageBits{};
        if (sealed && (!packs() || (keys() && entry.plan >= sets_.size()))) return false;
        if (sealed && keys() && entry.bytes != store_.key_layout_.page_bytes) return false;
        const size_t whole = PageBytes::whole_size(entry.bytes, sinks_of(entry));
        return entry.at % file_alignment == 0 && entry.at <= source_.pages_bytes && whole <= source_.pages_bytes - entry.at;
    }
    size_t sinks_of(const FilePage & entry) const {
        return entry.state == PageState::sealed && entry.begins ? store_.sink_bytes() : 0;
    }

    // Sealed pages stay where they are; open ones are to be written to.
    bool take_bytes(const FilePage & entry, Page & page) const {
        const uint8_t * data = source_.pages + entry.at;
        if (entry.state == PageState::sealed)
            page.bytes = PageBytes::mapped(data, entry.bytes, sinks_of(entry), source_.file, source_.needs);
        if (entry.state != PageState::open) return true;
        const auto rows = static_cast<int64_t>(entry.bytes / store_.row_bytes());
        if (entry.bytes % store_.row_bytes() != 0 || rows > page_tokens || end_of(entry.written) > rows) return false;
        page.bytes = store_.make_open(room_for(static_cast<int>(rows)));
        std::memcpy(page.bytes->data(), data, entry.bytes);
        return true;
    }

    vidkv_status find_place(const FilePage & entry, int64_t & place) const {
        if (places_ && entry.number >= n_places_)
            return fail(VIDKV_E_ARGUMENT, "'" + source_.path + "' has more pages than there are places for");
        place = places_ ? places_[entry.number] : entry.number;
        if (place < 0 || place >= store_.pages_per_sequence_ ||
            place * page_tokens + end_of(entry.written) > shape().cells) {
            return fail(VIDKV_E_ARGUMENT, "'" + source_.path + "' does not fit: its page " + std::to_string(entry.number) +
                                              " goes to page " + std::to_string(place) + " of a cache of " +
                                              std::to_string(shape().cells) + " cells");
        }
        const Page & there = sequence_.pages[place];
        if (there.state == PageState::empty && !there.released) return VIDKV_OK;
        return fail(VIDKV_E_ARGUMENT, "page " + std::to_string(place) + " is written already");
    }

    // Pages begin with sink cells as they did where they come from.
    void set_begins() {
        const auto is_first = [](const auto & page) { return page.first == 0; };
        const bool as_usual = !sequence_.host_begins && std::all_of(begins_.begin(), begins_.end(), [&](const auto & page) {
            return page.second == is_first(page);
        });
        if (as_usual || store_.params_.sink_tokens == 0) return;
        const bool loads_first = std::any_of(begins_.begin(), begins_.end(), is_first);
        if (!sequence_.host_begins && !loads_first && sequence_.pages[0].state != PageState::empty)
            sequence_.pages.edit(0).begins = true;
        sequence_.host_begins = true;
        for (const auto & [index, does] : begins_) sequence_.pages.edit(index).begins = does;
    }

    Store & store_;
    const StoreSource & source_;
    Sequence & sequence_;
    const int64_t * places_; // null: pages go where they were
    int64_t n_places_;
    bool keeps_plan_; // pages that are there are packed with the sequence's own
    ByteReader in_, entries_;
    FileStore header_{};
    std::vector<int> sets_;                            // in the sequence, by their number in the file
    std::map<uint64_t, Ref<const PageShifts>> shifts_; // by the number of the entry
    int64_t last_ = -1;
    std::vector<std::pair<int64_t, bool>> begins_; // of the loaded pages
};

vidkv_status Store::load(const StoreSource & source, int sequence, const int64_t * places, int64_t n_places) {
    if (vidkv_status status = check_range(sequence, 0, 0)) return status;
    struct Undo { // of a head_dim that came from the file
        int32_t & head_dim;
        int32_t before = head_dim;
        bool done = false;
        ~Undo() {
            if (!done) head_dim = before;
        }
    } undo{shape_.head_dim};
    Sequence loaded;
    if (places)
        loaded = sequences_[sequence];
    else
        loaded.pages.resize(pages_per_sequence_);
    PartReader reader(*this, source, loaded, places, n_places);
    if (vidkv_status status = reader.read()) return status;
    recount(loaded);
    sequences_[sequence] = std::move(loaded);
    if (!places && reader.keeps_open()) keep_open_ = true;
    undo.done = true;
    return VIDKV_OK;
}

int64_t Store::end(int sequence) const {
    int64_t end = 0;
    sequences_[sequence].pages.for_each([&](int64_t index, const Page & page) {
        if (const int last = end_of(page.written)) end = std::max(end, index * page_tokens + last);
    });
    return end;
}

} // namespace vidkv
