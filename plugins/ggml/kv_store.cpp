#include "kv_store.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <mutex>
#include <new>

#include "placement.h"

namespace vidkv_ggml {

namespace {

std::mutex live_mutex;
std::vector<KvStore *> & live_stores() {
    static std::vector<KvStore *> stores;
    return stores;
}

uint64_t next_version() {
    static std::atomic<uint64_t> last{0};
    return ++last;
}

// The page read last: hosts save a sequence that lies scattered cell by cell, and decoding a page for each would take
// minutes.
struct ReadPage {
    uint64_t version = 0;
    int stream = 0;
    int64_t page = 0;
    std::vector<uint16_t> rows;
};
thread_local ReadPage read_last;

vidkv_status write(vidkv_store * store, int stream, const int64_t * cells, int64_t n, const float * rows, int64_t stride) {
    return vidkv_store_write_f32(store, stream, cells, n, rows, stride);
}
vidkv_status write(vidkv_store * store, int stream, const int64_t * cells, int64_t n, const uint16_t * rows,
                   int64_t stride) {
    return vidkv_store_write_f16(store, stream, cells, n, rows, stride);
}

} // namespace

KvStore::KvStore(const vidkv_store_shape & shape, const vidkv_params & params, int layer, bool sliding_window)
    : shape_(shape), params_(params), layer_(layer), sliding_window_(sliding_window),
      capacity_((shape.cells + VIDKV_PAGE - 1) / VIDKV_PAGE * VIDKV_PAGE), version_(next_version()) {}

std::unique_ptr<KvStore> KvStore::create(const vidkv_store_shape & shape, const vidkv_params & params, int layer,
                                         bool sliding_window, std::string & error) {
    std::unique_ptr<KvStore> kv(new KvStore(shape, params, layer, sliding_window));
    vidkv_store_shape whole_pages = shape;
    whole_pages.cells = kv->capacity_;
    if (vidkv_store_create(&whole_pages, &params, &kv->store_) != VIDKV_OK) {
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
    if (placement_) {
        const auto page = static_cast<uint64_t>(VIDKV_PAGE) * row_bytes();
        now.bytes_planned += placement_->texts_beside_the_first() * window_bytes() +
                             static_cast<uint64_t>(placement_->waiting(*this)) * page;
    }
    return now;
}

uint64_t KvStore::window_bytes() const {
    const double f16 = 16, packed = vidkv_true_bits(&params_, side(), shape_.head_dim ? shape_.head_dim : 64);
    const int64_t window = std::max<int64_t>(params_.residual_length, VIDKV_PAGE);
    const int64_t pages = (window + VIDKV_PAGE - 1) / VIDKV_PAGE + 1; // that of the newest token, too
    const auto elements = static_cast<double>(pages * VIDKV_PAGE * shape_.channels);
    return sliding_window_ ? 0 : static_cast<uint64_t>(elements * (f16 - packed) / 8);
}

bool KvStore::empty() const { return stats().cells_written == 0; }

uint64_t KvStore::planned_bytes() const {
    vidkv_params params = params_;
    if (sliding_window_) params.key_bits = params.value_bits = 16;
    return vidkv_planned_bytes(&shape_, &params);
}

std::string KvStore::head_dim_obstacle(int head_dim) const {
    if (shape_.head_dim == head_dim) return "";
    if (shape_.head_dim != 0) return "its heads are read in two sizes";
    if (vidkv_params_check(&params_, head_dim) != VIDKV_OK) return vidkv_last_error();
    return shape_.channels % head_dim == 0 ? "" : "its head_dim does not divide its channels";
}

bool KvStore::set_head_dim(int head_dim) {
    if (shape_.head_dim == head_dim) return true;
    if (vidkv_store_set_head_dim(store_, head_dim) != VIDKV_OK) return false;
    shape_.head_dim = head_dim;
    return true;
}

void KvStore::place_by(Placement * placement, size_t number) {
    placement_ = placement;
    number_ = number;
}

void KvStore::changed() { version_ = next_version(); }

bool KvStore::follow(int stream, const CellMap::Changes & changes, int64_t places) {
    changed();
    if (places > capacity_) {
        if (vidkv_store_resize(store_, places, shape_.sequences) != VIDKV_OK) return false;
        capacity_ = places;
    }
    const auto erased = static_cast<int64_t>(changes.erased.size());
    if (erased > 0 && vidkv_store_erase(store_, stream, changes.erased.data(), erased) != VIDKV_OK) return false;
    return std::all_of(changes.begun.begin(), changes.begun.end(),
                       [&](int64_t page) { return vidkv_store_begin(store_, stream, page) == VIDKV_OK; });
}

int64_t KvStore::place_of(int64_t id) const {
    const int64_t cell = id % shape_.cells;
    return placement_ ? placement_->map(static_cast<int>(id / shape_.cells)).where(cell) : cell;
}

template <typename Element> bool KvStore::write_rows(const int64_t * ids, int64_t n, const Element * rows, int64_t stride) {
    if (placement_ && !placement_->ensure(ids, n)) return false;
    changed();
    places_.resize(static_cast<size_t>(n));
    for (int64_t i = 0; i < n;) {
        const int64_t stream = ids[i] / shape_.cells, first = i;
        if (ids[i] < 0 || stream >= shape_.sequences) places_[i++] = -1; // the store refuses it
        for (; i < n && ids[i] >= 0 && ids[i] / shape_.cells == stream && stream < shape_.sequences; ++i)
            places_[i] = place_of(ids[i]);
        const vidkv_status status =
            write(store_, static_cast<int>(stream), &places_[first], i - first, rows + first * stride, stride);
        if (status != VIDKV_OK) return false;
    }
    return true;
}

template bool KvStore::write_rows<float>(const int64_t *, int64_t, const float *, int64_t);
template bool KvStore::write_rows<uint16_t>(const int64_t *, int64_t, const uint16_t *, int64_t);

bool KvStore::shift(const std::vector<int64_t> & ids, const std::vector<int32_t> & positions,
                    const vidkv_rotation & rotation, std::vector<int64_t> & left) {
    changed();
    const auto n = static_cast<int64_t>(ids.size());
    std::vector<int64_t> some(ids.size());
    left.clear();
    for (int64_t i = 0; i < n;) {
        const int64_t stream = ids[i] / shape_.cells;
        places_.clear();
        std::vector<int64_t> which;
        std::vector<int32_t> by;
        for (; i < n && ids[i] / shape_.cells == stream; ++i) {
            const int64_t place = place_of(ids[i]);
            if (place < 0) { // nothing lies there
                left.push_back(i);
                continue;
            }
            places_.push_back(place);
            which.push_back(i);
            by.push_back(positions[i]);
        }
        if (by.empty()) continue;
        int64_t n_left = 0;
        const vidkv_status status = vidkv_store_shift(store_, static_cast<int32_t>(stream), places_.data(), by.data(),
                                                      static_cast<int64_t>(by.size()), &rotation, some.data(), &n_left);
        if (status != VIDKV_OK) return false;
        for (int64_t k = 0; k < n_left; ++k) left.push_back(which[static_cast<size_t>(some[static_cast<size_t>(k)])]);
    }
    std::sort(left.begin(), left.end());
    return true;
}

bool KvStore::read_places(int stream, int64_t first, int64_t n, uint16_t * out) const {
    constexpr int64_t few = VIDKV_PAGE / 4;
    const int64_t page = first / VIDKV_PAGE;
    if (n > few || (first + n - 1) / VIDKV_PAGE != page)
        return vidkv_store_read_f16(store_, stream, first, n, out) == VIDKV_OK;
    if (read_last.version != version_ || read_last.stream != stream || read_last.page != page) {
        read_last.version = 0;
        read_last.rows.resize(static_cast<size_t>(VIDKV_PAGE * shape_.channels));
        if (vidkv_store_read_f16(store_, stream, page * VIDKV_PAGE, VIDKV_PAGE, read_last.rows.data()) != VIDKV_OK)
            return false;
        read_last.version = version_;
        read_last.stream = stream;
        read_last.page = page;
    }
    std::copy_n(&read_last.rows[static_cast<size_t>(first % VIDKV_PAGE * shape_.channels)], n * shape_.channels, out);
    return true;
}

bool KvStore::read_rows(int64_t first_row, int64_t n, uint16_t * out) const {
    for (int64_t i = 0; i < n;) {
        const int64_t stream = (first_row + i) / shape_.cells;
        if (stream >= shape_.sequences || first_row < 0)
            return vidkv_store_read_f16(store_, -1, 0, 0, out) == VIDKV_OK; // says so
        const int64_t place = place_of(first_row + i);
        int64_t end = i + 1; // cells that lie side by side are read together
        while (end < n && (first_row + end) / shape_.cells == stream &&
               place_of(first_row + end) == (place < 0 ? -1 : place + end - i))
            ++end;
        uint16_t * to = out + i * shape_.channels;
        if (place < 0)
            std::fill_n(to, (end - i) * shape_.channels, uint16_t{0});
        else if (!read_places(static_cast<int>(stream), place, end - i, to))
            return false;
        i = end;
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

KvStore::LastHidden KvStore::hide_page(int stream, int64_t page) const {
    LastHidden made{version_, stream, page, 0, {}};
    uint64_t bytes = 0;
    int32_t sinks = 0;
    vidkv_status status = vidkv_store_export_page(store_, stream, page, nullptr, &bytes, &sinks);
    if (status == VIDKV_OK) {
        std::vector<uint8_t> packed(bytes);
        status = vidkv_store_export_page(store_, stream, page, packed.data(), &bytes, &sinks);
        made.first = sinks;
        made.hidden = to_hidden(packed, shape_.channels, sinks);
    }
    if (status == VIDKV_E_MEMORY) throw std::bad_alloc();
    return made;
}

const HiddenPage * KvStore::hidden_page(int stream, int64_t page, int & first) const {
    static thread_local LastHidden last; // its rows are saved one after the other
    if (last.version != version_ || last.stream != stream || last.page != page) last = hide_page(stream, page);
    first = last.first;
    return last.hidden.bits > 0 ? &last.hidden : nullptr;
}

// Null: that row is not to be changed.
const HiddenPage * KvStore::page_to_hide(int stream, int64_t place, int & first) const {
    constexpr int64_t most_pages = 1 << 16; // that a tag can name
    const CellMap & map = placement_->map(stream);
    const int64_t page = place / VIDKV_PAGE;
    if (place < 0 || page >= most_pages || !map.is_packed(page) || !map.is_full(page)) return nullptr;
    return hidden_page(stream, page, first);
}

bool KvStore::read_saved(int64_t first_row, int64_t n, uint16_t * out) const {
    if (!read_rows(first_row, n, out)) return false;
    for (int64_t i = 0; placement_ && i < n; ++i) {
        const int64_t id = first_row + i, place = place_of(id);
        int first = 0;
        const HiddenPage * page = page_to_hide(static_cast<int>(id / shape_.cells), place, first);
        const auto token = static_cast<int>(place % VIDKV_PAGE);
        if (!page || token < first) continue;
        const RowTag tag{static_cast<uint32_t>(place / VIDKV_PAGE), token, first, page->bits};
        hide(out + i * channels(), channels(), tag,
             &page->bytes[static_cast<size_t>((token - first) * hidden_bytes(channels(), page->bits))]);
    }
    return true;
}

// Pages whose rows have all come are packed as they were.
bool KvStore::write_restored(const int64_t * ids, int64_t n, const uint16_t * rows,
                             const std::vector<std::optional<RowTag>> & tags) {
    if (!write_rows(ids, n, rows, shape_.channels)) return false;
    if (!placement_) return true;
    found_.begin(placement_->restores());
    for (int64_t i = 0; i < n; ++i) {
        const int64_t place = tags[i] ? place_of(ids[i]) : -1;
        if (place < 0 || place % VIDKV_PAGE != tags[i]->token) continue;
        const auto stream = static_cast<int>(ids[i] / shape_.cells);
        const auto packed = found_.take(stream, place / VIDKV_PAGE, *tags[i], rows + i * shape_.channels, shape_.channels);
        if (!packed) continue;
        const vidkv_status status =
            vidkv_store_import_page(store_, stream, place / VIDKV_PAGE, packed->data(), packed->size());
        if (status == VIDKV_E_MEMORY) return false;
        changed(); // pages of another preset are packed anew
    }
    return true;
}

void KvStore::pair_with(const KvStore & keys, float scale) {
    keys_ = &keys;
    scale_ = scale;
}

bool KvStore::observe_queries(int stream, const float * q, int64_t tokens, int heads, int64_t token_stride,
                              int64_t head_stride, int threads) {
    return vidkv_store_observe_batch(store_, stream, q, tokens, heads, token_stride, head_stride, threads) == VIDKV_OK;
}

bool KvStore::protect(int stream, const int64_t * cells, int64_t n) {
    std::vector<int64_t> places(
        cells, cells + n); // a cell that is not written yet will lie at its own number, in a cache that was empty
    for (int64_t & place : places) {
        if (place < 0 || place >= shape_.cells) continue; // the store refuses it
        const int64_t known = place_of(stream * shape_.cells + place);
        if (known >= 0) place = known;
    }
    return vidkv_store_protect(store_, stream, places.data(), n) == VIDKV_OK;
}

vidkv_seal_request KvStore::seal_request(int stream, const std::vector<int64_t> & pages) {
    changed();
    const bool choose = protects() && keys_;
    return {store_, stream, pages.data(), static_cast<int64_t>(pages.size()), choose ? keys_->store() : nullptr, scale_};
}

bool KvStore::copy_stream(int from, int to) {
    changed();
    return vidkv_store_copy_sequence(store_, from, to) == VIDKV_OK;
}

bool KvStore::take_pages(const vidkv_file * file, int stream, const std::vector<int64_t> & pages,
                         const std::vector<int64_t> & left) {
    changed();
    const auto n = static_cast<int64_t>(pages.size()), n_left = static_cast<int64_t>(left.size());
    return vidkv_file_load(file, layer_, 0, store_, stream, pages.data(), n) == VIDKV_OK &&
           (left.empty() || vidkv_store_erase(store_, stream, left.data(), n_left) == VIDKV_OK);
}

void KvStore::clear() {
    changed();
    vidkv_store_clear(store_);
}

std::vector<KvStore *> KvStore::live() {
    const std::lock_guard lock(live_mutex);
    return live_stores();
}

size_t KvStore::live_count() {
    const std::lock_guard lock(live_mutex);
    return live_stores().size();
}

} // namespace vidkv_ggml
