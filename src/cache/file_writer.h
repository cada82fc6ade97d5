// Writes a file beside its place, piece by piece, and renames it: what is there stays until all is written.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/checksum.h"
#include "cache/file_format.h"
#include "cache/store.h"

namespace vidkv {

class FileWriter {
  public:
    FileWriter(std::string path, const vidkv_params & params);
    ~FileWriter(); // of an unfinished file nothing is left
    FileWriter(const FileWriter &) = delete;
    FileWriter & operator=(const FileWriter &) = delete;

    vidkv_status open();
    vidkv_status add_section(const char * name, const void * data, uint64_t bytes);
    // pages: null for all that hold something.
    vidkv_status add_store(int layer, int as, const Store & store, int sequence, const std::vector<int64_t> * pages);
    vidkv_status finish();

    // Runs add(), which adds several stores; if it fails for want of memory, none of them was added.
    template <typename Add> vidkv_status all_or_none(Add add) {
        const uint64_t before = written_;
        const size_t entries = entries_.size();
        try {
            return add();
        } catch (...) {
            take_back(before, entries);
            throw;
        }
    }

  private:
    void take_back(uint64_t written, size_t entries);
    vidkv_status check_open() const;
    vidkv_status lock_part();
    vidkv_status write(const void * data, size_t bytes);
    vidkv_status flush();
    vidkv_status begin(FileRange & range);
    vidkv_status add(FileRange & range, const void * data, size_t bytes);
    void end(FileRange & range);
    vidkv_status put_header();
    vidkv_status io_error(const char * what);

    std::string path_, part_;
    vidkv_params params_;
    int file_ = -1;
    bool failed_ = false;
    std::vector<uint8_t> buffer_;
    uint64_t written_ = 0; // with what is in the buffer
    uint32_t needs_ = 0;   // of a reader
    Checksum checksum_;    // of the range at hand
    std::vector<FileEntry> entries_;
};

} // namespace vidkv
