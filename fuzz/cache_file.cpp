// Loads a file made of the fuzzer's bytes into stores of the shape that it names, with right checksums, so that every check behind the
// checksums is met. What loads is then read, attended to, written on, sealed and saved: nothing may crash.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include <sys/mman.h>
#include <unistd.h>

#include "core/forged_file.h"
#include "vidkv/file.h"

namespace {

using vidkv::FileEntry;
using vidkv::FileHeader;
using vidkv::test::ForgedFile;

constexpr int32_t most_layers = 2, most_sequences = 3, most_channels = 256;
constexpr int64_t cells = 1024;

// A file in memory, by its path.
class MemoryFile {
  public:
    explicit MemoryFile(const std::vector<uint8_t> & bytes) : file_(memfd_create("cache", 0)) {
        if (file_ < 0 || write(file_, bytes.data(), bytes.size()) != static_cast<ssize_t>(bytes.size())) std::abort();
    }
    ~MemoryFile() { close(file_); }
    std::string path() const { return "/proc/self/fd/" + std::to_string(file_); }

  private:
    int file_;
};

void free_store(vidkv_store * store) { vidkv_store_free(store); }
using Store = std::unique_ptr<vidkv_store, decltype(&free_store)>;

Store make(const vidkv_file_store_info & info, const vidkv_params & params) {
    const vidkv_store_shape shape{info.side, info.channels, 0, cells, 2};
    vidkv_store * store = nullptr;
    if (vidkv_store_create(&shape, &params, &store) != VIDKV_OK) store = nullptr;
    return {store, free_store};
}

void attend(const vidkv_store * keys, const vidkv_store * values, int32_t heads, int32_t key_dim, int32_t value_dim) {
    std::vector<float> q(static_cast<size_t>(heads * key_dim), 0.5f), out(static_cast<size_t>(heads * value_dim));
    vidkv_attention_args args{};
    args.q = q.data();
    args.out = out.data();
    args.q_token_stride = args.q_head_stride = key_dim;
    args.out_token_stride = args.out_head_stride = value_dim;
    args.tokens = 1;
    args.heads = heads;
    args.cells = cells;
    args.scale = 0.1f;
    args.threads = 1;
    vidkv_attention(keys, values, &args);
}

void go_on(vidkv_store * store, const vidkv_file_store_info & info) {
    const std::vector<float> row(static_cast<size_t>(info.channels), 0.25f);
    std::vector<uint16_t> rows(static_cast<size_t>(cells) * row.size());
    vidkv_store_read_f16(store, 0, 0, cells, rows.data());
    vidkv_store_copy_sequence(store, 0, 1);
    for (const int64_t cell : {int64_t{5}, info.cells / 2, std::min(info.cells, cells - 1)})
        vidkv_store_write_f32(store, 0, &cell, 1, row.data(), info.channels);
    vidkv_store_seal(store, 1);
    vidkv_store_truncate(store, 0, info.cells / 3);
    vidkv_store_read_f16(store, 1, 0, cells, rows.data());
    vidkv_store_stats stats;
    vidkv_store_get_stats(store, &stats);
}

void use(const vidkv_file * file) {
    vidkv_file_info about;
    vidkv_file_get_info(file, &about);
    vidkv_file_verify(file, 1);
    Store keys{nullptr, free_store};
    int32_t heads = 0, key_dim = 0;
    for (int64_t i = 0; i < std::min<int64_t>(about.stores, 2 * most_layers * most_sequences); ++i) {
        vidkv_file_store_info info;
        if (vidkv_file_get_store(file, i, &info) != VIDKV_OK || info.channels > most_channels || info.channels < 1)
            continue;
        Store store = make(info, about.params);
        if (!store || vidkv_file_load(file, info.layer, info.sequence, store.get(), 0, nullptr, 0) != VIDKV_OK) continue;
        const std::vector<int64_t> places{3, 1, 0, 6, 7, 2, 5, 4};
        vidkv_file_load(file, info.layer, info.sequence, store.get(), 1, places.data(), 8);
        if (info.side == VIDKV_KEYS) {
            heads = info.channels / info.head_dim;
            key_dim = info.head_dim;
            keys = std::move(store);
        } else {
            if (keys) attend(keys.get(), store.get(), heads, key_dim, info.head_dim);
            go_on(store.get(), info);
        }
        if (keys && info.side == VIDKV_KEYS) continue;
        if (keys) go_on(keys.get(), info);
        keys.reset();
    }
}

void save(const vidkv_file * file) {
    vidkv_file_info about;
    vidkv_file_get_info(file, &about);
    vidkv_file_store_info info;
    if (vidkv_file_get_store(file, 0, &info) != VIDKV_OK || info.channels > most_channels || info.channels < 1) return;
    const Store store = make(info, about.params);
    if (!store || vidkv_file_load(file, info.layer, info.sequence, store.get(), 0, nullptr, 0) != VIDKV_OK) return;
    const std::string path = "/tmp/fuzz-cache-file-" + std::to_string(getpid());
    vidkv_file_writer * writer = nullptr;
    if (vidkv_file_create(path.c_str(), &about.params, &writer) != VIDKV_OK) return;
    vidkv_file_add_store(writer, 0, 0, store.get(), 0, nullptr, 0);
    vidkv_file_abandon(writer); // nothing is left
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size) {
    ForgedFile forged({data, data + size});
    if (size >= sizeof(FileHeader)) {
        FileHeader header = forged.header();
        std::copy(std::begin(vidkv::file_magic), std::end(vidkv::file_magic), header.magic);
        if (header.entries <= size / sizeof(FileEntry)) header.table_at = size - header.entries * sizeof(FileEntry);
        forged.put(0, header);
    }
    forged.sign();
    const MemoryFile memory(forged.bytes);
    for (const int32_t copies : {0, 1}) {
        vidkv_file * file = nullptr;
        if (vidkv_file_open(memory.path().c_str(), copies, &file) != VIDKV_OK) continue;
        for (int64_t i = 0; const char * name = vidkv_file_section_name(file, i); ++i) {
            uint64_t bytes = 0;
            const auto * section = static_cast<const uint8_t *>(vidkv_file_section(file, name, &bytes));
            volatile uint8_t seen = bytes > 0 ? section[bytes - 1] : uint8_t{0};
            static_cast<void>(seen);
        }
        use(file);
        if (copies) save(file);
        vidkv_file_close(file);
    }
    return 0;
}
