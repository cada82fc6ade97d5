#include "cache/store.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <new>

#include "base/error.h"
#include "base/half.h"
#include "codec/two_bit.h"
#include "codec/presets.h"

namespace vidkv {

namespace {

bool test(const PageBits & bits, int i) { return bits[i / 64] >> (i % 64) & 1u; }
void unset(PageBits & bits, int i) { bits[i / 64] &= ~(uint64_t{1} << (i % 64)); }
void set(PageBits & bits, int i) { bits[i / 64] |= uint64_t{1} << (i % 64); }
int count(const PageBits & bits) { return std::popcount(bits[0]) + std::popcount(bits[1]); }
void keep_below(PageBits & bits, int n) {
    for (int i = n; i < 128; ++i) bits[i / 64] &= ~(uint64_t{1} << (i % 64));
}

uint16_t to_half(float x) { return float_to_half(x); }
uint16_t to_half(uint16_t x) { return x; }

} // namespace

vidkv_status check_store(const vidkv_store_shape & shape, const vidkv_params & params) {
    if (vidkv_status status = check_params(params, shape.head_dim)) return status;
    if (shape.side != VIDKV_KEYS && shape.side != VIDKV_VALUES)
        return fail(VIDKV_E_ARGUMENT, "side must be keys or values");
    if (shape.channels < 1 || shape.channels > most_channels) {
        return fail(VIDKV_E_ARGUMENT,
                    "channels must be 1 to " + std::to_string(most_channels) + "; got " + std::to_string(shape.channels));
    }
    if (shape.sequences < 1 || shape.sequences > most_sequences) {
        return fail(VIDKV_E_ARGUMENT, "sequences must be 1 to " + std::to_string(most_sequences) + "; got " +
                                          std::to_string(shape.sequences));
    }
    if (shape.cells < 1 || shape.cells > INT32_MAX) return fail(VIDKV_E_ARGUMENT, "cells must be 1 to 2147483647");
    if (shape.head_dim == 0) return VIDKV_OK;
    if (shape.channels % shape.head_dim != 0) return fail(VIDKV_E_ARGUMENT, "head_dim must divide the number of channels");
    const bool trellis_keys =
        shape.side == VIDKV_KEYS && params.key_codec == VIDKV_CODEC_TRELLIS && !is_f16(params, VIDKV_KEYS);
    if (trellis_keys && make_key_layout(params, shape.head_dim, shape.channels / shape.head_dim).quad_bits > UINT16_MAX) {
        return fail(VIDKV_E_ARGUMENT, "trellis keys of " + std::to_string(shape.channels) +
                                          " channels at these bits do not fit the format: use fewer bits");
    }
    return VIDKV_OK;
}

Store::Store(const vidkv_store_shape & shape, const vidkv_params & params)
    : shape_(shape), params_(params), pages_per_sequence_((shape.cells + page_tokens - 1) / page_tokens),
      sequences_(static_cast<size_t>(shape.sequences)) {
    for (Sequence & sequence : sequences_) sequence.pages.resize(pages_per_sequence_);
    const int head_dim = shape.head_dim;
    shape_.head_dim = 0;
    if (head_dim != 0) set_head_dim(head_dim);
}

vidkv_status Store::set_head_dim(int head_dim) {
    if (shape_.head_dim == head_dim) return VIDKV_OK;
    if (shape_.head_dim != 0) return fail(VIDKV_E_ARGUMENT, "the store's head_dim is set already");
    vidkv_store_shape shape = shape_;
    shape.head_dim = head_dim;
    if (vidkv_status status = check_store(shape, params_)) return status;
    shape_.head_dim = head_dim;
    if (is_f16(params_, side())) return VIDKV_OK;
    if (shape_.side == VIDKV_KEYS) key_layout_ = make_key_layout(params_, head_dim, kv_heads());
    if (shape_.side == VIDKV_VALUES) value_layout_ = make_value_layout(params_, head_dim, kv_heads());
    return VIDKV_OK;
}

size_t Store::plan_bytes() const {
    if (shape_.side == VIDKV_VALUES) return 0;
    const bool means = params_.key_codec == VIDKV_CODEC_TRELLIS;
    return static_cast<size_t>(shape_.channels) * sizeof(uint16_t) * (means ? 2 : 1);
}

vidkv_status Store::check_range(int sequence, int64_t first_cell, int64_t n) const {
    if (sequence < 0 || sequence >= shape_.sequences) return fail(VIDKV_E_ARGUMENT, "no such sequence in the cache");
    if (n < 0 || first_cell < 0 || first_cell > shape_.cells - n) {
        return fail(VIDKV_E_ARGUMENT, "cells " + std::to_string(first_cell) + ".." + std::to_string(first_cell + n - 1) +
                                          " do not fit a cache of " + std::to_string(shape_.cells) + " cells");
    }
    return VIDKV_OK;
}

PageView Store::view(int sequence, int64_t page, int kv_head) const {
    const Sequence & seq = sequences_[sequence];
    const Page & p = seq.pages[page];
    PageView view;
    view.state = p.state;
    const size_t offset = static_cast<size_t>(kv_head) * shape_.head_dim;
    if (p.state == PageState::open) {
        view.rows = rows_of(p) + offset;
        view.held = rows_held(p);
    }
    if (p.state == PageState::sealed) {
        view.page = p.bytes->data();
        view.plan = p.plan;
        view.shifts = p.shifts.get();
        view.sink_count = sinks_in(seq, page);
        if (view.sink_count) view.sink_rows = p.bytes->sink_rows() + offset;
    }
    return view;
}

void Store::fetch_view(int sequence, int64_t page) const {
    const PageTable & pages = sequences_[sequence].pages;
    __builtin_prefetch(pages[page].bytes.get());
    __builtin_prefetch(&pages[std::min(page + 2, pages.size() - 1)]);
}

const ChannelPlan & Store::plan(int sequence, int kv_head, int set) const {
    return (*sequences_[sequence].plans[static_cast<size_t>(set)])[static_cast<size_t>(kv_head)];
}

void Store::recount(Sequence & sequence) const {
    sequence.open.clear();
    sequence.sealed_pages = 0;
    sequence.pages.for_each([&](int64_t index, const Page & page) {
        if (page.state == PageState::open) sequence.open.push_back(index);
        if (page.state == PageState::sealed || page.released) ++sequence.sealed_pages;
    });
}

Ref<PageBytes> Store::make_open(int rows) const {
    const size_t size = static_cast<size_t>(rows) * row_bytes();
    return packs() ? PageBytes::make_for_now(size) : PageBytes::make(size);
}

// The f16 rows of a page, `rows` of them or more, shared with no copy: made if it is empty, decoded if it is sealed. Nothing has changed
// if there is no memory for that.
uint16_t * Store::open_page(Sequence & sequence, int64_t index, int rows) {
    Page & page = sequence.pages.edit(index);
    const bool open = page.state == PageState::open, sealed = page.state == PageState::sealed;
    const int held = open ? rows_held(page) : 0;
    if (held >= rows && page.bytes.is_alone()) return rows_of(page);
    const int wanted = sealed ? page_tokens : std::max(held, room_for(rows));
    Ref<PageBytes> bytes = make_open(wanted);
    if (open) std::memcpy(bytes->data(), page.bytes->data(), page.bytes->size());
    if (sealed) decode_page(sequence, index, reinterpret_cast<uint16_t *>(bytes->data()));
    if (!open) sequence.open.push_back(index);
    if (sealed) {
        --sequence.sealed_pages;
        ++pages_reopened_;
    }
    if (page.released) --sequence.sealed_pages;
    page.released = false;
    page.bytes = std::move(bytes);
    page.shifts.reset();
    page.state = PageState::open;
    return rows_of(page);
}

// The f16 row of a token, shared with no copy. A sink token of a sealed page has one beside the codes, which stay; else the page is open
// then.
uint16_t * Store::row_to_write(Sequence & sequence, int64_t index, int token) {
    const size_t offset = static_cast<size_t>(token) * static_cast<size_t>(shape_.channels);
    if (sequence.pages[index].state != PageState::sealed || token >= sinks_in(sequence, index))
        return open_page(sequence, index, token + 1) + offset;
    Page & page = sequence.pages.edit(index);
    if (page.bytes->is_mapped() || !page.bytes.is_alone()) page.bytes = PageBytes::copy_of(*page.bytes);
    return page.bytes->sink_rows() + offset;
}

// Fills rows [128][channels] from a sealed page; cells never written become zero.
void Store::decode_page(const Sequence & sequence, int64_t index, uint16_t * rows) const {
    const Page & page = sequence.pages[index];
    const int head_dim = shape_.head_dim;
    const size_t channels = static_cast<size_t>(shape_.channels);
    const bool keys = shape_.side == VIDKV_KEYS;
    std::vector<float> x(static_cast<size_t>(page_tokens) * head_dim), vector(static_cast<size_t>(head_dim));
    for (int head = 0; head < kv_heads(); ++head) {
        if (keys)
            decode_keys(key_layout_, (*sequence.plans[page.plan])[head], key_page(key_layout_, page.bytes->data(), head),
                        x.data());
        else
            decode_values(value_layout_, value_page(value_layout_, page.bytes->data(), head), x.data());
        for (int t = 0; t < page_tokens; ++t) {
            if (!test(page.written, t)) continue;
            uint16_t * row = rows + t * channels + static_cast<size_t>(head) * head_dim;
            for (int c = 0; c < head_dim; ++c) vector[c] = x[keys ? c * page_tokens + t : t * head_dim + c];
            if (const Shift * shift = page.shifts ? page.shifts->of(t) : nullptr)
                shift->turn(*page.shifts->rope, vector.data());
            for (int c = 0; c < head_dim; ++c) row[c] = float_to_half(sanitize(vector[c]));
        }
    }
    for (int t = 0; t < sinks_in(sequence, index); ++t) {
        if (test(page.written, t))
            std::copy_n(page.bytes->sink_rows() + static_cast<size_t>(t) * channels, channels, rows + t * channels);
    }
}

vidkv_status Store::make_room(int sequence, const int64_t * cells, int64_t n) {
    if (vidkv_status status = check_range(sequence, 0, 0)) return status;
    for (int64_t i = 0; i < n; ++i) {
        if (vidkv_status status = check_range(sequence, cells[i], 1)) return status;
        const int64_t index = cells[i] / page_tokens;
        if (vidkv_status status = check_mapped(sequence, index, index + 1)) return status;
    }
    Sequence & seq = sequences_[sequence];
    for (int64_t i = n; i-- > 0;) // the last cell of a page first: it grows once
        row_to_write(seq, cells[i] / page_tokens, static_cast<int>(cells[i] % page_tokens));
    return VIDKV_OK;
}

template <typename Element>
vidkv_status Store::write(int sequence, const int64_t * cells, int64_t n, const Element * rows, int64_t stride) {
    if (vidkv_status status = make_room(sequence, cells, n)) return status;
    Sequence & seq = sequences_[sequence];
    const size_t channels = static_cast<size_t>(shape_.channels);
    for (int64_t i = 0; i < n; ++i) {
        const int64_t index = cells[i] / page_tokens;
        const int token = static_cast<int>(cells[i] % page_tokens);
        uint16_t * row = row_to_write(seq, index, token);
        const Element * from = rows + i * stride;
        for (size_t c = 0; c < channels; ++c) row[c] = to_half(from[c]);
        Page & page = seq.pages.edit(index);
        set(page.written, token);
        page.last_write = ++seq.writes;
    }
    return VIDKV_OK;
}

template vidkv_status Store::write<float>(int, const int64_t *, int64_t, const float *, int64_t);
template vidkv_status Store::write<uint16_t>(int, const int64_t *, int64_t, const uint16_t *, int64_t);

vidkv_status Store::read(int sequence, int64_t first_cell, int64_t n, uint16_t * rows) const {
    if (vidkv_status status = check_range(sequence, first_cell, n)) return status;
    const int64_t end_page = (first_cell + n + page_tokens - 1) / page_tokens;
    if (vidkv_status status = check_mapped(sequence, first_cell / page_tokens, end_page)) return status;
    const Sequence & seq = sequences_[sequence];
    const size_t channels = static_cast<size_t>(shape_.channels);
    std::vector<uint16_t> decoded;
    for (int64_t cell = first_cell, end = first_cell + n; cell < end;) {
        const int64_t index = cell / page_tokens;
        const int64_t token = cell % page_tokens, take = std::min(page_tokens - token, end - cell);
        const size_t elements = static_cast<size_t>(take) * channels;
        const Page & page = seq.pages[index];
        if (page.state != PageState::sealed) std::fill_n(rows, elements, uint16_t{0});
        if (page.state == PageState::open) {
            const int64_t there = std::clamp<int64_t>(rows_held(page) - token, 0, take);
            std::copy_n(rows_of(page) + token * channels, static_cast<size_t>(there) * channels, rows);
        }
        if (page.state == PageState::sealed) {
            decoded.assign(static_cast<size_t>(page_tokens) * channels, 0);
            decode_page(seq, index, decoded.data());
            std::copy_n(&decoded[token * channels], elements, rows);
        }
        rows += elements;
        cell += take;
    }
    return VIDKV_OK;
}

vidkv_status Store::truncate(int sequence, int64_t first_cell) {
    if (vidkv_status status = check_range(sequence, first_cell, 0)) return status;
    Sequence & seq = sequences_[sequence];
    const int64_t cut = first_cell / page_tokens;
    const int kept = static_cast<int>(first_cell % page_tokens);
    if (vidkv_status status = check_mapped(sequence, cut, cut + (kept != 0))) return status;
    if (kept != 0)
        cut_page(seq, cut, kept);
    else
        seq.pages.prepare_clear_from(cut); // what may fail comes first
    seq.pages.clear_from(cut + (kept != 0));
    if (first_cell == 0) {
        seq.queries.reset();
        seq.host_marks = seq.host_begins = false;
    }
    recount(seq);
    return VIDKV_OK;
}

void Store::cut_page(Sequence & sequence, int64_t index, int kept) {
    Page & page = sequence.pages.edit(index);
    if (page.state != PageState::empty) {
        const int held = page.state == PageState::open ? rows_held(page) : page_tokens;
        auto * rows = reinterpret_cast<uint8_t *>(open_page(sequence, index, held));
        if (kept < held) std::memset(rows + kept * row_bytes(), 0, static_cast<size_t>(held - kept) * row_bytes());
        keep_below(page.written, kept);
        page.last_write = sequence.writes; // it will be filled again: packing it now would only pack it twice
    }
    keep_below(page.marked, kept);
    page.released = false;
}

vidkv_status Store::erase(int sequence, const int64_t * cells, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
        if (vidkv_status status = check_range(sequence, cells[i], 1)) return status;
    }
    if (vidkv_status status = check_range(sequence, 0, 0)) return status;
    Sequence & seq = sequences_[sequence];
    for (int64_t i = 0; i < n; ++i) { // what may fail comes first
        const int64_t index = cells[i] / page_tokens;
        const PageState state = seq.pages[index].state;
        if (state == PageState::sealed) seq.pages.own(index);
        if (state == PageState::open) open_page(seq, index, rows_held(seq.pages[index]));
    }
    bool freed = false;
    for (int64_t i = 0; i < n; ++i) {
        const int64_t index = cells[i] / page_tokens;
        const int token = static_cast<int>(cells[i] % page_tokens);
        if (seq.pages[index].state == PageState::empty) continue;
        Page & page = seq.pages.edit(index);
        unset(page.written, token);
        unset(page.marked, token);
        if (page.state == PageState::open && token < rows_held(page))
            std::memset(page.bytes->data() + token * row_bytes(), 0, row_bytes());
        if (count(page.written) > 0) continue;
        page = Page();
        freed = true;
    }
    if (freed) recount(seq);
    return VIDKV_OK;
}

