// One KV tensor of llama.cpp, [channels, cells, streams] f16 to the host, kept in a vidkv store.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "cell_map.h"
#include "hidden_pages.h"
#include "vidkv/file.h"
#include "vidkv/vidkv.h"

namespace vidkv_ggml {

class Placement;

class KvStore {
  public:
    // Null if there is no memory for it; error then says so. A sliding-window store is never sealed: its cells recycle.
    static std::unique_ptr<KvStore> create(const vidkv_store_shape & shape, const vidkv_params & params, int layer,
                                           bool sliding_window, std::string & error);
    ~KvStore();
    KvStore(const KvStore &) = delete;
    KvStore & operator=(const KvStore &) = delete;

    const vidkv_store * store() const { return store_; }
    const vidkv_params & params() const { return params_; }
    int layer() const { return layer_; }
    int64_t channels() const { return shape_.channels; }
    int64_t rows() const { return shape_.cells * shape_.sequences; }
    int64_t cells() const { return shape_.cells; }
    vidkv_side side() const { return static_cast<vidkv_side>(shape_.side); }
    size_t row_bytes() const { return static_cast<size_t>(shape_.channels) * 2; }
    size_t stream_bytes() const { return row_bytes() * static_cast<size_t>(shape_.cells); }
    int head_dim() const { return shape_.head_dim; } // 0: not known yet
    bool empty() const;                              // nothing written yet
    uint64_t planned_bytes() const;                  // for one conversation per stream
    uint64_t window_bytes() const;                   // what a conversation takes in f16 beyond its packed size

    // "" or why this head_dim cannot be the store's.
    std::string head_dim_obstacle(int head_dim) const;
    // False, with vidkv_last_error() set, if the codec does not take this head_dim or another one was set before.
    bool set_head_dim(int head_dim);

    // Its cells lie where the placement says, as number `number` of its stores; without one, at their own numbers.
    void place_by(Placement * placement, size_t number);
    Placement * placement() const { return placement_; }
    size_t number() const { return number_; }
    // Brings the store to what a placement has decided for a stream, which then takes `places` places.
    bool follow(int stream, const CellMap::Changes & changes, int64_t places);

    // Writes rows to the given global row ids (stream * cells + cell). stride: elements from row to row.
    // False, with vidkv_last_error() set, if an id is out of range or memory runs out.
    template <typename Element> bool write_rows(const int64_t * ids, int64_t n, const Element * rows, int64_t stride);
    bool read_rows(int64_t first_row, int64_t n, uint16_t * out) const;
    // Moves keys of packed pages; left: which of the ids are to be rotated and written instead.
    bool shift(const std::vector<int64_t> & ids, const std::vector<int32_t> & positions, const vidkv_rotation & rotation,
               std::vector<int64_t> & left);

    // A range of bytes of the tensor as the host sees it. Rows that are cut by the range keep their other bytes.
    bool write_bytes(size_t offset, size_t size, const void * data);
    bool read_bytes(size_t offset, size_t size, void * data) const;

    // The rows of a host that saves or restores, with packed pages in their lowest bits (hidden_pages.h).
    bool read_saved(int64_t first_row, int64_t n, uint16_t * out) const;
    bool write_restored(const int64_t * ids, int64_t n, const uint16_t * rows,
                        const std::vector<std::optional<RowTag>> & tags);
    int64_t place_of(int64_t id) const; // in its stream; -1: nowhere

    // Attention reads these values with those keys, scores times scale.
    void pair_with(const KvStore & keys, float scale);
    // q [tokens][heads][head_dim], strides in elements; of keys.
    bool observe_queries(int stream, const float * q, int64_t tokens, int heads, int64_t token_stride, int64_t head_stride,
                         int threads);
    // Marks cells of values.
    void keep_open() { vidkv_store_keep_open(store_); } // from now on: it stays in f16
    bool protect(int stream, const int64_t * cells, int64_t n);

    bool protects() const { return params_.protect > 0; }
    vidkv_seal_request seal_request(int stream, const std::vector<int64_t> & pages);
    bool copy_stream(int from, int to);
    // The pages of a file, in its order, become these of a stream, and what lies at places `left` is forgotten.
    bool take_pages(const vidkv_file * file, int stream, const std::vector<int64_t> & pages,
                    const std::vector<int64_t> & left);
    void clear();

    vidkv_store_stats stats() const; // planned: for as many conversations as there are, and pages that wait to be packed

    // Live stores of the process in order of creation.
    static std::vector<KvStore *> live();
    static size_t live_count();

  private:
    struct LastHidden { // a page as its rows carry it
        uint64_t version = 0;
        int stream = 0;
        int64_t page = 0;
        int first = 0;
        HiddenPage hidden;
    };
    LastHidden hide_page(int stream, int64_t page) const;
    // Null: that page cannot be hidden. Good until the next call on this thread.
    const HiddenPage * hidden_page(int stream, int64_t page, int & first) const;
    const HiddenPage * page_to_hide(int stream, int64_t place, int & first) const;
    bool read_places(int stream, int64_t first, int64_t n, uint16_t * out) const;
    void changed();

    KvStore(const vidkv_store_shape & shape, const vidkv_params & params, int layer, bool sliding_window);

    vidkv_store_shape shape_;
    vidkv_params params_;
    int layer_;
    bool sliding_window_;
    Placement * placement_ = nullptr;
    size_t number_ = 0;
    int64_t capacity_;               // places a stream
    uint64_t version_;               // of the contents: another one after each change, in all of the process
    const KvStore * keys_ = nullptr; // of values: the keys of the same layer, once attention has shown them
    float scale_ = 0;                // of attention
    vidkv_store * store_ = nullptr;
    std::vector<int64_t> places_; // scratch of write_rows
    FoundPages found_;
};

} // namespace vidkv_ggml
