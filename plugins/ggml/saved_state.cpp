#include "saved_state.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <map>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "ggml-vidkv.h"
#include "host_functions.h"
#include "kv_store.h"
#include "placement.h"

namespace vidkv_ggml {

namespace {

constexpr const char * cells_section = "cells";

// Rows that the host read or wrote, of one store.
struct Rows {
    const KvStore * store;
    int64_t first, n;
};

struct Noted {
    std::vector<Rows> rows;
    std::vector<vidkv_bytes> places; // where the host has, or wants, their bytes
};

// The cells of one stream that a host has named in all stores of a cache, in its order.
struct Named {
    Placement * placement = nullptr;
    int stream = 0;
    std::vector<int64_t> cells;
};

std::atomic<int32_t> mode{VIDKV_ROWS_AS_USUAL};
Noted noted;

bool note(int32_t when, const KvStore & store, size_t offset, size_t size, const void * data) {
    if (mode != when || !store.placement() || offset % store.row_bytes() != 0 || size % store.row_bytes() != 0)
        return false;
    noted.rows.push_back(
        {&store, static_cast<int64_t>(offset / store.row_bytes()), static_cast<int64_t>(size / store.row_bytes())});
    noted.places.push_back({data, size});
    return true;
}

using Runs = std::vector<std::pair<int64_t, int64_t>>; // first row, rows

std::map<const KvStore *, Runs> noted_runs() {
    std::map<const KvStore *, Runs> runs;
    for (const Rows & rows : noted.rows) runs[rows.store].emplace_back(rows.first, rows.n);
    return runs;
}

// The cells of one stream of `runs`. Throws where they are of several, or one is named twice.
std::vector<int64_t> cells_of(const Runs & runs, const Placement & placement, int stream) {
    std::vector<int64_t> cells;
    std::vector<char> seen(static_cast<size_t>(placement.cells()));
    for (const auto & [first, n] : runs) {
        for (int64_t id = first; id < first + n; ++id) {
            const int64_t cell = id - stream * placement.cells();
            if (cell < 0 || cell >= placement.cells() || seen[cell]++)
                throw std::runtime_error("the cells that were named are of several sequences");
            cells.push_back(cell);
        }
    }
    return cells;
}

// Throws where the host did not name the same cells of one stream in every store of one cache.
Named named_cells() {
    std::map<const KvStore *, Runs> runs = noted_runs();
    Named named;
    if (runs.empty()) throw std::runtime_error("no packed cache was named");
    named.placement = runs.begin()->first->placement();
    const std::vector<KvStore *> & stores = named.placement->stores();
    const Runs first = runs[stores.front()];
    const bool same =
        runs.size() == stores.size() && !first.empty() &&
        std::all_of(stores.begin(), stores.end(), [&](const KvStore * store) { return runs[store] == first; });
    if (!same) throw std::runtime_error("the layers of the cache name different cells");
    named.stream = static_cast<int>(first.front().first / named.placement->cells());
    if (named.stream >= named.placement->streams()) throw std::runtime_error("there is no such cell");
    named.cells = cells_of(first, *named.placement, named.stream);
    return named;
}

void check(vidkv_status status) {
    if (status == VIDKV_E_MEMORY) throw std::bad_alloc();
    if (status != VIDKV_OK) throw std::runtime_error(vidkv_last_error());
}

// Runs work; the line that says why it failed, or null.
template <typename Work> const char * guarded(Work work) {
    static thread_local std::string line;
    try {
        work();
        return nullptr;
    } catch (const std::bad_alloc &) {
        return "no memory left";
    } catch (const std::exception & error) {
        line = error.what();
        return line.c_str();
    }
}

struct WriterDeleter {
    void operator()(vidkv_file_writer * writer) const { vidkv_file_abandon(writer); }
};
struct FileDeleter {
    void operator()(vidkv_file * file) const { vidkv_file_close(file); }
};
using Writer = std::unique_ptr<vidkv_file_writer, WriterDeleter>;
using File = std::unique_ptr<vidkv_file, FileDeleter>;

Writer create(const char * path, const vidkv_params & params) {
    vidkv_file_writer * writer = nullptr;
    check(vidkv_file_create(path, &params, &writer));
    return Writer(writer);
}

File open(const char * path, bool copy) {
    vidkv_file * file = nullptr;
    check(vidkv_file_open(path, copy, &file));
    return File(file);
}

// The noted cells' pages of all stores, and how the cells lie in them.
void add_cache(vidkv_file_writer * writer, const Named & named) {
    const CellMap & map = named.placement->map(named.stream);
    for (const int64_t cell : named.cells) {
        if (map.where(cell) < 0) throw std::runtime_error("a cell of the sequence was never written");
    }
    std::vector<int64_t> pages;
    const std::vector<int64_t> numbers = map.save(named.cells, pages).numbers();
    check(vidkv_file_add_section(writer, cells_section, numbers.data(), numbers.size() * sizeof(int64_t)));
    for (const KvStore * store : named.placement->stores()) {
        check(vidkv_file_add_store(writer, store->layer(), 0, store->store(), named.stream, pages.data(),
                                   static_cast<int64_t>(pages.size())));
    }
}

const char * save(const char * path, const vidkv_named_bytes * sections, int64_t n) {
    return guarded([&] {
        const Named named = named_cells();
        if (!named.placement->seal(1)) throw std::runtime_error(vidkv_last_error());
        const Writer writer = create(path, named.placement->params());
        for (int64_t i = 0; i < n; ++i)
            check(vidkv_file_add_section(writer.get(), sections[i].name, sections[i].data, sections[i].bytes));
        add_cache(writer.get(), named);
        check(vidkv_file_finish(writer.get()));
    });
}

// Packed pages come first in every store of a cache that was filled in order.
int64_t pages_packed(const vidkv_file * file) {
    vidkv_file_store_info store{};
    check(vidkv_file_get_store(file, 0, &store));
    return store.pages_sealed;
}

// Files of other engines have one text of n cells, in order.
SavedCells saved_cells(const vidkv_file * file, int64_t n) {
    uint64_t bytes = 0;
    const void * data = vidkv_file_section(file, cells_section, &bytes);
    if (!data) return SavedCells::in_order(n, pages_packed(file));
    if (bytes % sizeof(int64_t) != 0) throw std::runtime_error("the file does not say how its cells lie");
    std::vector<int64_t> numbers(bytes / sizeof(int64_t));
    std::memcpy(numbers.data(), data, bytes);
    SavedCells saved = SavedCells::from_numbers(numbers.data(), numbers.size());
    if (!saved.is_sound()) throw std::runtime_error("the cells of the file contradict each other");
    return saved;
}

// Every store of the cache, and no other, has as many pages in the file.
void check_stores(const vidkv_file * file, const Placement & placement, int64_t pages) {
    vidkv_file_info info{};
    vidkv_file_get_info(file, &info);
    if (info.stores != static_cast<int64_t>(placement.stores().size()))
        throw std::runtime_error("the file has another number of layers than the model");
    for (int64_t i = 0; i < info.stores; ++i) {
        vidkv_file_store_info store{};
        check(vidkv_file_get_store(file, i, &store));
        if (store.pages != pages) throw std::runtime_error("the pages and cells of the file do not belong together");
    }
}

// The places of `pages` that no cell has taken: in the file they may hold rows that the sequence had left.
std::vector<int64_t> places_left(const SavedCells & saved, const std::vector<int64_t> & pages) {
    std::vector<char> taken(pages.size() * CellMap::page_cells);
    for (const SavedCells::Run & run : saved.runs) std::fill_n(taken.begin() + run.place, run.cells, char{1});
    std::vector<int64_t> left;
    for (size_t i = 0; i < taken.size(); ++i) {
        if (!taken[i])
            left.push_back(pages[i / CellMap::page_cells] * CellMap::page_cells +
                           static_cast<int64_t>(i) % CellMap::page_cells);
    }
    return left;
}

const char * load(const char * path, int32_t copy, const void * manifest, uint64_t bytes) {
    return guarded([&] {
        const Named named = named_cells();
        const File file = open(path, copy != 0);
        uint64_t found = 0;
        const void * own = vidkv_file_section(file.get(), "manifest", &found);
        if (!own || found != bytes || std::memcmp(own, manifest, bytes) != 0)
            throw std::runtime_error("the file was replaced while it was read: try again");
        const SavedCells saved = saved_cells(file.get(), static_cast<int64_t>(named.cells.size()));
        if (saved.cells() != static_cast<int64_t>(named.cells.size()))
            throw std::runtime_error("the file has another number of cells than its state");
        check_stores(file.get(), *named.placement, saved.pages());
        std::vector<int64_t> pages;
        if (!named.placement->take(named.stream, saved, named.cells, pages)) throw std::runtime_error(vidkv_last_error());
        const std::vector<int64_t> left = places_left(saved, pages);
        for (KvStore * store : named.placement->stores()) {
            if (!store->take_pages(file.get(), named.stream, pages, left)) throw std::runtime_error(vidkv_last_error());
        }
    });
}

void rows(int32_t what) {
    noted = {};
    mode = what;
}

int64_t left_alone(vidkv_bytes * out, int64_t most) {
    for (int64_t i = 0; i < most && i < static_cast<int64_t>(noted.places.size()); ++i) out[i] = noted.places[i];
    return static_cast<int64_t>(noted.places.size());
}

} // namespace

bool note_read(const KvStore & store, size_t offset, size_t size, const void * data) {
    return note(VIDKV_ROWS_LEFT_ON_SAVE, store, offset, size, data);
}

bool note_write(const KvStore & store, size_t offset, size_t size, const void * data) {
    return note(VIDKV_ROWS_LEFT_ON_LOAD, store, offset, size, data);
}

void * state_functions() {
    static const vidkv_state functions = {rows, left_alone, save, load};
    return const_cast<vidkv_state *>(&functions);
}

} // namespace vidkv_ggml
