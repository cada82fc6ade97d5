// Keys or values of one layer: groups of cells, open (f16 rows) or sealed (packed blocks). See vidkv.h for the words.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "base/bytes.h"
#include "codec/channel_plan.h"
#include "codec/layout.h"
#include "vidkv/vidkv.h"

namespace vidkv {

enum class GroupState : uint8_t { empty, open, sealed };

// What attention needs to know of one group and one KV head.
struct GroupView {
    GroupState state = GroupState::empty;
    const uint16_t * rows = nullptr;  // open: f16, token t of this head at rows + t * channels
    const uint8_t * block = nullptr;  // sealed: the packed block of this head
    // sealed, and the group begins with sink cells: their f16 rows (same stride), which replace the codes of tokens
    // 0 .. sink_count - 1
    const uint16_t * sink_rows = nullptr;
    int sink_count = 0;
};

class Store {
  public:
    Store(const vidkv_store_shape & shape, const vidkv_params & params);

    vidkv_side side() const { return shape_.side; }
    const vidkv_params & params() const { return params_; }
    const vidkv_store_shape & shape() const { return shape_; }
    int channels() const { return shape_.channels; }
    int head_dim() const { return shape_.head_dim; } // 0: not known yet
    int kv_heads() const { return shape_.channels / shape_.head_dim; }
    int group_size() const { return params_.group_size; }
    int64_t cells() const { return shape_.cells; }
    int64_t groups() const { return groups_a_sequence_; }
    const KeyLayout & key_layout() const { return key_layout_; }       // keys, not f16, head_dim known
    const ValueLayout & value_layout() const { return value_layout_; } // values, likewise

    GroupView view(int sequence, int64_t group, int kv_head) const;
    const ChannelPlan & plan(int sequence, int kv_head) const; // keys: valid once the sequence has a sealed group

    vidkv_status set_head_dim(int head_dim);
    template <typename Element> // float or uint16_t (f16)
    vidkv_status write(int sequence, const int64_t * cells, int64_t n, const Element * rows, int64_t stride);
    vidkv_status read(int sequence, int64_t first_cell, int64_t n, uint16_t * rows) const;
    vidkv_status seal(int threads);
    void keep_open() { keep_open_ = true; }
    vidkv_status truncate(int sequence, int64_t first_cell);
    vidkv_status copy_sequence(int from, int to);
    void clear();
    vidkv_store_stats stats() const;
    static size_t group_entry_bytes() { return sizeof(Group); } // the table of groups is counted as held

    // Everything that is needed to continue, sealed blocks bit for bit (docs/format.md). load replaces the contents; when
    // it fails the store holds nothing, so load into a fresh store and swap.
    void save(std::vector<uint8_t> & out) const;
    vidkv_status load(ByteReader & in);

  private:
    struct Group {
        std::unique_ptr<uint8_t[]> data;   // open: f16 rows; sealed: kv_heads blocks; empty: null
        std::array<uint64_t, 2> written{}; // one bit a cell
        int64_t last_write = 0;            // the sequence's write count after this group's newest write
        GroupState state = GroupState::empty;
    };
    struct Sequence {
        std::vector<Group> groups;
        std::vector<int64_t> open;             // the open groups in no order: sealing looks at these alone
        std::vector<ChannelPlan> plans;        // one a KV head, keys only; empty until the first seal
        std::unique_ptr<uint16_t[]> sink_rows; // [sink_tokens][channels], while the first group is sealed
        int64_t writes = 0;                    // rows written since the last clear
        int64_t sealed_groups = 0;
    };

    size_t open_bytes() const { return static_cast<size_t>(params_.group_size) * static_cast<size_t>(shape_.channels) * 2; }
    size_t sealed_bytes() const { return block_bytes_ * static_cast<size_t>(kv_heads()); }
    size_t plan_bytes() const;
    size_t sink_bytes() const { return static_cast<size_t>(params_.sink_tokens) * static_cast<size_t>(shape_.channels) * 2; }
    int sinks_in(int64_t group) const { return group == 0 ? params_.sink_tokens : 0; }
    bool packs() const { return !keep_open_ && shape_.head_dim != 0 && !is_f16(params_, shape_.side); }
    vidkv_status check_range(int sequence, int64_t first_cell, int64_t n) const;

    void recount(Sequence & sequence) const; // derives `open` and `sealed_groups` from the groups
    uint16_t * open_group(Sequence & sequence, int64_t index);
    void decode_group(const Sequence & sequence, int64_t index, uint16_t * rows) const;
    void choose_plans(Sequence & sequence, const std::vector<int64_t> & due) const;
    void encode_group(const Sequence & sequence, int64_t index, uint8_t * blocks) const;
    void save_sequence(const Sequence & sequence, std::vector<uint8_t> & out) const;
    bool load_sequence(Sequence & sequence, ByteReader & in) const;

    vidkv_store_shape shape_;
    vidkv_params params_;
    int64_t groups_a_sequence_ = 0;
    size_t block_bytes_ = 0; // of one KV head's sealed group
    KeyLayout key_layout_;
    ValueLayout value_layout_;
    std::vector<Sequence> sequences_;
    bool keep_open_ = false;
    int64_t groups_reopened_ = 0;
};

// Bytes that a full store of this shape holds: all groups sealed but those of the residual window.
uint64_t planned_bytes(const vidkv_store_shape & shape, const vidkv_params & params);

} // namespace vidkv
