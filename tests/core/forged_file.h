// A file that somebody changed, and then made right again as far as checksums go.
#pragma once

#include <cstdint>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "base/checksum.h"
#include "cache/file_format.h"

namespace vidkv::test {

class ForgedFile {
  public:
    std::vector<uint8_t> bytes;

    explicit ForgedFile(std::vector<uint8_t> from) : bytes(std::move(from)) {}
    static ForgedFile read(const std::string & path) {
        std::ifstream in(path, std::ios::binary);
        return ForgedFile({std::istreambuf_iterator<char>(in), {}});
    }
    void write(const std::string & path) const {
        std::ofstream out(path, std::ios::binary);
        out.write(reinterpret_cast<const char *>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
    }

    template <typename T> T get(size_t at) const {
        T value;
        std::memcpy(&value, &bytes[at], sizeof value);
        return value;
    }
    template <typename T> void put(size_t at, const T & value) { std::memcpy(&bytes[at], &value, sizeof value); }

    FileHeader header() const { return get<FileHeader>(0); }
    bool has_table() const { // that lies inside
        return bytes.size() >= sizeof(FileHeader) && header().table_at <= bytes.size() &&
               header().entries <= (bytes.size() - header().table_at) / sizeof(FileEntry);
    }
    size_t entry_at(size_t index) const { return header().table_at + index * sizeof(FileEntry); }
    FileEntry entry(size_t index) const { return get<FileEntry>(entry_at(index)); }
    size_t state_at(size_t index) const { return entry(index).data.at; }
    size_t page_entry_at(size_t index, size_t page) const {
        return state_at(index) + sizeof(FileStore) + page * sizeof(FilePage);
    }
    FilePage page_entry(size_t index, size_t page) const { return get<FilePage>(page_entry_at(index, page)); }
    size_t page_at(size_t index, size_t page) const { return entry(index).pages.at + page_entry(index, page).at; }

    // Right checksums and sizes for whatever is there.
    void sign() {
        if (!has_table()) return;
        FileHeader head = header();
        for (size_t i = 0; i < head.entries; ++i) {
            FileEntry each = entry(i);
            for (FileRange * range : {&each.data, &each.pages}) {
                if (range->at <= bytes.size() && range->bytes <= bytes.size() - range->at)
                    range->checksum = checksum(bytes.data() + range->at, range->bytes);
            }
            put(entry_at(i), each);
        }
        head.file_bytes = bytes.size();
        head.table_checksum = checksum(bytes.data() + head.table_at, head.entries * sizeof(FileEntry));
        head.checksum = checksum(&head, offsetof(FileHeader, checksum));
        put(0, head);
    }
};

} // namespace vidkv::test
