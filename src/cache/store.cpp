#include "cache/store.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>
#include <new>

#include "base/error.h"
#include "base/half.h"
#include "base/thread_pool.h"
#include "codec/key_codec.h"
#include "codec/presets.h"
#include "codec/value_codec.h"

namespace vidkv {

namespace {

bool test(const std::array<uint64_t, 2> & bits, int i) { return bits[i / 64] >> (i % 64) & 1u; }
void set(std::array<uint64_t, 2> & bits, int i) { bits[i / 64] |= uint64_t{1} << (i % 64); }
int count(const std::array<uint64_t, 2> & bits) { return std::popcount(bits[0]) + std::popcount(bits[1]); }
void keep_below(std::array<uint64_t, 2> & bits, int n) {
    for (int i = n; i < 128; ++i) bits[i / 64] &= ~(uint64_t{1} << (i % 64));
}

uint16_t to_half(float x) { return float_to_half(x); }
uint16_t to_half(uint16_t x) { return x; }

// A group must be older than itself to be sealed, or the tail of a sequence would be packed while it is being filled.
int64_t seal_age(const vidkv_params & params) { return std::max(params.residual_length, params.group_size); }

} // namespace

Store::Store(const vidkv_store_shape & shape, const vidkv_params & params)
    : shape_(shape), params_(params), groups_a_sequence_((shape.cells + params.group_size - 1) / params.group_size),
      sequences_(static_cast<size_t>(shape.sequences)) {
    for (Sequence & sequence : sequences_) sequence.groups.resize(static_cast<size_t>(groups_a_sequence_));
    const int head_dim = shape.head_dim;
    shape_.head_dim = 0;
    if (head_dim != 0) set_head_dim(head_dim);
}

vidkv_status Store::set_head_dim(int head_dim) {
    if (shape_.head_dim == head_dim) return VIDKV_OK;
    if (shape_.head_dim != 0) return fail(VIDKV_E_ARGUMENT, "the store's head_dim is set already");
    if (vidkv_status status = check_params(params_, head_dim)) return status;
    if (shape_.channels % head_dim != 0) {
        return fail(VIDKV_E_ARGUMENT, "head_dim must divide the number of channels");
    }
    shape_.head_dim = head_dim;
    block_bytes_ = group_bytes(params_, shape_.side, head_dim);
    if (is_f16(params_, shape_.side)) return VIDKV_OK;
    if (shape_.side == VIDKV_KEYS) key_layout_ = make_key_layout(params_, head_dim);
    if (shape_.side == VIDKV_VALUES) value_layout_ = make_value_layout(params_, head_dim);
    return VIDKV_OK;
}

size_t Store::plan_bytes() const {
    return shape_.side == VIDKV_KEYS ? static_cast<size_t>(shape_.channels) * sizeof(uint16_t) : 0;
}

vidkv_status Store::check_range(int sequence, int64_t first_cell, int64_t n) const {
    if (sequence < 0 || sequence >= shape_.sequences) return fail(VIDKV_E_ARGUMENT, "no such sequence in the cache");
    if (n < 0 || first_cell < 0 || first_cell > shape_.cells - n) {
        return fail(VIDKV_E_ARGUMENT, "cells " + std::to_string(first_cell) + ".." + std::to_string(first_cell + n - 1) +
                                          " do not fit a cache of " + std::to_string(shape_.cells) + " cells");
    }
    return VIDKV_OK;
}

GroupView Store::view(int sequence, int64_t group, int kv_head) const {
    const Sequence & seq = sequences_[sequence];
    const Group & g = seq.groups[group];
    GroupView view;
    view.state = g.state;
    const size_t offset = static_cast<size_t>(kv_head) * shape_.head_dim;
    if (g.state == GroupState::open) view.rows = reinterpret_cast<const uint16_t *>(g.data.get()) + offset;
    if (g.state == GroupState::sealed) {
        view.block = g.data.get() + static_cast<size_t>(kv_head) * block_bytes_;
        view.sink_count = sinks_in(group);
        if (view.sink_count) view.sink_rows = seq.sink_rows.get() + offset;
    }
    return view;
}

const ChannelPlan & Store::plan(int sequence, int kv_head) const { return sequences_[sequence].plans[kv_head]; }

void Store::recount(Sequence & sequence) const {
    sequence.open.clear();
    sequence.sealed_groups = 0;
    for (size_t i = 0; i < sequence.groups.size(); ++i) {
        if (sequence.groups[i].state == GroupState::open) sequence.open.push_back(static_cast<int64_t>(i));
        if (sequence.groups[i].state == GroupState::sealed) ++sequence.sealed_groups;
    }
}

// The f16 rows of a group, made if it is empty, decoded if it is sealed.
uint16_t * Store::open_group(Sequence & sequence, int64_t index) {
    Group & group = sequence.groups[index];
    if (group.state == GroupState::open) return reinterpret_cast<uint16_t *>(group.data.get());
    auto data = std::make_unique<uint8_t[]>(open_bytes());
    auto * rows = reinterpret_cast<uint16_t *>(data.get());
    sequence.open.push_back(index);
    if (group.state == GroupState::sealed) {
        decode_group(sequence, index, rows);
        if (sinks_in(index)) sequence.sink_rows.reset();
        --sequence.sealed_groups;
        ++groups_reopened_;
    }
    group.data = std::move(data);
    group.state = GroupState::open;
    return rows;
}

// Fills rows [group_size][channels] from a sealed group; cells never written become zero.
void Store::decode_group(const Sequence & sequence, int64_t index, uint16_t * rows) const {
    const Group & group = sequence.groups[index];
    const int tokens = params_.group_size, head_dim = shape_.head_dim;
    const size_t channels = static_cast<size_t>(shape_.channels);
    std::vector<float> tile(static_cast<size_t>(tokens) * head_dim), natural(tile.size());
    for (int head = 0; head < kv_heads(); ++head) {
        const uint8_t * block = group.data.get() + head * block_bytes_;
        const bool keys = shape_.side == VIDKV_KEYS;
        if (keys) {
            decode_keys(key_layout_, block, tile.data());
            restore_keys(key_layout_, sequence.plans[head], tile.data(), natural.data());
        } else {
            decode_values(value_layout_, block, natural.data());
        }
        for (int t = 0; t < tokens; ++t) {
            if (!test(group.written, t)) continue;
            uint16_t * row = rows + t * channels + static_cast<size_t>(head) * head_dim;
            for (int c = 0; c < head_dim; ++c) row[c] = float_to_half(natural[keys ? c * tokens + t : t * head_dim + c]);
        }
    }
    for (int t = 0; t < sinks_in(index); ++t) {
        if (test(group.written, t)) std::copy_n(&sequence.sink_rows[t * channels], channels, rows + t * channels);
    }
}

template <typename Element>
vidkv_status Store::write(int sequence, const int64_t * cells, int64_t n, const Element * rows, int64_t stride) {
    if (vidkv_status status = check_range(sequence, 0, 0)) return status;
    for (int64_t i = 0; i < n; ++i) {
        if (vidkv_status status = check_range(sequence, cells[i], 1)) return status;
    }
    Sequence & seq = sequences_[sequence];
    const size_t channels = static_cast<size_t>(shape_.channels);
    for (int64_t i = 0; i < n; ++i) {
        const int64_t index = cells[i] / params_.group_size;
        const int token = static_cast<int>(cells[i] % params_.group_size);
        uint16_t * row = open_group(seq, index) + token * channels;
        const Element * from = rows + i * stride;
        for (size_t c = 0; c < channels; ++c) row[c] = to_half(from[c]);
        set(seq.groups[index].written, token);
        seq.groups[index].last_write = ++seq.writes;
    }
    return VIDKV_OK;
}

template vidkv_status Store::write<float>(int, const int64_t *, int64_t, const float *, int64_t);
template vidkv_status Store::write<uint16_t>(int, const int64_t *, int64_t, const uint16_t *, int64_t);

vidkv_status Store::read(int sequence, int64_t first_cell, int64_t n, uint16_t * rows) const {
    if (vidkv_status status = check_range(sequence, first_cell, n)) return status;
    const Sequence & seq = sequences_[sequence];
    const size_t channels = static_cast<size_t>(shape_.channels);
    std::vector<uint16_t> decoded;
    for (int64_t cell = first_cell, end = first_cell + n; cell < end;) {
        const int64_t index = cell / params_.group_size;
        const int64_t token = cell % params_.group_size, take = std::min(params_.group_size - token, end - cell);
        const size_t elements = static_cast<size_t>(take) * channels;
        const Group & group = seq.groups[index];
        if (group.state == GroupState::empty) std::fill_n(rows, elements, uint16_t{0});
        if (group.state == GroupState::open) {
            std::copy_n(reinterpret_cast<const uint16_t *>(group.data.get()) + token * channels, elements, rows);
        }
        if (group.state == GroupState::sealed) {
            decoded.assign(static_cast<size_t>(params_.group_size) * channels, 0);
            decode_group(seq, index, decoded.data());
            std::copy_n(&decoded[token * channels], elements, rows);
        }
        rows += elements;
        cell += take;
    }
    return VIDKV_OK;
}

// One channel plan a KV head, from all tokens that are about to be sealed.
void Store::choose_plans(Sequence & sequence, const std::vector<int64_t> & due) const {
    const int tokens = params_.group_size, head_dim = shape_.head_dim;
    std::vector<float> rows;
    std::vector<uint8_t> use;
    std::vector<ChannelPlan> plans;
    for (int head = 0; head < kv_heads(); ++head) {
        rows.clear();
        use.clear();
        for (const int64_t index : due) {
            const Group & group = sequence.groups[index];
            const auto * data = reinterpret_cast<const uint16_t *>(group.data.get());
            for (int t = 0; t < tokens; ++t) {
                const uint16_t * row = data + static_cast<size_t>(t) * shape_.channels + head * head_dim;
                for (int c = 0; c < head_dim; ++c) rows.push_back(half_to_float(row[c]));
                use.push_back(test(group.written, t) && t >= sinks_in(index));
            }
        }
        plans.push_back(choose_channels(rows.data(), use.data(), static_cast<int64_t>(use.size()), head_dim, key_layout_.wide));
    }
    sequence.plans = std::move(plans);
}

// Packs an open group: blocks has room for kv_heads blocks.
void Store::encode_group(const Sequence & sequence, int64_t index, uint8_t * blocks) const {
    const Group & group = sequence.groups[index];
    const int tokens = params_.group_size, head_dim = shape_.head_dim;
    const auto * data = reinterpret_cast<const uint16_t *>(group.data.get());
    std::vector<float> x(static_cast<size_t>(tokens) * head_dim);
    std::vector<uint8_t> use(tokens);
    for (int t = 0; t < tokens; ++t) use[t] = test(group.written, t) && t >= sinks_in(index);
    const bool keys = shape_.side == VIDKV_KEYS;
    for (int head = 0; head < kv_heads(); ++head) {
        for (int t = 0; t < tokens; ++t) {
            const uint16_t * row = data + static_cast<size_t>(t) * shape_.channels + head * head_dim;
            for (int c = 0; c < head_dim; ++c) x[keys ? c * tokens + t : t * head_dim + c] = half_to_float(row[c]);
        }
        uint8_t * block = blocks + head * block_bytes_;
        if (keys) encode_keys(key_layout_, sequence.plans[head], x.data(), use.data(), block);
        else encode_values(value_layout_, x.data(), use.data(), block);
    }
}

vidkv_status Store::seal(int threads) {
    if (!packs()) return VIDKV_OK;
    for (Sequence & sequence : sequences_) {
        std::vector<int64_t> due;
        for (const int64_t index : sequence.open) {
            if (sequence.writes - sequence.groups[index].last_write >= seal_age(params_)) due.push_back(index);
        }
        if (due.empty()) continue;
        std::sort(due.begin(), due.end());
        if (shape_.side == VIDKV_KEYS && sequence.sealed_groups == 0) choose_plans(sequence, due);
        std::vector<std::unique_ptr<uint8_t[]>> blocks(due.size());
        for (auto & block : blocks) block = std::make_unique<uint8_t[]>(sealed_bytes());
        std::atomic<bool> no_memory{false};
        parallel_for(static_cast<int64_t>(due.size()), threads, [&](int64_t i) {
            try {
                encode_group(sequence, due[i], blocks[i].get());
            } catch (const std::bad_alloc &) {
                no_memory = true;
            }
        });
        if (no_memory) throw std::bad_alloc();
        for (size_t i = 0; i < due.size(); ++i) {
            Group & group = sequence.groups[due[i]];
            if (const int sinks = sinks_in(due[i])) {
                const size_t elements = static_cast<size_t>(sinks) * shape_.channels;
                sequence.sink_rows = std::make_unique<uint16_t[]>(elements);
                std::memcpy(sequence.sink_rows.get(), group.data.get(), elements * 2);
            }
            group.data = std::move(blocks[i]);
            group.state = GroupState::sealed;
            ++sequence.sealed_groups;
        }
        std::erase_if(sequence.open, [&](int64_t index) { return sequence.groups[index].state == GroupState::sealed; });
    }
    return VIDKV_OK;
}

vidkv_status Store::truncate(int sequence, int64_t first_cell) {
    if (vidkv_status status = check_range(sequence, first_cell, 0)) return status;
    Sequence & seq = sequences_[sequence];
    const int64_t cut = first_cell / params_.group_size;
    const int kept = static_cast<int>(first_cell % params_.group_size);
    for (int64_t i = groups_a_sequence_ - 1; i >= cut; --i) {
        Group & group = seq.groups[i];
        if (group.state == GroupState::empty) continue;
        if (i == cut && kept > 0) {
            const size_t row_bytes = static_cast<size_t>(shape_.channels) * 2;
            open_group(seq, i);
            std::fill(group.data.get() + kept * row_bytes, group.data.get() + open_bytes(), uint8_t{0});
            keep_below(group.written, kept);
            continue;
        }
        group = Group();
    }
    if (first_cell == 0) seq.sink_rows.reset();
    recount(seq);
    return VIDKV_OK;
}

vidkv_status Store::copy_sequence(int from, int to) {
    if (vidkv_status status = check_range(from, 0, 0)) return status;
    if (vidkv_status status = check_range(to, 0, 0)) return status;
    if (from == to) return VIDKV_OK;
    const Sequence & source = sequences_[from];
    Sequence copy;
    copy.plans = source.plans;
    copy.writes = source.writes;
    if (source.sink_rows) {
        copy.sink_rows = std::make_unique<uint16_t[]>(sink_bytes() / 2);
        std::memcpy(copy.sink_rows.get(), source.sink_rows.get(), sink_bytes());
    }
    copy.groups.resize(source.groups.size());
    for (size_t i = 0; i < source.groups.size(); ++i) {
        const Group & group = source.groups[i];
        copy.groups[i].written = group.written;
        copy.groups[i].last_write = group.last_write;
        copy.groups[i].state = group.state;
        if (group.state == GroupState::empty) continue;
        const size_t bytes = group.state == GroupState::open ? open_bytes() : sealed_bytes();
        copy.groups[i].data = std::make_unique<uint8_t[]>(bytes);
        std::memcpy(copy.groups[i].data.get(), group.data.get(), bytes);
    }
    recount(copy);
    sequences_[to] = std::move(copy);
    return VIDKV_OK;
}

void Store::clear() {
    for (Sequence & sequence : sequences_) {
        for (Group & group : sequence.groups) group = Group();
        sequence.plans.clear();
        sequence.sink_rows.reset();
        sequence.writes = 0;
        recount(sequence);
    }
}

vidkv_store_stats Store::stats() const {
    vidkv_store_stats stats{};
    for (const Sequence & sequence : sequences_) {
        stats.bytes += sequence.groups.size() * sizeof(Group) + sequence.open.capacity() * sizeof(int64_t);
        if (!sequence.plans.empty()) stats.bytes += plan_bytes();
        if (sequence.sink_rows) stats.bytes += sink_bytes();
        for (const Group & group : sequence.groups) {
            const int cells = count(group.written);
            stats.cells_written += cells;
            if (group.state == GroupState::open) stats.bytes += open_bytes();
            if (group.state != GroupState::sealed) continue;
            stats.bytes += sealed_bytes();
            stats.sealed_bytes += sealed_bytes();
            stats.cells_sealed += cells;
        }
    }
    stats.bytes_f16 = static_cast<uint64_t>(stats.cells_written) * shape_.channels * 2;
    stats.bytes_planned = planned_bytes(shape_, params_);
    stats.groups_reopened = groups_reopened_;
    return stats;
}

uint64_t planned_bytes(const vidkv_store_shape & shape, const vidkv_params & params) {
    // With head_dim not known yet, count as for one of 64: the bits hardly depend on it.
    const int head_dim = shape.head_dim ? shape.head_dim : shape.channels % 64 == 0 ? 64 : 8;
    const uint64_t channels = static_cast<uint64_t>(shape.channels);
    const uint64_t groups = static_cast<uint64_t>((shape.cells + params.group_size - 1) / params.group_size);
    const uint64_t open_group = static_cast<uint64_t>(params.group_size) * channels * 2;
    const uint64_t sealed_group = group_bytes(params, shape.side, head_dim) * channels / static_cast<uint64_t>(head_dim);
    const uint64_t window = static_cast<uint64_t>(seal_age(params) + params.group_size - 1) / static_cast<uint64_t>(params.group_size);
    const uint64_t open = is_f16(params, shape.side) ? groups : std::min(groups, window + 1);
    uint64_t bytes = open * open_group + (groups - open) * sealed_group + groups * Store::group_entry_bytes();
    if (groups > open) {
        bytes += static_cast<uint64_t>(params.sink_tokens) * channels * 2;
        if (shape.side == VIDKV_KEYS) bytes += channels * sizeof(uint16_t);
    }
    return bytes * static_cast<uint64_t>(shape.sequences);
}

} // namespace vidkv