vidkv_status Store::begin(int sequence, int64_t index) {
    if (index < 0 || index >= pages_per_sequence_)
        return fail(VIDKV_E_ARGUMENT, "page " + std::to_string(index) + " does not exist");
    if (vidkv_status status = check_range(sequence, 0, 0)) return status;
    Page & page = sequences_[sequence].pages.edit(index);
    if (page.state != PageState::empty)
        return fail(VIDKV_E_ARGUMENT, "page " + std::to_string(index) + " is written already");
    page.begins = sequences_[sequence].host_begins = true;
    return VIDKV_OK;
}

bool Store::began() const {
    return std::any_of(sequences_.begin(), sequences_.end(),
                       [](const Sequence & sequence) { return sequence.host_begins; });
}

void Store::clear() {
    for (Sequence & sequence : sequences_) {
        sequence.pages.clear();
        sequence.plans.clear();
        sequence.queries.reset();
        sequence.host_marks = sequence.host_begins = false;
        sequence.writes = 0;
        recount(sequence);
    }
}

// What copies of a sequence share is counted with the first of them.
uint64_t Store::shared_bytes(size_t s) const {
    const Sequence & sequence = sequences_[s];
    const auto is_counted = [&](auto is_there) {
        return std::any_of(sequences_.begin(), sequences_.begin() + static_cast<ptrdiff_t>(s), is_there);
    };
    uint64_t bytes = 0;
    for (const auto & set : sequence.plans) {
        const auto has_set = [&](const Sequence & other) {
            return std::find(other.plans.begin(), other.plans.end(), set) != other.plans.end();
        };
        if (!is_counted(has_set)) bytes += plan_bytes();
    }
    const auto has_statistics = [&](const Sequence & other) { return other.queries == sequence.queries; };
    if (sequence.queries && !is_counted(has_statistics)) bytes += sequence.queries->bytes();
    return bytes;
}

