// A store as bytes and back; docs/format.md, "Saved cache".
#include <algorithm>

#include "base/error.h"
#include "cache/store.h"

namespace vidkv {

namespace {

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
    append_number(out, static_cast<uint32_t>(sequence.plans.size()));
    for (const ChannelPlan & plan : sequence.plans) append_bytes(out, plan.order.data(), plan.order.size() * sizeof(uint16_t));
    append_number(out, static_cast<uint8_t>(sequence.sink_rows != nullptr));
    if (sequence.sink_rows) append_bytes(out, sequence.sink_rows.get(), sink_bytes());
    for (const Group & group : sequence.groups) {
        append_number(out, group.state);
        if (group.state == GroupState::empty) continue;
        append_number(out, group.last_write);
        append_number(out, group.written);
        append_bytes(out, group.data.get(), group.state == GroupState::open ? open_bytes() : sealed_bytes());
    }
}

void Store::save(std::vector<uint8_t> & out) const {
    append_number(out, static_cast<int32_t>(shape_.head_dim));
    append_number(out, static_cast<uint8_t>(keep_open_));
    for (const Sequence & sequence : sequences_) save_sequence(sequence, out);
}

bool Store::load_sequence(Sequence & sequence, ByteReader & in) const {
    sequence.writes = in.number<int64_t>();
    const uint32_t plans = in.number<uint32_t>();
    const bool may_seal = shape_.head_dim != 0 && !is_f16(params_, shape_.side);
    const uint32_t heads = may_seal && shape_.side == VIDKV_KEYS ? static_cast<uint32_t>(kv_heads()) : 0;
    if (!in.ok() || (plans != 0 && plans != heads)) return false;
    for (uint32_t i = 0; i < plans; ++i) {
        ChannelPlan plan;
        plan.wide = key_layout_.wide;
        plan.order.resize(static_cast<size_t>(shape_.head_dim));
        if (!in.bytes(plan.order.data(), plan.order.size() * sizeof(uint16_t)) || !is_permutation(plan.order)) return false;
        sequence.plans.push_back(std::move(plan));
    }
    if (in.number<uint8_t>()) {
        sequence.sink_rows = std::make_unique<uint16_t[]>(sink_bytes() / 2);
        if (!in.bytes(sequence.sink_rows.get(), sink_bytes())) return false;
    }
    for (size_t i = 0; i < sequence.groups.size(); ++i) {
        Group & group = sequence.groups[i];
        group.state = in.number<GroupState>();
        if (!in.ok() || group.state > GroupState::sealed) return false;
        if (group.state == GroupState::empty) continue;
        group.last_write = in.number<int64_t>();
        group.written = in.number<std::array<uint64_t, 2>>();
        const bool sealed = group.state == GroupState::sealed;
        const bool lacks_sinks = sealed && sinks_in(static_cast<int64_t>(i)) && !sequence.sink_rows;
        if (sealed && (!may_seal || lacks_sinks || sequence.plans.size() != heads)) return false;
        const size_t bytes = sealed ? sealed_bytes() : open_bytes();
        if (bytes > in.left()) return false;
        group.data = std::make_unique<uint8_t[]>(bytes);
        in.bytes(group.data.get(), bytes);
    }
    recount(sequence);
    return in.ok();
}

vidkv_status Store::load(ByteReader & in) {
    const int32_t head_dim = in.number<int32_t>();
    const bool keep_open = in.number<uint8_t>() != 0;
    const vidkv_status broken = VIDKV_E_FORMAT;
    if (!in.ok() || head_dim < 0) return fail(broken, "the saved cache is cut off");
    if (head_dim != 0) {
        if (vidkv_status status = set_head_dim(head_dim)) return status;
    }
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
