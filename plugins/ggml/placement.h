// Where the cells of one KV cache lie in its stores, the same place in all of them, and which of their pages are packed
// when.
#pragma once

#include <cstdint>
#include <vector>

#include "cell_map.h"
#include "vidkv/vidkv.h"

namespace vidkv_ggml {

class KvStore;

// The masks by which a batch's tokens look at its streams: token t of the batch belongs to stream first_stream + t /
// tokens.
struct BatchMasks {
    int64_t tokens = 0; // of each stream
    std::vector<MaskView> of_stream;
};

class Placement {
  public:
    Placement(int64_t cells, int streams, const vidkv_params & params); // params: of layers that have none of their own
    ~Placement();
    Placement(const Placement &) = delete;
    Placement & operator=(const Placement &) = delete;

    void add(KvStore & store); // in the order in which they are numbered
    const CellMap & map(int stream) const { return maps_[static_cast<size_t>(stream)]; }
    size_t bytes() const;
    uint64_t texts_beside_the_first() const; // with pages that are not packed, beyond one for each stream

    // The functions below return false, with vidkv_last_error() set, if memory runs out or an id is out of range.

    // Rows of these ids (stream * cells + cell) are about to be written to a store by a graph. The first such write of a
    // batch packs what the batch before has made old, and places this one's cells.
    bool begin_batch(const KvStore & store, const int64_t * ids, int64_t n, const BatchMasks & masks, int threads);
    bool is_new_batch(const KvStore & store, const int64_t * ids, int64_t n) const;
    void attended(const KvStore & store);
    bool is_batch_attended() const; // all that the batch wrote, to all stores

    // Gives places to those of the cells that lie nowhere.
    bool ensure(const int64_t * ids, int64_t n);
    // Whole rows are about to be written to a store from outside. Where this is the first store the cells are given new
    // places: so begins the writing of a saved state, which goes on with the other stores. former: where each lay before.
    bool begin_restore(const KvStore & store, const int64_t * ids, int64_t n, const std::vector<FormerPlace> & former);
    int64_t restores() const { return restores_; } // that have begun
    // They are written: packs what is old among them.
    bool end_restore(KvStore & store, int64_t first_id, int64_t n, int threads);
    // Rows of a store were changed in their places: packs again the pages that were packed.
    bool end_change(KvStore & store, const int64_t * ids, int64_t n, int threads);

    // The mask of a stream's tokens over places instead of cells; null if that is the same. Good until the next batch.
    const uint16_t * translated(int stream, const uint16_t * rows, int64_t stride, int64_t tokens, int64_t cells);

    // Packs what is old enough, unless sealing is held: all of it; or as much as this batch may wait for, once a batch, so that no
    // decoded token waits for the pages of all layers.
    bool seal(int threads);
    bool seal_step(int threads);
    bool seal_now(int threads);
    int64_t waiting(const KvStore & store) const; // pages that are old enough and not packed there yet
    void copy_stream(int from, int to);
    void clear();

    // For a file (saved_state.cpp): the stores of the cache, and where cells of a stream lie in them. Packs what is due first.
    const std::vector<KvStore *> & stores() const { return stores_; }
    const vidkv_params & params() const { return params_; }
    int64_t cells() const { return cells_; } // of a stream
    int streams() const { return static_cast<int>(maps_.size()); }
    // Gives cells of a stream the places of saved ones, in pages that are empty in all stores.
    bool take(int stream, const SavedCells & saved, const std::vector<int64_t> & cells, std::vector<int64_t> & pages);

    // From now on seal() does nothing, in any cache of the process; or does its work again.
    static void hold_sealing(bool hold);
    static double packing_seconds(); // all that packing has taken in this process
    static std::vector<Placement *> live();

  private:
    using Pages = std::vector<std::vector<int64_t>>; // [stream]
    struct Translated {
        const uint16_t * rows;
        int stream;
        int64_t tokens, cells;
        std::vector<uint16_t> places;
    };

    // A page that is old enough. Stores pack it in the order of packing_order_, `done` of them have.
    struct Due {
        int stream;
        int64_t page;
        size_t done = 0;
    };

    template <typename Work> bool by_stream(const int64_t * ids, int64_t n, Work work) const;
    bool apply(int stream, const CellMap::Changes & changes);
    bool pack(const std::vector<KvStore *> & stores, Pages pages, int threads);
    bool pack_due(size_t most, int threads);
    bool is_packed(const Due & due) const { return maps_[static_cast<size_t>(due.stream)].is_packed(due.page); }
    void collect_due();

    int64_t cells_;
    vidkv_params params_;
    std::vector<CellMap> maps_;
    std::vector<KvStore *> stores_;
    std::vector<KvStore *> packing_order_; // values before keys, which tell them which tokens to protect
    std::vector<Due> due_;                 // the oldest first
    bool has_stepped_ = false;             // seal_step, since the batch began
    Pages restored_;                       // since the last batch: packed store by store
    std::vector<int64_t> batch_;           // its ids
    std::vector<char> written_, attended_; // [store], by the batch
    int64_t restores_ = 0;
    bool restoring_ = false; // the first store was written last
    int64_t last_restored_ = -1;
    std::vector<Translated> translated_;
};

} // namespace vidkv_ggml