vidkv_store_stats Store::stats() const {
    vidkv_store_stats stats{};
    for (size_t s = 0; s < sequences_.size(); ++s) {
        const Sequence & sequence = sequences_[s];
        const auto earlier = [&](size_t i) -> const PageTable & { return sequences_[i].pages; };
        stats.bytes += sequence.pages.bytes_held(s, earlier, stats.bytes_mapped, stats.sealed_bytes) + shared_bytes(s) +
                       sequence.open.capacity() * sizeof(int64_t);
        sequence.pages.for_each([&](int64_t, const Page & page) {
            const int cells = count(page.written);
            stats.cells_written += cells;
            if (page.state == PageState::sealed) stats.cells_sealed += cells;
        });
    }
    stats.bytes_f16 = static_cast<uint64_t>(stats.cells_written) * shape_.channels * 2;
    stats.bytes_planned = planned_bytes(shape_, params_);
    stats.pages_reopened = pages_reopened_;
    return stats;
}

uint64_t planned_bytes(const vidkv_store_shape & shape, const vidkv_params & params) {
    // A head_dim that is not known yet counts as 64: the bits per element hardly depend on it.
    const int head_dim = shape.head_dim ? shape.head_dim : shape.channels % 64 == 0 ? 64 : 8;
    const int kv_heads = shape.channels / head_dim;
    const auto side = static_cast<vidkv_side>(shape.side);
    const bool packs = !is_f16(params, side), keys = side == VIDKV_KEYS;
    const uint64_t channels = static_cast<uint64_t>(shape.channels);
    const uint64_t pages = static_cast<uint64_t>((shape.cells + page_tokens - 1) / page_tokens);
    const uint64_t open_page = page_tokens * channels * 2;
    const uint64_t window = static_cast<uint64_t>((seal_age(params) + page_tokens - 1) / page_tokens);
    const uint64_t open = packs ? std::min(pages, window + 1) : pages;
    uint64_t bytes = open * open_page + (pages - open) * page_bytes(params, side, head_dim, kv_heads) +
                     PageTable::bytes_planned(static_cast<int64_t>(pages));
    if (pages > open) {
        bytes += static_cast<uint64_t>(params.sink_tokens) * channels * 2;
        if (keys) bytes += channels * sizeof(uint16_t) * (params.key_codec == VIDKV_CODEC_TRELLIS ? 2 : 1);
    }
    if (keys && wants_queries(params)) bytes += QueryStatistics::bytes_for(kv_heads, head_dim);
    uint64_t all = 0;
    return __builtin_mul_overflow(bytes, static_cast<uint64_t>(shape.sequences), &all) ? UINT64_MAX : all;
}

} // namespace vidkv
