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
#include <xxhash.h>

#include "build-info.h"
#include "error.h"
#include "interrupt.h"

using nlohmann::json;

namespace vidkv::cli {

namespace {

constexpr uint32_t VERSION = 2;
constexpr int64_t MOST_TOKENS = int64_t(1) << 30; // -c takes no more

struct FileHeader {
    std::array<char, 8> magic = {'V', 'I', 'D', 'K', 'V', 'S', 'E', 'S'};
    uint32_t version = VERSION;
    uint32_t header_bytes = 0;
    uint64_t state_bytes = 0;
    uint64_t checksum = 0;
};
static_assert(sizeof(FileHeader) == 32);

// Tells one model file from another: its size, its first MiB and its last.
uint64_t fingerprint(const std::string & path, uint64_t hash) {
    constexpr uint64_t PART = 1 << 20;
    std::error_code failed;
    const uint64_t size = std::filesystem::file_size(path, failed);
    std::ifstream file(path, std::ios::binary);
    if (failed || !file) throw Error("cannot read the model '" + path + "': no such file, or no permission");
    hash = XXH3_64bits_withSeed(&size, sizeof(size), hash);
    std::vector<char> part(std::min(PART, size));
    for (const uint64_t at : {uint64_t(0), size - part.size()}) {
        file.seekg(static_cast<std::streamoff>(at));
        file.read(part.data(), static_cast<std::streamsize>(part.size()));
        hash = XXH3_64bits_withSeed(part.data(), part.size(), hash);
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
    const uint64_t lengths = XXH3_64bits(&file.header_bytes, sizeof(file.header_bytes) + sizeof(file.state_bytes));
    return XXH3_64bits_withSeed(state.data(), state.size(), XXH3_64bits_withSeed(header.data(), header.size(), lengths));
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

// What to do about an error of the file system.
std::string advice(int error) {
    if (error == ENOSPC || error == EFBIG || error == EDQUOT) return "free some space, or name another place";
    if (error == ENOENT || error == ENOTDIR) return "make its folder first, or name another place";
    return "name another place";
}

[[noreturn]] void cannot_save(const std::string & path, int error) {
    throw Error("cannot save the cache to '" + path + "' (" + std::strerror(error) + "): " + advice(error));
}

std::string part_of(const std::string & path) { return path + ".part"; }

[[noreturn]] void damaged(const std::string & path) {
    throw Error("the saved cache '" + path + "' is cut off or altered: save it again with --save-cache");
}

// The facts of the header, each of the type it must have.
class Facts {
  public:
    Facts(const std::string & path, const std::string & header) : path_(path), facts_(json::parse(header, nullptr, false)) {
        if (!facts_.is_object()) damaged(path_);
    }
    std::string text(const char * name) const {
        if (!facts_.contains(name) || !facts_[name].is_string()) wrong(name);
        return facts_[name];
    }
    int64_t whole(const char * name, int64_t least, int64_t most) const {
        if (!facts_.contains(name) || !facts_[name].is_number_integer()) wrong(name);
        const int64_t value = facts_[name];
        if (value < least || value > most) wrong(name);
        return value;
    }

  private:
    [[noreturn]] void wrong(const char * name) const {
        throw Error("the saved cache '" + path_ + "' has no valid '" + name +
                    "' in its header: save it again with --save-cache");
    }

    const std::string & path_;
    json facts_;
};

void check_origin(const std::string & path, const Facts & facts, const ModelFiles & model, const std::string & kv) {
    if (facts.text("model") != fingerprint(model))
        throw Error("the saved cache '" + path + "' is of another model: name that model with -m and --mmproj");
    if (facts.text("engine") != llama_build_info())
        throw Error("the saved cache '" + path + "' was saved with llama.cpp " + facts.text("engine") + ", this is " +
                    llama_build_info() + ": save it again with --save-cache");
    if (!kv.empty() && facts.text("kv") != kv)
        throw Error("the saved cache '" + path + "' was kept as " + facts.text("kv") + ": leave --kv out, or use --kv " +
                    facts.text("kv"));
}

} // namespace

void check_savable(const std::string & path) {
    const std::string beside = part_of(path);
    std::error_code failed;
    if (std::filesystem::is_directory(path, failed)) cannot_save(path, EISDIR);
    const File file(std::fopen(beside.c_str(), "wb"));
    if (!file) cannot_save(path, errno);
    std::remove(beside.c_str());
}

void save_cache(const std::string & path, const SavedCache & cache, const ModelFiles & model) {
    const VideoPrefix & prefix = cache.prefix;
    const std::string header = json{{"model", fingerprint(model)},  {"kv", cache.kv},
                                    {"engine", llama_build_info()}, {"video", prefix.video},
                                    {"frames", prefix.frames},      {"visual_tokens", prefix.visual_tokens},
                                    {"tokens", prefix.tokens},      {"position", prefix.position}}
                                   .dump(-1, ' ', false, json::error_handler_t::replace);
    FileHeader file_header;
    file_header.header_bytes = static_cast<uint32_t>(header.size());
    file_header.state_bytes = cache.state.size();
    file_header.checksum = checksum(file_header, header, cache.state);
    const UnfinishedFile beside(part_of(path));
    if (!write_all(beside.path(), file_header, header, cache.state) ||
        std::rename(beside.path().c_str(), path.c_str()) != 0)
        cannot_save(path, errno);
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
    const Facts facts(path, header);
    check_origin(path, facts, model, kv);
    cache.kv = facts.text("kv");
    const int64_t tokens = facts.whole("tokens", 1, MOST_TOKENS);
    cache.prefix = {facts.text("video"), facts.whole("frames", 0, MOST_TOKENS), facts.whole("visual_tokens", 0, tokens),
                    tokens, static_cast<llama_pos>(facts.whole("position", 1, MOST_TOKENS))};
    return cache;
}

} // namespace vidkv::cli
