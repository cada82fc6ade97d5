// The C API's stores and files, owned; and the rows of a store as llama.cpp saves them.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "vidkv/file.h"

namespace vidkv::cli {

struct StoreFree {
    void operator()(vidkv_store * store) const { vidkv_store_free(store); }
};
using PackedStore = std::unique_ptr<vidkv_store, StoreFree>;
struct FileClose {
    void operator()(vidkv_file * file) const { vidkv_file_close(file); }
};
using PackedFile = std::unique_ptr<vidkv_file, FileClose>;
struct WriterAbandon {
    void operator()(vidkv_file_writer * writer) const { vidkv_file_abandon(writer); }
};
using PackedWriter = std::unique_ptr<vidkv_file_writer, WriterAbandon>;

// Throws Error with the core's line.
void check_status(vidkv_status status);

PackedStore make_store(vidkv_side side, int64_t channels, int head_dim, int64_t pages, const vidkv_params & params);
// Reads it into memory where it cannot be mapped. whole: its pages are checked too.
PackedFile open_packed(const std::string & path, bool whole, int threads);

// The 128 rows of a page as a host saves them: a packed page lies in their lowest bits, under the number `tag` (-1: it does not, for
// not all of its cells are saved).
void read_page_to_save(const vidkv_store * store, int64_t channels, int64_t page, int64_t tag, uint16_t * rows);

} // namespace vidkv::cli
