#include "cache/file_writer.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"

namespace vidkv {

namespace {

constexpr size_t buffer_bytes = size_t{1} << 20;
constexpr uint8_t zeros[file_alignment] = {};

bool is_name(const char * name) {
    const size_t length = std::strlen(name);
    if (length == 0 || length >= sizeof(FileEntry::name)) return false;
    return std::all_of(name, name + length, [](char c) {
        return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '.' || c == '_' || c == '-';
    });
}

std::string folder_of(const std::string & path) {
    const size_t slash = path.rfind('/');
    return slash == std::string::npos ? "." : slash == 0 ? "/" : path.substr(0, slash);
}

bool is_same_file(const struct stat & a, const struct stat & b) { return a.st_dev == b.st_dev && a.st_ino == b.st_ino; }

} // namespace

FileWriter::FileWriter(std::string path, const vidkv_params & params)
    : path_(std::move(path)), part_(path_ + ".part"), params_(params) {
    buffer_.reserve(buffer_bytes);
}

FileWriter::~FileWriter() {
    if (file_ < 0) return;
    ::unlink(part_.c_str());
    ::close(file_);
}

vidkv_status FileWriter::io_error(const char * what) {
    failed_ = true;
    return fail(VIDKV_E_IO, std::string("cannot ") + what + " '" + path_ + "': " + std::strerror(errno));
}

vidkv_status FileWriter::check_open() const {
    return file_ >= 0 && !failed_ ? VIDKV_OK : fail(VIDKV_E_ARGUMENT, "the file is finished, or could not be written");
}

// Two writers of one file never write into one another's: the file beside it belongs to who holds its lock, and is still at its
// place. File systems without locks go without.
vidkv_status FileWriter::lock_part() {
    for (;;) {
        const int file = ::open(part_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
        if (file < 0) return io_error("write");
        struct stat held {
        }, there{};
        const bool is_busy = ::flock(file, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK;
        const bool is_there = ::fstat(file, &held) == 0 && ::stat(part_.c_str(), &there) == 0 && is_same_file(held, there);
        if (is_there && !is_busy) {
            file_ = file;
            return VIDKV_OK;
        }
        ::close(file);
        if (is_busy && is_there) return fail(VIDKV_E_IO, "cannot write '" + path_ + "': somebody else is writing it");
    }
}

vidkv_status FileWriter::open() {
    struct stat there {};
    if (::stat(path_.c_str(), &there) == 0 && !S_ISREG(there.st_mode))
        return fail(VIDKV_E_IO, "cannot write '" + path_ + "': it is there and is no file");
    if (vidkv_status status = lock_part()) return status;
    if (::ftruncate(file_, 0) != 0) return io_error("write");
    const FileHeader unfinished{}; // without its magic number: no reader takes it
    return write(&unfinished, sizeof unfinished);
}

vidkv_status FileWriter::flush() {
    for (size_t done = 0; done < buffer_.size();) {
        const ssize_t n = ::write(file_, buffer_.data() + done, buffer_.size() - done);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return io_error("write");
        done += static_cast<size_t>(n);
    }
    buffer_.clear();
    return VIDKV_OK;
}

vidkv_status FileWriter::write(const void * data, size_t bytes) {
    const auto * from = static_cast<const uint8_t *>(data);
    while (bytes > 0) {
        const size_t n = std::min(bytes, buffer_bytes - buffer_.size());
        buffer_.insert(buffer_.end(), from, from + n);
        written_ += n;
        from += n;
        bytes -= n;
        if (buffer_.size() < buffer_bytes) continue;
        if (vidkv_status status = flush()) return status;
    }
    return VIDKV_OK;
}

void FileWriter::take_back(uint64_t written, size_t entries) {
    const uint64_t flushed = written_ - buffer_.size();
    buffer_.resize(written > flushed ? written - flushed : 0);
    if (written < flushed)
        failed_ = ::ftruncate(file_, static_cast<off_t>(written)) != 0 ||
                  ::lseek(file_, static_cast<off_t>(written), SEEK_SET) < 0 || failed_;
    written_ = written;
    entries_.resize(entries);
}

vidkv_status FileWriter::begin(FileRange & range) {
    if (vidkv_status status = write(zeros, aligned(written_) - written_)) return status;
    range.at = written_;
    checksum_.reset();
    return VIDKV_OK;
}

vidkv_status FileWriter::add(FileRange & range, const void * data, size_t bytes) {
    checksum_.add(data, bytes);
    range.bytes += bytes;
    return write(data, bytes);
}

void FileWriter::end(FileRange & range) { range.checksum = checksum_.value(); }

vidkv_status FileWriter::add_section(const char * name, const void * data, uint64_t bytes) {
    if (vidkv_status status = check_open()) return status;
    if (!is_name(name))
        return fail(VIDKV_E_ARGUMENT, "a section's name is 1 to 31 of a-z 0-9 . _ -; got '" + std::string(name) + "'");
    for (const FileEntry & entry : entries_) {
        if (std::strcmp(entry.name, name) == 0)
            return fail(VIDKV_E_ARGUMENT, "the file has a section '" + std::string(name) + "' already");
    }
    FileEntry entry{};
    std::strncpy(entry.name, name, sizeof entry.name - 1);
    entries_.reserve(entries_.size() + 1); // a failure leaves nothing half done
    if (vidkv_status status = begin(entry.data)) return status;
    if (vidkv_status status = add(entry.data, data, bytes)) return status;
    end(entry.data);
    entries_.push_back(entry);
    return VIDKV_OK;
}

vidkv_status FileWriter::add_store(int layer, int as, const Store & store, int sequence,
                                   const std::vector<int64_t> * pages) {
    if (vidkv_status status = check_open()) return status;
    if (layer < 0 || as < 0) return fail(VIDKV_E_ARGUMENT, "layers and sequences of a file are counted from 0");
    FileEntry entry{};
    entry.kind = static_cast<uint32_t>(FileKind::store);
    entry.layer = layer;
    entry.side = store.side();
    entry.sequence = as;
    for (const FileEntry & other : entries_) {
        if (other.kind == entry.kind && other.layer == layer && other.side == entry.side && other.sequence == as)
            return fail(VIDKV_E_ARGUMENT, "the file has this side of layer " + std::to_string(layer) + " already");
    }
    vidkv_params params = params_;
    bits_of(params, store.side()) = store.bits(); // which may differ from layer to layer
    if (vidkv_status status = store.check_same_params(params)) return status;
    StorePart part;
    if (vidkv_status status = store.part_of(sequence, pages, params_, part)) return status;
    if (part.has_shifts) needs_ |= needs_shifts;
    if (part.has_directions) needs_ |= needs_directions;
    if (part.has_own_bits) needs_ |= needs_bits_by_layer;
    entries_.reserve(entries_.size() + 1);
    if (vidkv_status status = begin(entry.data)) return status;
    if (vidkv_status status = add(entry.data, part.state.data(), part.state.size())) return status;
    end(entry.data);
    if (vidkv_status status = begin(entry.pages)) return status;
    for (const StorePart::Piece & piece : part.pieces) {
        if (vidkv_status status = add(entry.pages, zeros, piece.at - entry.pages.bytes)) return status;
        if (vidkv_status status = add(entry.pages, piece.data, piece.bytes)) return status;
    }
    end(entry.pages);
    entries_.push_back(entry);
    return VIDKV_OK;
}

vidkv_status FileWriter::put_header() {
    FileHeader header{};
    std::memcpy(header.magic, file_magic, sizeof file_magic);
    const bool has_means = !is_f16(params_, VIDKV_VALUES) && params_.value_codec == VIDKV_CODEC_TRELLIS;
    header.needs = needs_ | (has_means ? needs_page_means : 0);
    header.params = {params_.key_bits,   params_.value_bits,      params_.key_codec,   params_.value_codec,
                     params_.group_size, params_.residual_length, params_.sink_tokens, params_.protect};
    header.table_at = aligned(written_);
    header.entries = entries_.size();
    header.table_checksum = checksum(entries_.data(), entries_.size() * sizeof(FileEntry));
    header.file_bytes = header.table_at + entries_.size() * sizeof(FileEntry);
    header.checksum = checksum(&header, offsetof(FileHeader, checksum));
    if (vidkv_status status = write(zeros, header.table_at - written_)) return status;
    if (vidkv_status status = write(entries_.data(), entries_.size() * sizeof(FileEntry))) return status;
    if (vidkv_status status = flush()) return status;
    const bool put = ::pwrite(file_, &header, sizeof header, 0) == static_cast<ssize_t>(sizeof header);
    return put ? VIDKV_OK : io_error("write");
}

vidkv_status FileWriter::finish() {
    if (vidkv_status status = check_open()) return status;
    const std::string place = folder_of(path_);
    if (vidkv_status status = put_header()) return status;
    if (::fsync(file_) != 0 || ::rename(part_.c_str(), path_.c_str()) != 0) return io_error("write");
    ::close(file_);
    file_ = -1;
    const int folder = ::open(place.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder >= 0) { // the name too is on disk; some file systems cannot be asked
        ::fsync(folder);
        ::close(folder);
    }
    return VIDKV_OK;
}

} // namespace vidkv
