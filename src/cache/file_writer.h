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

  private:
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
    Checksum checksum_;    // of the range at hand
    std::vector<FileEntry> entries_;
};

} // namespace vidkv
