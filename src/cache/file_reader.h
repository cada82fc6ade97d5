// A file, mapped: its pages are read where they lie, by any number of stores and processes.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "cache/file_format.h"
#include "cache/store.h"

namespace vidkv {

class FileReader {
  public:
    // copies: the file is read into memory, not mapped. Null where it cannot be read or is none: status says why.
    static std::unique_ptr<FileReader> open(const char * path, bool copies, vidkv_status & status);

    const std::string & path() const { return path_; }
    const vidkv_params & params() const { return params_; }
    uint64_t bytes() const { return size_; }
    const std::vector<FileEntry> & entries() const { return entries_; }
    const FileEntry * section(const char * name) const; // null: there is none
    const FileEntry * store(int layer, int side, int sequence) const;
    const uint8_t * at(const FileRange & range) const { return data_ + range.at; }
    FileStore store_header(const FileEntry & entry) const; // as it stands there
    FilePage page(const FileEntry & entry, uint64_t index) const;
    vidkv_params params_of(const FileEntry & entry) const; // of a store, whose bits may be its own

    vidkv_status load(int layer, int from, Store & store, int sequence, const int64_t * places, int64_t n_places) const;
    // All checksums, the structure of all pages, and nothing but zeros between the ranges.
    vidkv_status verify(int threads) const;

  private:
    FileReader(std::string path) : path_(std::move(path)) {}
    vidkv_status map(bool copies);
    vidkv_status read_table();
    vidkv_status check_entry(const FileEntry & entry) const;
    vidkv_status check_store(const FileEntry & entry) const;
    bool has_only_zeros_between() const;
    bool is_inside(const FileRange & range) const;
    bool is_whole(const FileRange & range) const { return checksum_of(range) == range.checksum; }
    uint64_t checksum_of(const FileRange & range) const;
    StoreSource source(const FileEntry & entry) const;
    bool announces_bits_of(const FileEntry & entry) const;
    vidkv_status altered() const;

    std::string path_;
    std::shared_ptr<const void> file_; // the mapping, or the memory
    const uint8_t * data_ = nullptr;
    uint64_t size_ = 0;
    vidkv_params params_{};
    uint64_t table_at_ = 0;
    uint32_t needs_ = 0;
    std::vector<FileEntry> entries_;
};

} // namespace vidkv
