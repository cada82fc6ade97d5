#include "engine/saved_cache.h"

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>

#include <unistd.h>

#include <nlohmann/json.hpp>

#include "error.h"

using nlohmann::json;

namespace vidkv::cli {

namespace {

constexpr uint32_t VERSION = 1;

struct FileHeader {
    std::array<char, 8> magic = {'V', 'I', 'D', 'K', 'V', 'S', 'E', 'S'};
    uint32_t version = VERSION;
    uint32_t header_bytes = 0;
    uint64_t state_bytes = 0;
    uint64_t checksum = 0;
};
static_assert(sizeof(FileHeader) == 32);

// FNV-1a, 64 bits.
uint64_t fnv1a(const void * data, size_t n, uint64_t hash = 0xcbf29ce484222325) {
    const auto * bytes = static_cast<const unsigned char *>(data);
    for (size_t i = 0; i < n; ++i) hash = (hash ^ bytes[i]) * 0x100000001b3;
    return hash;
}

// Tells one model file from another: its size, its first MiB and its last.
uint64_t fingerprint(const std::string & path, uint64_t hash) {
    constexpr uint64_t PART = 1 << 20;
    std::error_code failed;
    const uint64_t size = std::filesystem::file_size(path, failed);
    std::ifstream file(path, std::ios::binary);
    if (failed || !file) throw Error("cannot read the model '" + path + "': no such file, or no permission");
    hash = fnv1a(&size, sizeof(size), hash);
    std::vector<char> part(std::min(PART, size));
    for (const uint64_t at : {uint64_t(0), size - part.size()}) {
        file.seekg(static_cast<std::streamoff>(at));
        file.read(part.data(), static_cast<std::streamsize>(part.size()));
        hash = fnv1a(part.data(), part.size(), hash);
    }
    return hash;
}

std::string fingerprint(const ModelFiles & model) {
    char text[17];
    std::snprintf(text, sizeof(text), "%016llx",
                  static_cast<unsigned long long>(fingerprint(model.mmproj, fingerprint(model.text, 1))));
    return text;
}

uint64_t checksum(const FileHeader & file, const std::string & header, const std::vector<uint8_t> & state) {
    const uint64_t lengths = fnv1a(&file.header_bytes, sizeof(file.header_bytes) + sizeof(file.state_bytes));
    return fnv1a(state.data(), state.size(), fnv1a(header.data(), header.size(), lengths));
}

struct FileCloser {
    void operator()(std::FILE * file) const { std::fclose(file); }
};
using File = std::unique_ptr<std::FILE, FileCloser>;

bool write_all(const std::string & path, const FileHeader & file_header, const std::string & header,
               const std::vector<uint8_t> & state) {
    File file(std::fopen(path.c_str(), "wb"));
    if (!file) return false;
    const bool written = std::fwrite(&file_header, sizeof(file_header), 1, file.get()) == 1 &&
                         std::fwrite(header.data(), 1, header.size(), file.get()) == header.size() &&
                         std::fwrite(state.data(), 1, state.size(), file.get()) == state.size() &&
                         std::fflush(file.get()) == 0 && fsync(fileno(file.get())) == 0;
    return std::fclose(file.release()) == 0 && written;
}

[[noreturn]] void damaged(const std::string & path) {
    throw Error("the saved cache '" + path + "' is cut off or altered: save it again with --save-cache");
}

} // namespace

void save_cache(const std::string & path, const SavedCache & cache, const ModelFiles & model, const std::string & kv) {
    const VideoPrefix & prefix = cache.prefix;
    const std::string header = json{
        {"model", fingerprint(model)},
        {"kv", kv},
        {"video", prefix.video},
        {"frames", prefix.frames},
        {"visual_tokens", prefix.visual_tokens},
        {"tokens", prefix.tokens},
        {"position",
         prefix.position}}.dump(-1, ' ', false, json::error_handler_t::replace);
    FileHeader file_header;
    file_header.header_bytes = static_cast<uint32_t>(header.size());
    file_header.state_bytes = cache.state.size();
    file_header.checksum = checksum(file_header, header, cache.state);
    const std::string beside = path + ".part";
    if (!write_all(beside, file_header, header, cache.state) || std::rename(beside.c_str(), path.c_str()) != 0) {
        const std::string reason = std::strerror(errno);
        std::remove(beside.c_str());
        throw Error("cannot save the cache to '" + path + "' (" + reason + "): free some space, or name another place");
    }
}

SavedCache load_cache(const std::string & path, const ModelFiles & model, const std::string & kv) {
    std::ifstream file(path, std::ios::binary | std::ios::ate);
    if (!file) throw Error("cannot read the saved cache '" + path + "': no such file, or no permission");
    const auto size = static_cast<uint64_t>(file.tellg());
    file.seekg(0);
    FileHeader file_header;
    file.read(reinterpret_cast<char *>(&file_header), sizeof(file_header));
    if (!file || file_header.magic != FileHeader().magic)
        throw Error("'" + path + "' is not a saved cache: it comes from --save-cache");
    if (file_header.version != VERSION) throw Error("the saved cache '" + path + "' is of another version: save it again");
    if (file_header.state_bytes > size || sizeof(file_header) + file_header.header_bytes + file_header.state_bytes != size)
        damaged(path);
    std::string header(file_header.header_bytes, '\0');
    SavedCache cache;
    cache.state.resize(file_header.state_bytes);
    file.read(header.data(), static_cast<std::streamsize>(header.size()));
    file.read(reinterpret_cast<char *>(cache.state.data()), static_cast<std::streamsize>(cache.state.size()));
    if (!file || checksum(file_header, header, cache.state) != file_header.checksum) damaged(path);
    const json facts = json::parse(header, nullptr, false);
    if (!facts.is_object()) damaged(path);
    if (facts.value("model", "") != fingerprint(model))
        throw Error("the saved cache '" + path + "' is of another model: name that model with -m and --mmproj");
    if (facts.value("kv", "") != kv) {
        throw Error("the saved cache '" + path + "' was kept as " + facts.value("kv", "") + ": use --kv " +
                    facts.value("kv", ""));
    }
    cache.prefix = {facts.value("video", ""), facts.value("frames", int64_t(0)), facts.value("visual_tokens", int64_t(0)),
                    facts.value("tokens", int64_t(0)), facts.value("position", llama_pos(0))};
    return cache;
}

} // namespace vidkv::cli
