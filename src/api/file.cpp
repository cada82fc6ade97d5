// The C API of files.
#include "vidkv/file.h"

#include <algorithm>
#include <bit>
#include <memory>

#include "api/guarded.h"
#include "api/sized.h"
#include "cache/file_reader.h"
#include "cache/file_writer.h"
#include "codec/presets.h"

using vidkv::FileEntry;
using vidkv::FileKind;
using vidkv::FileReader;
using vidkv::FileWriter;
using vidkv::guarded;
using vidkv::unwrap;

namespace {

FileWriter * unwrap(vidkv_file_writer * writer) { return reinterpret_cast<FileWriter *>(writer); }
const FileReader * unwrap(const vidkv_file * file) { return reinterpret_cast<const FileReader *>(file); }

bool is_store(const FileEntry & entry) { return entry.kind == static_cast<uint32_t>(FileKind::store); }
bool is_section(const FileEntry & entry) { return !is_store(entry); }

// The entry of a kind, counted among those of its kind.
template <typename Is> const FileEntry * nth(const FileReader & file, Is is, int64_t index) {
    for (const FileEntry & entry : file.entries()) {
        if (is(entry) && index-- == 0) return &entry;
    }
    return nullptr;
}

vidkv_file_store_info describe(const FileReader & file, const FileEntry & entry) {
    const vidkv::FileStore header = file.store_header(entry);
    vidkv_file_store_info info{};
    info.layer = entry.layer;
    info.side = entry.side;
    info.sequence = entry.sequence;
    info.channels = header.channels;
    info.head_dim = header.head_dim;
    info.bits = vidkv::bits_of(file.params_of(entry), entry.side);
    info.bytes = entry.data.bytes + entry.pages.bytes;
    for (uint64_t i = 0; i < header.pages; ++i) {
        const vidkv::FilePage page = file.page(entry, i);
        if (page.number < 0 || page.number >= INT32_MAX) continue; // forged: no store takes it
        const int end = vidkv::end_of(page.written);
        info.pages = std::max(info.pages, page.number + 1);
        info.pages_sealed += page.state == vidkv::PageState::sealed;
        info.cells_written += std::popcount(page.written[0]) + std::popcount(page.written[1]);
        if (end > 0) info.cells = std::max(info.cells, page.number * VIDKV_PAGE + end);
    }
    return info;
}

} // namespace

vidkv_status vidkv_file_create_sized(const char * path, const vidkv_params * params, size_t params_size,
                                     vidkv_file_writer ** out) {
    return guarded(
        [&] {
            vidkv_params all;
            if (vidkv_status status = vidkv::copy_in(params, params_size, all)) return status;
            if (vidkv_status status = vidkv::check_params(all, 0)) return status;
            auto writer = std::make_unique<FileWriter>(path, all);
            if (vidkv_status status = writer->open()) return status;
            *out = reinterpret_cast<vidkv_file_writer *>(writer.release());
            return VIDKV_OK;
        },
        path, params, out);
}

vidkv_status vidkv_file_add_section(vidkv_file_writer * writer, const char * name, const void * data, uint64_t bytes) {
    if (!data && bytes > 0) return vidkv::null_pointer();
    return guarded([&] { return unwrap(writer)->add_section(name, data, bytes); }, writer, name);
}

vidkv_status vidkv_file_add_store(vidkv_file_writer * writer, int32_t layer, int32_t as, const vidkv_store * store,
                                  int32_t sequence, const int64_t * pages, int64_t n_pages) {
    return guarded(
        [&] {
            if (!pages) return unwrap(writer)->add_store(layer, as, *unwrap(store), sequence, nullptr);
            const std::vector<int64_t> wanted(pages, pages + std::max<int64_t>(n_pages, 0));
            return unwrap(writer)->add_store(layer, as, *unwrap(store), sequence, &wanted);
        },
        writer, store);
}

vidkv_status vidkv_file_add_cache(vidkv_file_writer * writer, int32_t as, const vidkv_cache * cache, int32_t sequence) {
    return guarded([&] { return unwrap(cache)->save_sequence(*unwrap(writer), as, sequence); }, writer, cache);
}

vidkv_status vidkv_file_finish(vidkv_file_writer * writer) {
    return guarded([&] { return unwrap(writer)->finish(); }, writer);
}

void vidkv_file_abandon(vidkv_file_writer * writer) { delete unwrap(writer); }

vidkv_status vidkv_file_open(const char * path, int32_t copies, vidkv_file ** out) {
    return guarded(
        [&] {
            vidkv_status status = VIDKV_OK;
            *out = reinterpret_cast<vidkv_file *>(FileReader::open(path, copies != 0, status).release());
            return status;
        },
        path, out);
}

void vidkv_file_close(vidkv_file * file) { delete unwrap(file); }

vidkv_status vidkv_file_verify(const vidkv_file * file, int32_t threads) {
    return guarded([&] { return unwrap(file)->verify(threads); }, file);
}

const void * vidkv_file_section(const vidkv_file * file, const char * name, uint64_t * bytes) {
    const FileEntry * entry = file && name ? unwrap(file)->section(name) : nullptr;
    if (bytes) *bytes = entry ? entry->data.bytes : 0;
    return entry ? unwrap(file)->at(entry->data) : nullptr;
}

const char * vidkv_file_section_name(const vidkv_file * file, int64_t index) {
    const FileEntry * entry = file && index >= 0 ? nth(*unwrap(file), is_section, index) : nullptr;
    return entry ? entry->name : nullptr;
}

void vidkv_file_get_info_sized(const vidkv_file * file, vidkv_file_info * out, size_t info_size) {
    if (!file || !out) return;
    vidkv_file_info info{};
    info.params = unwrap(file)->params();
    info.bytes = unwrap(file)->bytes();
    for (const FileEntry & entry : unwrap(file)->entries()) {
        if (!is_store(entry)) continue;
        ++info.stores;
        info.layers = std::max(info.layers, entry.layer + 1);
        info.sequences = std::max(info.sequences, entry.sequence + 1);
    }
    vidkv::copy_out(info, out, info_size);
}

vidkv_status vidkv_file_get_store_sized(const vidkv_file * file, int64_t index, vidkv_file_store_info * out,
                                        size_t info_size) {
    if (!file || !out) return vidkv::null_pointer();
    const FileEntry * entry = index >= 0 ? nth(*unwrap(file), is_store, index) : nullptr;
    if (!entry) return vidkv::fail(VIDKV_E_ARGUMENT, "the file has no such store");
    vidkv::copy_out(describe(*unwrap(file), *entry), out, info_size);
    return VIDKV_OK;
}

vidkv_status vidkv_file_load(const vidkv_file * file, int32_t layer, int32_t from, vidkv_store * store, int32_t sequence,
                             const int64_t * places, int64_t n_places) {
    return guarded([&] { return unwrap(file)->load(layer, from, *unwrap(store), sequence, places, n_places); }, file,
                   store);
}

vidkv_status vidkv_file_load_cache(const vidkv_file * file, int32_t from, vidkv_cache * cache, int32_t sequence) {
    return guarded([&] { return unwrap(cache)->load_sequence(*unwrap(file), from, sequence); }, file, cache);
}
