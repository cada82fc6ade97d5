// The cache's file: header, payload, checksum; docs/format.md, "Saved cache".
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <string>

#include <unistd.h>

#include "base/error.h"
#include "cache/cache.h"

namespace vidkv {

namespace {

constexpr char magic[8] = {'V', 'I', 'D', 'K', 'V', 'K', 'V', '2'};
constexpr size_t checksum_bytes = 8;

// FNV-1a, 64 bits: finds damage, not malice, so every number is checked for sense as well.
uint64_t checksum(const uint8_t * data, size_t size) {
    uint64_t hash = 0xcbf29ce484222325u;
    for (size_t i = 0; i < size; ++i) hash = (hash ^ data[i]) * 0x100000001b3u;
    return hash;
}

vidkv_status io_error(const std::string & what, const char * path) {
    return fail(VIDKV_E_IO, "cannot " + what + " '" + path + "': " + std::strerror(errno));
}

vidkv_status read_file(const char * path, std::vector<uint8_t> & out) {
    std::FILE * file = std::fopen(path, "rb");
    if (!file) return io_error("open", path);
    uint8_t buffer[1 << 16];
    size_t got;
    try {
        while ((got = std::fread(buffer, 1, sizeof buffer, file)) > 0) append_bytes(out, buffer, got);
    } catch (...) {
        std::fclose(file);
        throw;
    }
    const bool failed = std::ferror(file);
    std::fclose(file);
    return failed ? io_error("read", path) : VIDKV_OK;
}

} // namespace

std::vector<uint8_t> Cache::header() const {
    std::vector<uint8_t> out;
    append_bytes(out, magic, sizeof magic);
    append_number(out, params_.key_bits);
    append_number(out, params_.value_bits);
    append_number(out, params_.key_codec);
    append_number(out, params_.value_codec);
    append_number(out, params_.group_size);
    append_number(out, params_.residual_length);
    append_number(out, params_.sink_tokens);
    append_number(out, params_.protect);
    append_number(out, shape_.layers);
    append_number(out, shape_.kv_heads);
    append_number(out, shape_.head_dim);
    append_number(out, shape_.sequences);
    append_number(out, shape_.cells);
    return out;
}

vidkv_status Cache::save(const char * path) const {
    for (const Layer & layer : layers_) {
        if (!layer.keys->began() && !layer.values->began()) continue;
        return fail(VIDKV_E_ARGUMENT, "a cache with several texts in one sequence (vidkv_store_begin) cannot be saved");
    }
    std::vector<uint8_t> out = header();
    for (const Layer & layer : layers_) {
        append_bytes(out, layer.lengths.data(), layer.lengths.size() * sizeof(int64_t));
        layer.keys->save(out);
        layer.values->save(out);
    }
    append_number(out, checksum(out.data(), out.size()));

    const std::string beside = std::string(path) + ".part";
    std::FILE * file = std::fopen(beside.c_str(), "wb");
    if (!file) return io_error("write", beside.c_str());
    bool good = std::fwrite(out.data(), 1, out.size(), file) == out.size();
    good = good && std::fflush(file) == 0 && fsync(fileno(file)) == 0;
    good = std::fclose(file) == 0 && good;
    good = good && std::rename(beside.c_str(), path) == 0;
    if (good) return VIDKV_OK;
    const int reason = errno;
    std::remove(beside.c_str());
    errno = reason;
    return io_error("write", path);
}

vidkv_status Cache::load(const char * path) {
    std::vector<uint8_t> file;
    if (vidkv_status status = read_file(path, file)) return status;
    const std::string name = "'" + std::string(path) + "' ";
    const std::vector<uint8_t> wanted = header();
    if (file.size() < sizeof magic || std::memcmp(file.data(), magic, sizeof magic) != 0) {
        return fail(VIDKV_E_FORMAT, name + "is not a saved VidKV cache of this version");
    }
    if (file.size() < wanted.size() + checksum_bytes) return fail(VIDKV_E_FORMAT, name + "is cut off; save it again");
    if (std::memcmp(file.data(), wanted.data(), wanted.size()) != 0) {
        return fail(VIDKV_E_FORMAT,
                    name + "was saved with another preset or shape; load it into a cache like the one saved");
    }
    const size_t end = file.size() - checksum_bytes;
    if (checksum(file.data(), end) != load_at<uint64_t>(file.data() + end)) {
        return fail(VIDKV_E_FORMAT, name + "is cut off or altered; save it again");
    }
    std::vector<Layer> layers = make_layers();
    ByteReader in(file.data() + wanted.size(), end - wanted.size());
    for (Layer & layer : layers) {
        in.bytes(layer.lengths.data(), layer.lengths.size() * sizeof(int64_t));
        for (const int64_t length : layer.lengths) {
            if (length < 0 || length > shape_.cells) return fail(VIDKV_E_FORMAT, name + "is altered; save it again");
        }
        for (Store * store : {layer.keys.get(), layer.values.get()}) {
            if (vidkv_status status = store->load(in)) return fail(status, name + ": " + last_error());
        }
    }
    if (!in.ok() || in.left() != 0) return fail(VIDKV_E_FORMAT, name + "is altered; save it again");
    layers_ = std::move(layers);
    return VIDKV_OK;
}

} // namespace vidkv
