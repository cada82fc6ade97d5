#include "placement.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <mutex>
#include <utility>

#include "kv_store.h"

namespace vidkv_ggml {

namespace {

std::mutex live_mutex;
std::vector<Placement *> & live_placements() {
    static std::vector<Placement *> placements;
    return placements;
}

std::atomic<bool> sealing_held{false};
std::atomic<int64_t> packing_time{0}; // nanoseconds

bool seal_pages(const std::vector<vidkv_seal_request> & requests, int threads) {
    if (requests.empty()) return true;
    const auto start = std::chrono::steady_clock::now();
    const vidkv_status status = vidkv_seal_pages(requests.data(), static_cast<int64_t>(requests.size()), threads);
    packing_time += std::chrono::nanoseconds(std::chrono::steady_clock::now() - start).count();
    return status == VIDKV_OK;
}

} // namespace

Placement::Placement(int64_t cells, int streams, const vidkv_params & params)
    : cells_(cells), params_(params), maps_(static_cast<size_t>(streams), CellMap(cells, params.residual_length)),
      restored_(maps_.size()) {
    const std::lock_guard lock(live_mutex);
    live_placements().push_back(this);
}

Placement::~Placement() {
    const std::lock_guard lock(live_mutex);
    std::erase(live_placements(), this);
}

std::vector<Placement *> Placement::live() {
    const std::lock_guard lock(live_mutex);
    return live_placements();
}

void Placement::hold_sealing(bool hold) { sealing_held = hold; }
double Placement::packing_seconds() { return 1e-9 * static_cast<double>(packing_time); }

void Placement::add(KvStore & store) {
    stores_.push_back(&store);
    const auto first_keys = std::find_if(packing_order_.begin(), packing_order_.end(),
                                         [](const KvStore * each) { return each->side() == VIDKV_KEYS; });
    packing_order_.insert(store.side() == VIDKV_KEYS ? packing_order_.end() : first_keys, &store);
    written_.push_back(0);
    attended_.push_back(0);
}

size_t Placement::bytes() const {
    size_t sum = 0;
    for (const CellMap & map : maps_) sum += map.bytes();
    return sum;
}

uint64_t Placement::texts_beside_the_first() const {
    int64_t sum = 0;
    for (const CellMap & map : maps_) sum += std::max<int64_t>(map.open_texts() - 1, 0);
    return static_cast<uint64_t>(sum);
}

// Runs work(stream, index of the first, cells) on each run of ids of one stream. Ids that do not exist are left to the
// store, which refuses them.
template <typename Work> bool Placement::by_stream(const int64_t * ids, int64_t n, Work work) const {
    for (int64_t i = 0; i < n;) {
        const int64_t first = i, stream = ids[i] / cells_;
        if (ids[i] < 0 || stream >= static_cast<int64_t>(maps_.size())) return true;
        std::vector<int64_t> cells;
        for (; i < n && ids[i] >= 0 && ids[i] / cells_ == stream; ++i) cells.push_back(ids[i] % cells_);
        if (!work(static_cast<int>(stream), first, cells)) return false;
    }
    return true;
}

bool Placement::apply(int stream, const CellMap::Changes & changes) {
    for (KvStore * store : stores_) {
        if (!store->follow(stream, changes, map(stream).places())) return false;
    }
    return true;
}

bool Placement::is_new_batch(const KvStore & store, const int64_t * ids, int64_t n) const {
    return written_[store.number()] || !std::equal(ids, ids + n, batch_.begin(), batch_.end());
}

bool Placement::begin_batch(const KvStore & store, const int64_t * ids, int64_t n, const BatchMasks & masks, int threads) {
    if (!is_new_batch(store, ids, n)) {
        written_[store.number()] = 1;
        return true;
    }
    if (!seal_step(threads)) return false;
    has_stepped_ = false;
    batch_.assign(ids, ids + n);
    std::fill(written_.begin(), written_.end(), char{0});
    std::fill(attended_.begin(), attended_.end(), char{0});
    written_[store.number()] = 1;
    translated_.clear();
    restoring_ = false;
    last_restored_ = -1;
    return by_stream(ids, n, [&](int stream, int64_t first, const std::vector<int64_t> & cells) {
        const auto count = static_cast<int64_t>(cells.size());
        const size_t part = masks.tokens > 0 ? static_cast<size_t>(first / masks.tokens) : 0;
        const bool fits = part < masks.of_stream.size() && first % masks.tokens == 0 && count <= masks.tokens;
        return apply(stream, maps_[stream].place(cells.data(), count, fits ? masks.of_stream[part] : MaskView{}));
    });
}

void Placement::attended(const KvStore & store) { attended_[store.number()] = 1; }

bool Placement::is_batch_attended() const {
    return std::count(written_.begin(), written_.end(), 1) == static_cast<int64_t>(stores_.size()) && attended_ == written_;
}

bool Placement::ensure(const int64_t * ids, int64_t n) {
    return by_stream(ids, n, [&](int stream, int64_t, std::vector<int64_t> & cells) {
        std::erase_if(cells, [&](int64_t cell) { return map(stream).where(cell) >= 0; });
        if (cells.empty()) return true;
        translated_.clear();
        return apply(stream, maps_[stream].restore(cells.data(), static_cast<int64_t>(cells.size()), false));
    });
}

bool Placement::begin_restore(const KvStore & store, const int64_t * ids, int64_t n,
                              const std::vector<FormerPlace> & former) {
    bool begins = !restoring_;
    restoring_ = store.number() == 0;
    if (!restoring_) return ensure(ids, n);
    restores_ += begins;
    translated_.clear();
    if (n > 0) last_restored_ = ids[n - 1];
    return by_stream(ids, n, [&](int stream, int64_t first, const std::vector<int64_t> & cells) {
        return apply(stream,
                     maps_[stream].restore(cells.data(), static_cast<int64_t>(cells.size()), std::exchange(begins, false),
                                           former.empty() ? nullptr : &former[first]));
    });
}

bool Placement::end_restore(KvStore & store, int64_t first_id, int64_t n, int threads) {
    if (sealing_held || last_restored_ < first_id || last_restored_ >= first_id + n) return true;
    for (size_t s = 0; s < maps_.size(); ++s) {
        const std::vector<int64_t> due = maps_[s].take_due();
        restored_[s].insert(restored_[s].end(), due.begin(), due.end());
        for (const int64_t page : due)
            due_.push_back({static_cast<int>(s), page}); // packed later, where it is not packed below
    }
    return store.protects() ||
           pack({&store}, restored_, threads); // which tokens to protect is seen when keys and values are there
}

bool Placement::end_change(KvStore & store, const int64_t * ids, int64_t n, int threads) {
    Pages pages(maps_.size());
    for (int64_t i = 0; i < n; ++i) {
        const int64_t stream = ids[i] / cells_, place = map(static_cast<int>(stream)).where(ids[i] % cells_);
        const int64_t page = place / CellMap::page_cells;
        if (place < 0 || !map(static_cast<int>(stream)).is_packed(page)) continue;
        if (pages[stream].empty() || pages[stream].back() != page) pages[stream].push_back(page);
    }
    for (std::vector<int64_t> & of_stream : pages) {
        std::sort(of_stream.begin(), of_stream.end());
        of_stream.erase(std::unique(of_stream.begin(), of_stream.end()), of_stream.end());
    }
    return pack({&store}, pages, threads);
}

const uint16_t * Placement::translated(int stream, const uint16_t * rows, int64_t stride, int64_t tokens, int64_t cells) {
    const CellMap & cell_map = map(stream);
    if (cell_map.is_identity()) return nullptr;
    for (const Translated & each : translated_) {
        if (each.rows == rows && each.stream == stream && each.tokens == tokens && each.cells == cells)
            return each.places.data();
    }
    const int64_t places = cell_map.places();
    Translated made{rows, stream, tokens, cells, std::vector<uint16_t>(static_cast<size_t>(tokens * places))};
    for (int64_t t = 0; t < tokens; ++t)
        cell_map.translate(rows + t * stride, cells, &made.places[static_cast<size_t>(t * places)]);
    translated_.push_back(std::move(made));
    return translated_.back().places.data();
}

// Pages that were due and have been freed since, and given to another text, are left alone.
bool Placement::pack(const std::vector<KvStore *> & stores, Pages pages, int threads) {
    for (size_t s = 0; s < pages.size(); ++s)
        std::erase_if(pages[s], [&](int64_t page) { return !maps_[s].is_packed(page); });
    std::vector<vidkv_seal_request> requests;
    for (KvStore * store : stores) {
        for (size_t s = 0; s < pages.size(); ++s) {
            if (!pages[s].empty()) requests.push_back(store->seal_request(static_cast<int>(s), pages[s]));
        }
    }
    return seal_pages(requests, threads);
}

void Placement::collect_due() {
    for (size_t s = 0; s < maps_.size(); ++s) {
        for (const int64_t page : maps_[s].take_due()) due_.push_back({static_cast<int>(s), page});
    }
    std::erase_if(due_, [&](const Due & due) { return !is_packed(due); });
}

// Packs `most` pages of single stores, the oldest pages first: those of one store together.
bool Placement::pack_due(size_t most, int threads) {
    const size_t all = packing_order_.size();
    std::vector<Pages> pages(all, Pages(maps_.size()));
    std::vector<Due> left = due_;
    for (Due & due : left) {
        for (; due.done < all && most > 0; --most) pages[due.done++][static_cast<size_t>(due.stream)].push_back(due.page);
    }
    std::vector<vidkv_seal_request> requests;
    for (size_t i = 0; i < all; ++i) {
        for (size_t s = 0; s < maps_.size(); ++s) {
            if (!pages[i][s].empty()) requests.push_back(packing_order_[i]->seal_request(static_cast<int>(s), pages[i][s]));
        }
    }
    if (!seal_pages(requests, threads)) return false; // they stay due
    std::erase_if(left, [&](const Due & due) { return due.done == all; });
    due_ = std::move(left);
    return true;
}

bool Placement::seal(int threads) { return sealing_held || seal_now(threads); }

bool Placement::seal_now(int threads) {
    collect_due();
    if (!pack_due(SIZE_MAX, threads)) return false;
    for (std::vector<int64_t> & of_stream : restored_) of_stream.clear();
    return true;
}

// A text gives its stores a page each in 128 tokens; for every token at least a 64th of what waits is packed. So a decoded token
// waits for one page of one store in most models, all have packed before the next page is full, and a prompt packs its own.
bool Placement::seal_step(int threads) {
    constexpr size_t steps = CellMap::page_cells / 2;
    if (sealing_held || std::exchange(has_stepped_, true)) return true;
    collect_due();
    size_t backlog = 0;
    for (const Due & due : due_) backlog += packing_order_.size() - due.done;
    if (backlog == 0) return true;
    has_stepped_ = pack_due((backlog + steps - 1) / steps * batch_.size(), threads);
    for (std::vector<int64_t> & of_stream : restored_) of_stream.clear();
    return has_stepped_;
}

int64_t Placement::waiting(const KvStore & store) const {
    const auto at = std::find(packing_order_.begin(), packing_order_.end(), &store) - packing_order_.begin();
    return std::count_if(due_.begin(), due_.end(),
                         [&](const Due & due) { return is_packed(due) && due.done <= static_cast<size_t>(at); });
}

bool Placement::take(int stream, const SavedCells & saved, const std::vector<int64_t> & cells,
                     std::vector<int64_t> & pages) {
    translated_.clear();
    batch_.clear();
    restoring_ = false;
    last_restored_ = -1;
    return apply(stream, maps_[static_cast<size_t>(stream)].take(saved, cells, pages));
}

void Placement::copy_stream(int from, int to) {
    if (from == to) return;
    maps_[static_cast<size_t>(to)] = maps_[static_cast<size_t>(from)];
    std::erase_if(due_, [&](const Due & due) { return due.stream == to; });
    for (size_t i = 0, n = due_.size(); i < n; ++i) {
        if (due_[i].stream == from) due_.push_back({to, due_[i].page, due_[i].done});
    }
    translated_.clear();
}

void Placement::clear() {
    for (CellMap & each : maps_) each.clear();
    due_.clear();
    for (std::vector<int64_t> & of_stream : restored_) of_stream.clear();
    batch_.clear();
    std::fill(written_.begin(), written_.end(), char{0});
    std::fill(attended_.begin(), attended_.end(), char{0});
    restoring_ = false;
    last_restored_ = -1;
    translated_.clear();
}

} // namespace vidkv_ggml
