// A store as bytes and back; docs/format.md, "Saved cache".
#include <algorithm>
#include <string>

#include "base/error.h"
#include "cache/store.h"

namespace vidkv {

namespace {

constexpr int64_t most_writes = int64_t{1} << 62; // counting further from there does not overflow

bool is_permutation(const std::vector<uint16_t> & order) {
    std::vector<bool> seen(order.size());
    for (const uint16_t channel : order) {
        if (channel >= order.size() || seen[channel]) return false;
        seen[channel] = true;
    }
    return true;
}

} // namespace

void Store::save_sequence(const Sequence & sequence, std::vector<uint8_t> & out) const {
    append_number(out, sequence.writes);
    append_number(out, static_cast<uint8_t>(sequence.host_marks));
    append_number(out, static_cast<uint32_t>(sequence.plans.size()));
    for (const ChannelPlan & plan : sequence.plans) {
        append_bytes(out, plan.order.data(), plan.order.size() * sizeof(uint16_t));
        append_bytes(out, plan.mean.data(), plan.mean.size() * sizeof(uint16_t));
    }
    append_number(out, static_cast<uint8_t>(sequence.queries != nullptr));
    if (sequence.queries) sequence.queries->save(out);
    const uint16_t * sink_rows = sequence.pages.front().sink_rows.get(); // a cache's sequences begin at page 0
    append_number(out, static_cast<uint8_t>(sink_rows != nullptr));
    if (sink_rows) append_bytes(out, sink_rows, sink_bytes());
    for (const Page & page : sequence.pages) {
        append_number(out, page.state);
        append_number(out, page.marked);
        if (page.state == PageState::empty) continue;
        append_number(out, page.last_write);
        append_number(out, page.written);
        append_number(out, page.bytes);
        append_bytes(out, page.data.get(), page.bytes);
    }
}

void Store::save(std::vector<uint8_t> & out) const {
    append_number(out, static_cast<int32_t>(shape_.head_dim));
    append_number(out, static_cast<uint8_t>(keep_open_));
    for (const Sequence & sequence : sequences_) save_sequence(sequence, out);
}

bool Store::load_sequence(Sequence & sequence, ByteReader & in) const {
    sequence.writes = in.number<int64_t>();
    if (sequence.writes < 0 || sequence.writes > most_writes) return false;
    sequence.host_marks = in.number<uint8_t>() != 0;
    const uint32_t plans = in.number<uint32_t>();
    const bool packs_keys = shape_.head_dim != 0 && shape_.side == VIDKV_KEYS && !is_f16(params_, VIDKV_KEYS);
    const bool trellis = packs_keys && params_.key_codec == VIDKV_CODEC_TRELLIS;
    if (!in.ok() || (plans != 0 && plans != (packs_keys ? static_cast<uint32_t>(kv_heads()) : 0))) return false;
    for (uint32_t i = 0; i < plans; ++i) {
        ChannelPlan plan;
        plan.wide = key_layout_.wide;
        plan.order.resize(static_cast<size_t>(shape_.head_dim));
        if (trellis) plan.mean.resize(plan.order.size());
        if (!in.bytes(plan.order.data(), plan.order.size() * sizeof(uint16_t)) || !is_permutation(plan.order)) return false;
        if (!in.bytes(plan.mean.data(), plan.mean.size() * sizeof(uint16_t))) return false;
        sequence.plans.push_back(std::move(plan));
    }
    if (in.number<uint8_t>()) {
        if (shape_.head_dim == 0 || shape_.side != VIDKV_KEYS || !wants_queries(params_)) return false;
        sequence.queries = std::make_unique<QueryStatistics>(kv_heads(), shape_.head_dim);
        if (!sequence.queries->load(in)) return false;
    }
    if (in.number<uint8_t>()) {
        std::unique_ptr<uint16_t[]> & sink_rows = sequence.pages.front().sink_rows;
        sink_rows = std::make_unique<uint16_t[]>(sink_bytes() / 2);
        if (!in.bytes(sink_rows.get(), sink_bytes())) return false;
    }
    for (size_t i = 0; i < sequence.pages.size(); ++i) {
        if (!load_page(sequence, static_cast<int64_t>(i), sequence.pages[i], in)) return false;
    }
    recount(sequence);
    return in.ok();
}

bool Store::load_page(const Sequence & sequence, int64_t index, Page & page, ByteReader & in) const {
    page.state = in.number<PageState>();
    page.marked = in.number<PageBits>();
    if (!in.ok() || page.state > PageState::sealed) return false;
    if (page.state == PageState::empty) return true;
    page.last_write = in.number<int64_t>();
    page.written = in.number<PageBits>();
    page.bytes = in.number<uint32_t>();
    const bool sealed = page.state == PageState::sealed, keys = shape_.side == VIDKV_KEYS;
    if (sealed) {
        const bool lacks_sinks = sinks_in(sequence, index) && !page.sink_rows, lacks_plans = keys && sequence.plans.empty();
        if (shape_.head_dim == 0 || is_f16(params_, side()) || lacks_sinks || lacks_plans) return false;
    }
    if (page.last_write < 0 || page.last_write > sequence.writes) return false;
    if (!in.ok() || page.bytes > in.left() || (!sealed && page.bytes != open_bytes())) return false;
    page.data = make_page(page.bytes);
    in.bytes(page.data.get(), page.bytes);
    if (!sealed) return in.ok();
    return in.ok() && (keys ? is_sound(key_layout_, page.data.get(), page.bytes)
                            : is_sound(value_layout_, page.data.get(), page.bytes));
}

vidkv_status Store::load(ByteReader & in) {
    const int32_t head_dim = in.number<int32_t>();
    const bool keep_open = in.number<uint8_t>() != 0;
    const vidkv_status broken = VIDKV_E_FORMAT;
    if (!in.ok() || head_dim < 0) return fail(broken, "the saved cache is cut off");
    if (head_dim != 0 && set_head_dim(head_dim) != VIDKV_OK)
        return fail(broken, "the saved cache is altered: " + std::string(last_error()));
    keep_open_ = keep_open;
    clear();
    for (Sequence & sequence : sequences_) {
        if (load_sequence(sequence, in)) continue;
        clear();
        return fail(broken, "the saved cache is cut off or altered");
    }
    return VIDKV_OK;
}

} // namespace vidkv
