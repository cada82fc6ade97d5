#include "kv_buffer.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <new>
#include <numeric>
#include <system_error>
#include <thread>

#include "kv_allocation.h"
#include "saved_state.h"

namespace vidkv_ggml {

namespace {

std::atomic<int> seal_threads{1};

constexpr double mib = 1024.0 * 1024.0;

// Views point at the tensor that owns the memory.
const ggml_tensor * root_of(const ggml_tensor * tensor) { return tensor->view_src ? tensor->view_src : tensor; }
ggml_backend_buffer_t buffer_of(const ggml_tensor * tensor) { return root_of(tensor)->buffer; }
KvBuffer * kv_buffer(ggml_backend_buffer_t buffer) { return static_cast<KvBuffer *>(buffer->context); }

// ggml asks for nothing back here and cannot be thrown through: what fails is told in the log.
template <typename Work> bool tried(const char * what, const ggml_tensor * tensor, Work work) {
    const char * why = "no memory left";
    try {
        if (work()) return true;
        why = vidkv_last_error();
    } catch (const std::bad_alloc &) {
    }
    GGML_LOG_ERROR("vidkv: %s %s failed: %s\n", what, tensor->name, why);
    return false;
}

void free_buffer(ggml_backend_buffer_t buffer) {
    forget_kv_buffer(buffer);
    delete kv_buffer(buffer);
}

void * get_base(ggml_backend_buffer_t buffer) { return kv_buffer(buffer)->base(); }

constexpr int64_t rows_at_once = 256;

// Restoring a state writes whole rows, store after store. They are packed as they come, if they do not carry their packed pages:
// no query waits for them.
bool restore(KvStore & store, int64_t row, int64_t n, const uint8_t * data) {
    Placement & placement = *store.placement();
    std::vector<int64_t> ids(static_cast<size_t>(n));
    std::iota(ids.begin(), ids.end(), row);
    std::vector<uint16_t> rows(static_cast<size_t>(n * store.channels()));
    std::memcpy(rows.data(), data, rows.size() * 2);
    const auto tags = tags_of(rows.data(), n, store.channels());
    return placement.begin_restore(store, ids.data(), n, former_places(tags)) &&
           store.write_restored(ids.data(), n, rows.data(), tags);
}

bool write_tensor(KvStore & store, size_t offset, size_t size, const void * data) {
    Placement * placement = store.placement();
    const size_t row_bytes = store.row_bytes();
    const auto row = static_cast<int64_t>(offset / row_bytes);
    const auto n = static_cast<int64_t>((offset % row_bytes + size + row_bytes - 1) / row_bytes);
    const bool whole_rows = offset % row_bytes == 0 && size % row_bytes == 0;
    if (!placement || !whole_rows)
        return store.write_bytes(offset, size, data) && (!placement || placement->end_restore(store, row, n, seal_threads));
    for (int64_t done = 0; done < n; done += rows_at_once) {
        const int64_t some = std::min(rows_at_once, n - done);
        const auto * from = static_cast<const uint8_t *>(data) + done * static_cast<int64_t>(row_bytes);
        if (!restore(store, row + done, some, from)) return false;
    }
    return placement->end_restore(store, row, n, seal_threads);
}

bool read_saved_rows(const KvStore & store, int64_t row, int64_t n, uint8_t * data) {
    std::vector<uint16_t> rows;
    for (int64_t done = 0; done < n; done += rows_at_once) {
        const int64_t some = std::min(rows_at_once, n - done);
        rows.resize(static_cast<size_t>(some * store.channels()));
        if (!store.read_saved(row + done, some, rows.data())) return false;
        std::memcpy(data + done * static_cast<int64_t>(store.row_bytes()), rows.data(), rows.size() * 2);
    }
    return true;
}

// Runs work(part) for each part on a thread of its own, the last one on this thread. What fails is tried once more on this thread,
// so that the complaint is this one's.
template <typename Work> bool on_threads(int parts, Work work) {
    if (parts == 1) return work(0);
    std::vector<char> done(static_cast<size_t>(parts));
    std::vector<std::thread> threads;
    const auto run = [&](int part) {
        try {
            done[static_cast<size_t>(part)] = work(part);
        } catch (const std::bad_alloc &) {
        }
    };
    threads.reserve(static_cast<size_t>(parts));
    for (int part = 0; part < parts - 1; ++part) {
        try {
            threads.emplace_back(run, part);
        } catch (const std::system_error &) { // no more threads
            run(part);
        }
    }
    run(parts - 1);
    for (std::thread & thread : threads) thread.join();
    for (int part = 0; part < parts; ++part) {
        if (!done[static_cast<size_t>(part)] && !work(part)) return false;
    }
    return true;
}

// Packed pages are decoded by as many threads as the host computes with: it waits meanwhile.
bool read_tensor(const KvStore & store, size_t offset, size_t size, uint8_t * data) {
    const size_t row_bytes = store.row_bytes();
    if (offset % row_bytes != 0 || size % row_bytes != 0) return store.read_bytes(offset, size, data);
    const auto row = static_cast<int64_t>(offset / row_bytes), n = static_cast<int64_t>(size / row_bytes);
    const int64_t blocks = (n + rows_at_once - 1) / rows_at_once;
    const int parts = static_cast<int>(std::clamp<int64_t>(seal_threads, 1, std::max<int64_t>(blocks / 2, 1)));
    return on_threads(parts, [&](int part) {
        const int64_t first = blocks * part / parts * rows_at_once,
                      end = std::min(n, blocks * (part + 1) / parts * rows_at_once);
        return read_saved_rows(store, row + first, end - first, data + first * static_cast<int64_t>(row_bytes));
    });
}

void set_tensor(ggml_backend_buffer_t, ggml_tensor * tensor, const void * data, size_t offset, size_t size) {
    KvStore & store = *store_of(tensor);
    const size_t at = tensor->view_offs + offset;
    tried("writing", tensor, [&] { return note_write(store, at, size, data) || write_tensor(store, at, size, data); });
}

// Once per process: saved conversations are f16, and a default llama-server saves those that are idle.
void warn_of_saving(const KvStore & store, size_t size) {
    static std::atomic<size_t> rows{0};
    static std::atomic<bool> warned{false};
    if (store.number() != 0 || !store.placement()) return;
    if (rows.fetch_add(size / store.row_bytes()) + size / store.row_bytes() < VIDKV_PAGE || warned.exchange(true)) return;
    GGML_LOG_WARN(
        "VidKV: the host saves conversations unpacked, as f16 (llama-server: idle slots, in RAM; --cache-ram 0 leaves them packed)\n");
}

void get_tensor(ggml_backend_buffer_t, const ggml_tensor * tensor, void * data, size_t offset, size_t size) {
    const KvStore & store = *store_of(tensor);
    const size_t at = tensor->view_offs + offset;
    Placement * placement = store.placement(); // a saved page is packed in all stores, or in none
    if (placement) tried("packing", tensor, [&] { return placement->seal(seal_threads); });
    const bool read = tried("reading", tensor, [&] {
        if (note_read(store, at, size, data)) return true;
        warn_of_saving(store, size);
        return read_tensor(store, at, size, static_cast<uint8_t *>(data));
    });
    if (!read) std::memset(data, 0, size);
}

void memset_tensor(ggml_backend_buffer_t, ggml_tensor * tensor, uint8_t value, size_t offset, size_t size) {
    tried("filling", tensor, [&] {
        const std::vector<uint8_t> bytes(size, value);
        return write_tensor(*store_of(tensor), tensor->view_offs + offset, size, bytes.data());
    });
}

// The stream that a tensor covers as a whole, or -1.
int whole_stream(const ggml_tensor * tensor, const KvStore & store) {
    const bool whole = ggml_is_contiguous(tensor) && ggml_nbytes(tensor) == store.stream_bytes() &&
                       tensor->view_offs % store.stream_bytes() == 0;
    return whole ? static_cast<int>(tensor->view_offs / store.stream_bytes()) : -1;
}

bool copy_streams(const ggml_tensor * from, const ggml_tensor * to) {
    KvStore * store = store_of(to);
    const int source = whole_stream(from, *store), target = whole_stream(to, *store);
    if (source < 0 || target < 0 || !store->copy_stream(source, target)) return false;
    if (store->placement()) store->placement()->copy_stream(source, target);
    return true;
}

// Copies of whole streams keep their packed pages; ggml does the others through get_tensor and set_tensor.
bool copy_tensor(ggml_backend_buffer_t, const ggml_tensor * from, ggml_tensor * to) {
    try {
        return store_of(from) == store_of(to) && copy_streams(from, to);
    } catch (const std::bad_alloc &) {
        return false;
    }
}

void clear(ggml_backend_buffer_t buffer, uint8_t value) { kv_buffer(buffer)->clear(value); }

#if !VIDKV_GGML_ALLOCATES_LISTS
ggml_status init_tensor(ggml_backend_buffer_t buffer, ggml_tensor * tensor) {
    if (tensor->view_src) return GGML_STATUS_SUCCESS;
    return kv_buffer(buffer)->attach(tensor) ? GGML_STATUS_SUCCESS : GGML_STATUS_ALLOC_FAILED;
}
#endif

ggml_backend_buffer_i packed_interface() {
    ggml_backend_buffer_i functions{};
    functions.free_buffer = free_buffer;
    functions.get_base = get_base;
#if !VIDKV_GGML_ALLOCATES_LISTS
    functions.init_tensor = init_tensor;
#endif
    functions.memset_tensor = memset_tensor;
    functions.set_tensor = set_tensor;
    functions.get_tensor = get_tensor;
    functions.cpy_tensor = copy_tensor;
    functions.clear = clear;
    return functions;
}

uint8_t * bytes_of(const ggml_tensor * tensor) { return static_cast<uint8_t *>(tensor->data); }

ggml_backend_buffer_i plain_interface() {
    ggml_backend_buffer_i functions{};
    functions.free_buffer = free_buffer;
    functions.get_base = get_base;
    functions.memset_tensor = [](ggml_backend_buffer_t, ggml_tensor * tensor, uint8_t value, size_t offset, size_t size) {
        std::memset(bytes_of(tensor) + offset, value, size);
    };
    functions.set_tensor = [](ggml_backend_buffer_t, ggml_tensor * tensor, const void * data, size_t offset, size_t size) {
        std::memcpy(bytes_of(tensor) + offset, data, size);
    };
    functions.get_tensor = [](ggml_backend_buffer_t, const ggml_tensor * tensor, void * data, size_t offset, size_t size) {
        std::memcpy(data, bytes_of(tensor) + offset, size);
    };
    functions.clear = clear;
    return functions;
}

} // namespace

KvBuffer::KvBuffer(size_t size, const CacheSettings & settings, bool sliding_window)
    : size_(size), settings_(settings), sliding_window_(sliding_window) {
    void * addresses = mmap(nullptr, size_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (addresses == MAP_FAILED) throw std::bad_alloc();
    base_ = static_cast<uint8_t *>(addresses);
}

KvBuffer::~KvBuffer() { munmap(base_, size_); }

bool KvBuffer::attach(ggml_tensor * tensor) {
    std::string error;
    auto store =
        KvStore::create(shape_of(tensor), settings_.params_of(layer_of(tensor)), layer_of(tensor), sliding_window_, error);
    if (!store) {
        GGML_LOG_ERROR("vidkv: no store for %s: %s\n", tensor->name, error.c_str());
        return false;
    }
    if (!sliding_window_) {
        if (!placement_)
            placement_ = std::make_unique<Placement>(tensor->ne[1], static_cast<int>(tensor->ne[2]), settings_.params);
        store->place_by(placement_.get(), stores_.size());
        placement_->add(*store);
    }
    tensor->extra = store.get();
    tensors_.push_back(tensor);
    stores_.push_back(std::move(store));
    return true;
}

bool KvBuffer::set_head_dim(KvStore & store, int head_dim) {
    if (!store.set_head_dim(head_dim)) return false;
    for (const auto & each : stores_) {
        if (each->head_dim() == 0) return true;
    }
    if (!announced_) announce();
    announced_ = true;
    return true;
}

void KvBuffer::announce() const {
    double f16 = 0, planned = 0, window = 0, bits[2] = {0, 0}, elements[2] = {0, 0};
    for (const auto & store : stores_) {
        vidkv_params params = store->params();
        if (sliding_window_) params.key_bits = params.value_bits = 16;
        const double count = static_cast<double>(store->channels()) * static_cast<double>(store->rows());
        f16 += 2 * count;
        planned += static_cast<double>(store->planned_bytes());
        window += static_cast<double>(store->window_bytes());
        bits[store->side()] += count * vidkv_true_bits(&params, store->side(), store->head_dim());
        elements[store->side()] += count;
    }
    GGML_LOG_INFO("vidkv: KV cache of %zu layers: %s%s%s, true bits K %.3f V %.3f, planned %.2f MiB (f16: %.2f MiB)\n",
                  stores_.size() / 2, sliding_window_ ? "sliding window, kept in f16; preset " : "preset ",
                  settings_.name.c_str(), settings_.by_layer.empty() ? "" : " by layer",
                  bits[VIDKV_KEYS] / elements[VIDKV_KEYS], bits[VIDKV_VALUES] / elements[VIDKV_VALUES], planned / mib,
                  f16 / mib);
    if (sliding_window_) return;
    // As a warning, because hosts show no less important line by default.
    const double mean = (bits[VIDKV_KEYS] + bits[VIDKV_VALUES]) / (elements[VIDKV_KEYS] + elements[VIDKV_VALUES]);
    GGML_LOG_WARN(
        "VidKV: KV cache packed with %s (%.1f bits), %.*f of %.*f MiB, and up to %.1f for each further conversation in it\n",
        settings_.name.c_str(), mean, planned < 10 * mib, planned / mib, f16 < 10 * mib, f16 / mib, window / mib);
}

bool KvBuffer::make_plain() {
    if (mprotect(base_, size_, PROT_READ | PROT_WRITE) != 0) return false;
    for (size_t i = 0; i < stores_.size(); ++i) {
        const bool read = stores_[i]->empty() || stores_[i]->read_bytes(0, ggml_nbytes(tensors_[i]), tensors_[i]->data);
        if (!read) return false;
    }
    for (ggml_tensor * tensor : tensors_) tensor->extra = nullptr;
    stores_.clear();
    placement_.reset();
    return true;
}

void KvBuffer::clear(uint8_t value) {
    if (stores_.empty()) std::memset(base_, value, size_);
    for (const auto & store : stores_) store->clear();
    if (placement_) placement_->clear();
}

ggml_backend_buffer_t wrap(std::unique_ptr<KvBuffer> buffer, size_t reported_size) {
    return ggml_backend_buffer_init(store_buffer_type(), packed_interface(), buffer.release(), reported_size);
}

KvStore * store_of(const ggml_tensor * tensor) {
    ggml_backend_buffer_t buffer = buffer_of(tensor);
    if (!buffer || buffer->buft != store_buffer_type() || !buffer->context) return nullptr;
    return static_cast<KvStore *>(root_of(tensor)->extra);
}

bool set_head_dim(const ggml_tensor * tensor, int head_dim) {
    return kv_buffer(buffer_of(tensor))->set_head_dim(*store_of(tensor), head_dim);
}

bool make_plain(const ggml_tensor * tensor, const std::string & why) {
    ggml_backend_buffer_t buffer = buffer_of(tensor);
    if (!kv_buffer(buffer)->make_plain()) {
        GGML_LOG_ERROR("vidkv: no memory to keep the KV cache unpacked (%s)\n", why.c_str());
        return false;
    }
    buffer->iface = plain_interface();
    buffer->buft = default_buffer_type();
    GGML_LOG_WARN("vidkv: the KV cache stays in plain f16 memory: %s\n", why.c_str());
    return true;
}

void set_seal_threads(int threads) { seal_threads = threads; }

} // namespace vidkv_ggml
