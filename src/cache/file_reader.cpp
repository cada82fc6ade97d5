#include "cache/file_reader.h"

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cstring>
#include <new>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/checksum.h"
#include "base/error.h"
#include "base/thread_pool.h"
#include "codec/presets.h"

namespace vidkv {

namespace {

constexpr int32_t most_layers = 1 << 16;

struct Descriptor {
    int file;
    ~Descriptor() {
        if (file >= 0) ::close(file);
    }
};

struct Unmap {
    size_t size;
    void operator()(const void * data) const { ::munmap(const_cast<void *>(data), size); }
};
struct Release {
    void operator()(const void * data) const {
        ::operator delete[](const_cast<void *>(data), std::align_val_t{file_alignment});
    }
};

bool read_all(int file, uint8_t * to, size_t size) {
    for (size_t done = 0; done < size;) {
        const ssize_t n = ::pread(file, to + done, size - done, static_cast<off_t>(done));
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return false;
        if (n == 0) std::memset(to + done, 0, size - done); // it was cut meanwhile: the checksums see it
        done += n == 0 ? size - done : static_cast<size_t>(n);
    }
    return true;
}

// Zeros behind the name, and characters that a name has.
bool is_name(const char (&name)[32]) {
    const size_t length = ::strnlen(name, sizeof name);
    const auto is_part = [](char c) {
        return std::islower(static_cast<unsigned char>(c)) || (c >= '0' && c <= '9') || std::strchr("._-", c);
    };
    return length > 0 && length < sizeof name && std::all_of(name, name + length, is_part) &&
           std::all_of(name + length, name + sizeof name, [](char c) { return c == 0; });
}

} // namespace

vidkv_status FileReader::altered() const {
    return fail(VIDKV_E_FORMAT, "'" + path_ + "' is cut off or altered: save it again");
}

std::unique_ptr<FileReader> FileReader::open(const char * path, bool copies, vidkv_status & status) {
    std::unique_ptr<FileReader> reader(new FileReader(path));
    status = reader->map(copies);
    if (status == VIDKV_OK) status = reader->read_table();
    if (status != VIDKV_OK) reader.reset();
    return reader;
}

vidkv_status FileReader::map(bool copies) {
    const auto io_error = [&](const char * what) {
        return fail(VIDKV_E_IO, std::string("cannot ") + what + " '" + path_ + "': " + std::strerror(errno));
    };
    const Descriptor opened{::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
    struct stat about {};
    if (opened.file < 0 || ::fstat(opened.file, &about) != 0) return io_error("open");
    if (!S_ISREG(about.st_mode)) return fail(VIDKV_E_IO, "cannot open '" + path_ + "': it is no file");
    size_ = static_cast<uint64_t>(about.st_size);
    if (size_ == 0) return altered();
    void * mapping = copies ? MAP_FAILED : ::mmap(nullptr, size_, PROT_READ, MAP_SHARED, opened.file, 0);
    if (mapping != MAP_FAILED) {
        file_ = std::shared_ptr<const void>(mapping, Unmap{size_});
        data_ = static_cast<const uint8_t *>(mapping);
        return VIDKV_OK;
    }
    auto * memory = static_cast<uint8_t *>(::operator new[](size_, std::align_val_t{file_alignment}));
    file_ = std::shared_ptr<const void>(memory, Release{});
    data_ = memory;
    return read_all(opened.file, memory, size_) ? VIDKV_OK : io_error("read");
}

uint64_t FileReader::checksum_of(const FileRange & range) const { return checksum(at(range), range.bytes); }

bool FileReader::is_inside(const FileRange & range) const {
    return range.at % file_alignment == 0 && range.at >= sizeof(FileHeader) && range.at <= table_at_ &&
           range.bytes <= table_at_ - range.at;
}

vidkv_status FileReader::read_table() {
    FileHeader header;
    constexpr size_t version = sizeof file_magic - 1;
    if (size_ <= sizeof file_magic || std::memcmp(data_, file_magic, version) != 0)
        return fail(VIDKV_E_FORMAT, "'" + path_ + "' is no VidKV file");
    if (data_[version] != file_magic[version]) {
        const bool is_older = data_[version] < file_magic[version];
        return fail(VIDKV_E_FORMAT, "'" + path_ + "' is of another version of the format: " +
                                        (is_older ? "save it again" : "it needs a newer VidKV"));
    }
    if (size_ < sizeof header) return altered();
    std::memcpy(&header, data_, sizeof header);
    if (header.checksum != checksum(&header, offsetof(FileHeader, checksum))) return altered();
    if ((header.needs & ~known_needs) != 0) return fail(VIDKV_E_FORMAT, "'" + path_ + "' needs a newer VidKV");
    if (header.file_bytes != size_ || header.table_at > size_ || header.table_at < sizeof header) return altered();
    const uint64_t table_bytes = size_ - header.table_at;
    if (table_bytes % sizeof(FileEntry) != 0 || table_bytes / sizeof(FileEntry) != header.entries) return altered();
    if (checksum(data_ + header.table_at, table_bytes) != header.table_checksum) return altered();
    table_at_ = header.table_at;
    needs_ = header.needs;
    entries_.resize(header.entries);
    if (table_bytes > 0) std::memcpy(entries_.data(), data_ + table_at_, table_bytes);
    const FileParams & p = header.params;
    params_ = {p.key_bits,   p.value_bits,      p.key_codec,   p.value_codec,
               p.group_size, p.residual_length, p.sink_tokens, p.protect};
    if (check_params(params_, 0) != VIDKV_OK) return altered();
    for (const FileEntry & entry : entries_) {
        if (vidkv_status status = check_entry(entry)) return status;
    }
    return VIDKV_OK;
}

vidkv_status FileReader::check_entry(const FileEntry & entry) const {
    const bool is_section = entry.kind == static_cast<uint32_t>(FileKind::section);
    if (!is_section && entry.kind != static_cast<uint32_t>(FileKind::store)) return altered();
    if (!is_inside(entry.data) || !is_whole(entry.data)) return altered();
    if (is_section) return is_name(entry.name) && section(entry.name) == &entry ? VIDKV_OK : altered();
    const bool is_sound = entry.layer >= 0 && entry.layer < most_layers &&
                          (entry.side == VIDKV_KEYS || entry.side == VIDKV_VALUES) && entry.sequence >= 0 &&
                          entry.sequence < most_sequences && is_inside(entry.pages);
    if (!is_sound || store(entry.layer, entry.side, entry.sequence) != &entry) return altered();
    if (entry.data.bytes < sizeof(FileStore)) return altered();
    return store_header(entry).pages <= (entry.data.bytes - sizeof(FileStore)) / sizeof(FilePage) ? VIDKV_OK : altered();
}

const FileEntry * FileReader::section(const char * name) const {
    for (const FileEntry & entry : entries_) {
        if (entry.kind == static_cast<uint32_t>(FileKind::section) &&
            std::strncmp(entry.name, name, sizeof entry.name) == 0)
            return &entry;
    }
    return nullptr;
}

const FileEntry * FileReader::store(int layer, int side, int sequence) const {
    for (const FileEntry & entry : entries_) {
        if (entry.kind == static_cast<uint32_t>(FileKind::store) && entry.layer == layer && entry.side == side &&
            entry.sequence == sequence)
            return &entry;
    }
    return nullptr;
}

FileStore FileReader::store_header(const FileEntry & entry) const {
    FileStore header;
    std::memcpy(&header, at(entry.data), sizeof header);
    return header;
}

FilePage FileReader::page(const FileEntry & entry, uint64_t index) const {
    FilePage page;
    std::memcpy(&page, at(entry.data) + sizeof(FileStore) + index * sizeof(FilePage), sizeof page);
    return page;
}

vidkv_params FileReader::params_of(const FileEntry & entry) const {
    vidkv_params params = params_;
    const float own = store_header(entry).bits;
    if (own != 0) bits_of(params, entry.side) = own;
    return params;
}

bool FileReader::announces_bits_of(const FileEntry & entry) const {
    return store_header(entry).bits == 0 || (needs_ & needs_bits_by_layer) != 0;
}

StoreSource FileReader::source(const FileEntry & entry) const {
    return {at(entry.data), entry.data.bytes, at(entry.pages), entry.pages.bytes, file_, path_, needs_};
}

vidkv_status FileReader::load(int layer, int from, Store & store, int sequence, const int64_t * places,
                              int64_t n_places) const {
    const FileEntry * entry = this->store(layer, store.side(), from);
    if (!entry) {
        return fail(VIDKV_E_ARGUMENT, "'" + path_ + "' has no " + (store.side() == VIDKV_KEYS ? "keys" : "values") +
                                          " of layer " + std::to_string(layer) + ", sequence " + std::to_string(from));
    }
    if (!announces_bits_of(*entry)) return altered();
    if (vidkv_status status = store.check_same_params(params_of(*entry)))
        return fail(status, "'" + path_ + "' is of another preset: " + last_error());
    return store.load(source(*entry), sequence, places, n_places);
}

// Loads it into a store that is just large enough.
vidkv_status FileReader::check_store(const FileEntry & entry) const {
    if (!is_whole(entry.pages)) return altered();
    const FileStore header = store_header(entry);
    int64_t pages = 0;
    for (uint64_t i = 0; i < header.pages; ++i) pages = std::max(pages, page(entry, i).number);
    if (pages >= INT32_MAX / page_tokens - 1) return altered();
    const vidkv_store_shape shape{entry.side, header.channels, header.head_dim, (pages + 1) * page_tokens, 1};
    const vidkv_params params = params_of(entry);
    if (!announces_bits_of(entry) || vidkv::check_store(shape, params) != VIDKV_OK) return altered();
    Store store(shape, params);
    if (vidkv_status status = store.load(source(entry), 0, nullptr, 0)) return status;
    return store.check_mapped(0, 0, store.pages());
}

bool FileReader::has_only_zeros_between() const {
    std::vector<std::pair<uint64_t, uint64_t>> ranges{{0, sizeof(FileHeader)}, {table_at_, size_}};
    for (const FileEntry & entry : entries_) {
        ranges.emplace_back(entry.data.at, entry.data.at + entry.data.bytes);
        if (entry.kind == static_cast<uint32_t>(FileKind::store))
            ranges.emplace_back(entry.pages.at, entry.pages.at + entry.pages.bytes);
    }
    std::sort(ranges.begin(), ranges.end());
    for (size_t i = 1; i < ranges.size(); ++i) {
        const uint64_t end = ranges[i - 1].second, next = ranges[i].first;
        if (next < end || next - end >= file_alignment) return false;
        if (std::any_of(data_ + end, data_ + next, [](uint8_t byte) { return byte != 0; })) return false;
    }
    return true;
}

vidkv_status FileReader::verify(int threads) const {
    if (!has_only_zeros_between()) return altered();
    std::vector<vidkv_status> found(entries_.size(), VIDKV_OK);
    parallel_for(static_cast<int64_t>(entries_.size()), threads, [&](int64_t i) {
        const FileEntry & entry = entries_[static_cast<size_t>(i)];
        try {
            if (!is_whole(entry.data))
                found[i] = VIDKV_E_FORMAT;
            else if (entry.kind == static_cast<uint32_t>(FileKind::store))
                found[i] = check_store(entry);
        } catch (const std::bad_alloc &) {
            found[i] = VIDKV_E_MEMORY;
        }
    });
    for (const vidkv_status status : found) {
        if (status == VIDKV_E_MEMORY) throw std::bad_alloc();
        if (status != VIDKV_OK) return altered();
    }
    return VIDKV_OK;
}

} // namespace vidkv
