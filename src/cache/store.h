// Keys or values of one layer: groups of cells, open (f16 rows) or sealed (packed blocks). See vidkv.h for the words.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

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

    // Snapshot: everything that is needed to continue, sealed blocks bit for bit. load leaves the store as it was on
    // failure (and sets the thread's last error).
    void save(std::vector<uint8_t> & out) const;
    vidkv_status load(const uint8_t *& cursor, const uint8_t * end);

  private:
    struct Group {
        GroupState state = GroupState::empty;
        int64_t last_write = 0;                // the sequence's write count at this group's newest write
        std::unique_ptr<uint8_t[]> data;       // open: f16 rows; sealed: kv_heads blocks
        std::vector<uint8_t> written;          // one flag a cell
    };
    struct Sequence {
        std::vector<Group> groups;
        std::vector<ChannelPlan> plans;        // one a KV head, keys only; empty until the first seal
        std::unique_ptr<uint16_t[]> sink_rows; // [sink_tokens][channels], while the first group is sealed
        int64_t writes = 0;                    // rows written since the last clear
        int64_t sealed_groups = 0;
    };

    vidkv_store_shape shape_;
    vidkv_params params_;
    int64_t groups_a_sequence_ = 0;
    KeyLayout key_layout_;
    ValueLayout value_layout_;
    std::vector<Sequence> sequences_;
    bool keep_open_ = false;
    int64_t groups_reopened_ = 0;
};

} // namespace vidkv
