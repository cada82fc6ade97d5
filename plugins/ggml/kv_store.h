// One KV tensor of llama.cpp, [channels, cells, streams] f16 to the host, kept in a vidkv store.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "vidkv/vidkv.h"

namespace vidkv_ggml {

class KvStore {
  public:
    // Null if there is no memory for it; error then says so. A sliding-window store is never sealed: its cells recycle.
    static std::unique_ptr<KvStore> create(const vidkv_store_shape & shape, const vidkv_params & params, int layer,
                                           bool sliding_window, std::string & error);
    ~KvStore();
    KvStore(const KvStore &) = delete;
    KvStore & operator=(const KvStore &) = delete;

    const vidkv_store * store() const { return store_; }
    int layer() const { return layer_; }
    int64_t channels() const { return shape_.channels; }
    int64_t rows() const { return shape_.cells * shape_.sequences; }
    int64_t cells() const { return shape_.cells; }
    vidkv_side side() const { return shape_.side; }
    size_t row_bytes() const { return static_cast<size_t>(shape_.channels) * 2; }
    size_t stream_bytes() const { return row_bytes() * static_cast<size_t>(shape_.cells); }
    int head_dim() const { return shape_.head_dim; } // 0: not known yet
    bool empty() const;                              // nothing written yet
    uint64_t planned_bytes() const;

    // False, with vidkv_last_error() set, if the codec does not take this head_dim or another one was set before.
    bool set_head_dim(int head_dim);

    // Writes rows to the given global row ids (stream * cells + cell). stride: elements from row to row.
    // False, with vidkv_last_error() set, if an id is out of range or memory runs out.
    template <typename Element> bool write_rows(const int64_t * ids, int64_t n, const Element * rows, int64_t stride);
    bool read_rows(int64_t first_row, int64_t n, uint16_t * out) const;

    // A range of bytes of the tensor as the host sees it. Rows that are cut by the range keep their other bytes.
    bool write_bytes(size_t offset, size_t size, const void * data);
    bool read_bytes(size_t offset, size_t size, void * data) const;

    // Whether attention has read what was written last.
    bool attended() const { return attended_; }
    void mark_attended() { attended_ = true; }

    // Attention reads these values with those keys, scores times scale.
    void pair_with(const KvStore & keys, float scale);
    // q [tokens][heads][head_dim], strides in elements; of keys.
    bool observe_queries(int stream, const float * q, int64_t tokens, int heads, int64_t token_stride, int64_t head_stride);
    // Marks cells of values.
    bool protect(int stream, const int64_t * cells, int64_t n);

    // Seals what is old enough, unless sealing is held.
    bool seal(int threads);
    bool seal_now(int threads);
    bool copy_stream(int from, int to);
    void clear();

    vidkv_store_stats stats() const;

    // From now on seal() does nothing, in any store of the process; or does its work again.
    static void hold_sealing(bool hold);
    // Live stores of the process in order of creation.
    static std::vector<KvStore *> live();

  private:
    KvStore(const vidkv_store_shape & shape, const vidkv_params & params, int layer, bool sliding_window);

    vidkv_store_shape shape_;
    vidkv_params params_;
    int layer_;
    bool sliding_window_;
    bool attended_ = false;
    const KvStore * keys_ = nullptr; // of values: the keys of the same layer, once attention has shown them
    float scale_ = 0;                // of attention
    vidkv_store * store_ = nullptr;
    std::vector<int64_t> cells_; // scratch of write_rows
};

} // namespace vidkv_ggml
