// Loads a saved cache made of the fuzzer's bytes into a cache of the shape that they name, with a right checksum, so that
// every check behind the checksum is met. What loads is then read, attended to, sealed on and saved: nothing may crash.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include <sys/mman.h>
#include <unistd.h>

#include "vidkv/vidkv.h"

namespace {

constexpr size_t header_bytes = 64, checksum_bytes = 8;

template <typename T> T at(const std::vector<uint8_t> & file, size_t offset) {
    T value;
    std::memcpy(&value, &file[offset], sizeof(T));
    return value;
}
template <typename T> T bounded(std::vector<uint8_t> & file, size_t offset, T most) { // small, so that an input is fast
    const T value = std::clamp<T>(at<T>(file, offset), 1, most);
    std::memcpy(&file[offset], &value, sizeof(T));
    return value;
}

void sign(std::vector<uint8_t> & file) {
    uint64_t hash = 0xcbf29ce484222325u;
    for (size_t i = 0; i < file.size() - checksum_bytes; ++i) hash = (hash ^ file[i]) * 0x100000001b3u;
    std::memcpy(&file[file.size() - checksum_bytes], &hash, checksum_bytes);
}

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

void use(vidkv_cache * cache, const vidkv_cache_shape & shape) {
    const size_t channels = static_cast<size_t>(shape.kv_heads) * static_cast<size_t>(shape.head_dim);
    std::vector<float> q(channels, 0.5f), out(channels);
    std::vector<uint16_t> rows(static_cast<size_t>(shape.cells) * channels);
    for (int32_t layer = 0; layer < shape.layers; ++layer) {
        vidkv_store *keys = vidkv_cache_keys(cache, layer), *values = vidkv_cache_values(cache, layer);
        for (int32_t sequence = 0; sequence < shape.sequences; ++sequence) {
            vidkv_store_read_f16(keys, sequence, 0, shape.cells, rows.data());
            vidkv_store_read_f16(values, sequence, 0, shape.cells, rows.data());
            vidkv_attention_args args{};
            args.q = q.data();
            args.out = out.data();
            args.q_token_stride = args.out_token_stride = static_cast<int64_t>(channels);
            args.q_head_stride = args.out_head_stride = shape.head_dim;
            args.tokens = 1;
            args.heads = shape.kv_heads;
            args.cells = vidkv_cache_length(cache, layer, sequence);
            args.sequence = args.value_sequence = sequence;
            args.scale = 0.1f;
            args.threads = 1;
            vidkv_attention(keys, values, &args);
            const int64_t length = vidkv_cache_length(cache, layer, sequence);
            if (length < shape.cells) vidkv_cache_append(cache, layer, sequence, 1, q.data(), q.data());
        }
    }
    vidkv_cache_seal(cache, 1);
    for (int32_t sequence = 0; sequence < shape.sequences; ++sequence)
        vidkv_cache_truncate(cache, sequence, shape.cells / 2);
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size) {
    if (size < header_bytes + checksum_bytes) return 0;
    std::vector<uint8_t> file(data, data + size);
    std::memcpy(file.data(), "VIDKVKV2", 8);
    vidkv_params params{};
    params.key_bits = at<float>(file, 8);
    params.value_bits = at<float>(file, 12);
    params.key_codec = at<int32_t>(file, 16);
    params.value_codec = at<int32_t>(file, 20);
    params.group_size = at<int32_t>(file, 24);
    params.residual_length = at<int32_t>(file, 28);
    params.sink_tokens = at<int32_t>(file, 32);
    params.protect = at<float>(file, 36);
    vidkv_cache_shape shape{};
    shape.layers = bounded<int32_t>(file, 40, 2);
    shape.kv_heads = bounded<int32_t>(file, 44, 4);
    shape.head_dim = bounded<int32_t>(file, 48, 64);
    shape.sequences = bounded<int32_t>(file, 52, 3);
    shape.cells = bounded<int64_t>(file, 56, 1024);
    sign(file);
    vidkv_cache * cache = nullptr;
    if (vidkv_cache_create(&shape, &params, &cache) != VIDKV_OK) return 0;
    const MemoryFile saved(file);
    if (vidkv_cache_load(cache, saved.path().c_str()) == VIDKV_OK) use(cache, shape);
    vidkv_cache_free(cache);
    return 0;
}
