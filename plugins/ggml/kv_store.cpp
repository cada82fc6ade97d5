#include "kv_store.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <mutex>

namespace vidkv_ggml {

namespace {

std::mutex live_mutex;
std::vector<KvStore *> & live_stores() {
    static std::vector<KvStore *> stores;
    return stores;
}

std::atomic<bool> sealing_held{false};

vidkv_status write(vidkv_store * store, int stream, const int64_t * cells, int64_t n, const float * rows, int64_t stride) {
    return vidkv_store_write_f32(store, stream, cells, n, rows, stride);
}
vidkv_status write(vidkv_store * store, int stream, const int64_t * cells, int64_t n, const uint16_t * rows,
                   int64_t stride) {
    return vidkv_store_write_f16(store, stream, cells, n, rows, stride);
}

} // namespace

KvStore::KvStore(const vidkv_store_shape & shape, const vidkv_params & params, int layer, bool sliding_window)
    : shape_(shape), params_(params), layer_(layer), sliding_window_(sliding_window) {}

std::unique_ptr<KvStore> KvStore::create(const vidkv_store_shape & shape, const vidkv_params & params, int layer,
                                         bool sliding_window, std::string & error) {
    std::unique_ptr<KvStore> kv(new KvStore(shape, params, layer, sliding_window));
    if (vidkv_store_create(&shape, &params, &kv->store_) != VIDKV_OK) {
        error = vidkv_last_error();
        return nullptr;
    }
    if (sliding_window) vidkv_store_keep_open(kv->store_);
    const std::lock_guard lock(live_mutex);
    live_stores().push_back(kv.get());
    return kv;
}

KvStore::~KvStore() {
    {
        const std::lock_guard lock(live_mutex);
        std::erase(live_stores(), this);
    }
    vidkv_store_free(store_);
}

vidkv_store_stats KvStore::stats() const {
    vidkv_store_stats now{};
    vidkv_store_get_stats(store_, &now);
    return now;
}

bool KvStore::empty() const { return stats().cells_written == 0; }

uint64_t KvStore::planned_bytes() const {
    vidkv_params params = params_;
    if (sliding_window_) params.key_bits = params.value_bits = 16;
    return vidkv_planned_bytes(&shape_, &params);
}

bool KvStore::set_head_dim(int head_dim) {
    if (shape_.head_dim == head_dim) return true;
    if (vidkv_store_set_head_dim(store_, head_dim) != VIDKV_OK) return false;
    shape_.head_dim = head_dim;
    return true;
}

template <typename Element> bool KvStore::write_rows(const int64_t * ids, int64_t n, const Element * rows, int64_t stride) {
    cells_.resize(static_cast<size_t>(n));
    attended_ = false;
    for (int64_t i = 0; i < n;) {
        const int64_t stream = ids[i] / shape_.cells;
        int64_t end = i;
        for (; end < n && ids[end] >= 0 && ids[end] / shape_.cells == stream; ++end) cells_[end] = ids[end] % shape_.cells;
        if (end == i) cells_[end++] = -1; // an id below zero: the store refuses it
        if (write(store_, static_cast<int>(stream), &cells_[i], end - i, rows + i * stride, stride) != VIDKV_OK)
            return false;
        i = end;
    }
    return true;
}

template bool KvStore::write_rows<float>(const int64_t *, int64_t, const float *, int64_t);
template bool KvStore::write_rows<uint16_t>(const int64_t *, int64_t, const uint16_t *, int64_t);

bool KvStore::read_rows(int64_t first_row, int64_t n, uint16_t * out) const {
    while (n > 0) {
        const int64_t cell = first_row % shape_.cells, take = std::min(n, shape_.cells - cell);
        if (vidkv_store_read_f16(store_, static_cast<int>(first_row / shape_.cells), cell, take, out) != VIDKV_OK)
            return false;
        first_row += take;
        n -= take;
        out += take * shape_.channels;
    }
    return true;
}

bool KvStore::read_bytes(size_t offset, size_t size, void * data) const {
    constexpr size_t rows_at_once = 256;
    auto * to = static_cast<uint8_t *>(data);
    std::vector<uint16_t> rows;
    while (size > 0) {
        const size_t first = offset / row_bytes(), inside = offset % row_bytes();
        const size_t n = std::min(rows_at_once, (inside + size + row_bytes() - 1) / row_bytes());
        const size_t take = std::min(size, n * row_bytes() - inside);
        rows.resize(n * static_cast<size_t>(shape_.channels));
        if (!read_rows(static_cast<int64_t>(first), static_cast<int64_t>(n), rows.data())) return false;
        std::memcpy(to, reinterpret_cast<const uint8_t *>(rows.data()) + inside, take);
        to += take;
        offset += take;
        size -= take;
    }
    return true;
}

bool KvStore::write_bytes(size_t offset, size_t size, const void * data) {
    constexpr size_t rows_at_once = 256;
    const auto * from = static_cast<const uint8_t *>(data);
    std::vector<uint16_t> rows;
    std::vector<int64_t> ids;
    while (size > 0) {
        const size_t first = offset / row_bytes(), inside = offset % row_bytes();
        const size_t n = std::min(rows_at_once, (inside + size + row_bytes() - 1) / row_bytes());
        const size_t take = std::min(size, n * row_bytes() - inside);
        rows.resize(n * static_cast<size_t>(shape_.channels));
        const bool cut = inside != 0 || take != n * row_bytes();
        if (cut && !read_rows(static_cast<int64_t>(first), static_cast<int64_t>(n), rows.data())) return false;
        std::memcpy(reinterpret_cast<uint8_t *>(rows.data()) + inside, from, take);
        ids.resize(n);
        for (size_t i = 0; i < n; ++i) ids[i] = static_cast<int64_t>(first + i);
        if (!write_rows(ids.data(), static_cast<int64_t>(n), rows.data(), shape_.channels)) return false;
        from += take;
        offset += take;
        size -= take;
    }
    return true;
}

void KvStore::pair_with(const KvStore & keys, float scale) {
    keys_ = &keys;
    scale_ = scale;
}

bool KvStore::observe_queries(int stream, const float * q, int64_t tokens, int heads, int64_t token_stride,
                              int64_t head_stride) {
    return vidkv_store_observe_queries(store_, stream, q, tokens, heads, token_stride, head_stride) == VIDKV_OK;
}

bool KvStore::protect(int stream, const int64_t * cells, int64_t n) {
    return vidkv_store_protect(store_, stream, cells, n) == VIDKV_OK;
}

bool KvStore::seal(int threads) { return sealing_held || seal_now(threads); }

bool KvStore::seal_now(int threads) {
    const bool choose = params_.protect > 0 && keys_;
    if (choose && vidkv_store_protect_by_queries(store_, keys_->store(), scale_) != VIDKV_OK) return false;
    return vidkv_store_seal(store_, threads) == VIDKV_OK;
}

bool KvStore::copy_stream(int from, int to) { return vidkv_store_copy_sequence(store_, from, to) == VIDKV_OK; }
void KvStore::clear() { vidkv_store_clear(store_); }

void KvStore::hold_sealing(bool hold) { sealing_held = hold; }

std::vector<KvStore *> KvStore::live() {
    const std::lock_guard lock(live_mutex);
    return live_stores();
}

} // namespace vidkv_ggml
